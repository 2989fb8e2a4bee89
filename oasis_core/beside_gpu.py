"""What the thread that feeds a GPU needs of its process while reader, packers and encoder work beside it.

Of torch's work on the host little is left then (cuts, copies), but each piece of it waited for all of torch's threads, which
find the cores taken by the encoder's, and GNU OpenMP's spin while they wait and so take them from it in turn. And after each
call the thread needs Python's lock again, which who holds it keeps for ``sys.getswitchinterval()``.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

THREADS = 1
"""Of torch on the host. Looking for a cut on 320x180, two cores, other processes on them: 24 ms with two threads that spin as
they do by themselves, 1.2 with two that sleep soon (``openmp``), 0.6 with one."""
INTERVAL = 0.0005
"""Seconds after which Python's lock is asked for, at most; Python's own 0.005. A job on two cores whose model is 150 small calls
a frame: 5.7 ms a frame instead of 6.9; 0.0001 gave no more (one run each, on a machine with other work)."""


class _Usual:
    """Both settings are the process's, and so is this: jobs in several threads may overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs = 0
        self._interval, self._threads = 0.0, 0

    def leave_it(self) -> None:
        with self._lock:
            threads = torch.get_num_threads()  # asked in any case: who was not, takes the process's number once more
            if not self._jobs:
                self._interval, self._threads = sys.getswitchinterval(), threads
                _set_interval(min(self._interval, INTERVAL))
            self._jobs += 1
            torch.set_num_threads(min(self._threads, THREADS))  # this thread's own, and that of threads to come

    def come_back(self) -> None:
        with self._lock:
            self._jobs -= 1
            if not self._jobs:
                _set_interval(self._interval)
            torch.set_num_threads(self._threads)


def _set_interval(seconds: float) -> None:
    sys.setswitchinterval(seconds + 5e-7)  # it cuts to whole microseconds, also 99.99... to 99


_usual = _Usual()


@contextmanager
def feeding(device: str) -> Iterator[None]:
    """While this lasts, the calling thread feeds a model on that kind of device; nothing changes for one on a CPU.

    Put back when the last of the jobs that overlap ends. Within one job another may begin.
    """
    if device == "cpu":
        yield
        return
    _usual.leave_it()
    try:
        yield
    finally:
        _usual.come_back()

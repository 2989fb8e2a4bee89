"""Threads that turn finished pictures into an encoder's frames, so that it alone is what a writer waits for."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor

from ..video_io.packing import Packed, Packing
from .overlap import RGB_BYTES, frames_waiting

MOST = 4
"""Threads: a frame of 1280x720 takes one of them about 10 ms, so they keep up with 400 a second."""


class Packers:
    """Packs pictures in the order in which they are put, several at once. An error is that of the frame's future."""

    def __init__(self, packing: Packing) -> None:
        self.waited = 0.0
        """Seconds that the producer has waited to put pictures: few of them wait, since they are large."""
        self._packing = packing
        self._room = threading.Semaphore(frames_waiting(*packing.size, RGB_BYTES))
        self._pool = ThreadPoolExecutor(max(1, min(MOST, (os.cpu_count() or 1) // 2)), "oasis-packer")

    def __enter__(self) -> Packers:
        return self

    def put(self, rgb: Tensor, number: int) -> Future[Packed]:
        """``rgb``: ``(H, W, 3)`` in [0, 1] on the CPU, and nobody changes it any more; ``number``: of the clip's frame."""
        began = time.monotonic()
        self._room.acquire()
        self.waited += time.monotonic() - began
        future = self._pool.submit(self._packing, rgb, number)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

"""The scans of all inputs, one after the other, in a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from ..jobs.overlap import PATIENCE
from ..jobs.scan import Scan, SegmentTask
from .film import Film


@dataclass(frozen=True)
class ScanEnd:
    """A scan that reached the end, and the segment that it ends with: told together, so that no manifest ever holds all
    segments and not the length."""

    scan: Scan
    last: SegmentTask | None


Found = tuple[int, "SegmentTask | ScanEnd | BaseException"]
"""Number of the film, and a segment of it; or its end, or an error."""


class Scanning:
    """Finds segments at most ``ahead`` before they are taken."""

    def __init__(self, ahead: int) -> None:
        self._found: queue.Queue[Found] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, films: Mapping[int, Film]) -> None:
        """Begin, with the films in order."""
        self._thread = threading.Thread(target=self._run, args=(dict(films),), name="oasis-scan", daemon=True)
        self._thread.start()

    def take(self, wanted: bool) -> list[Found]:
        """What was found since."""
        found: list[Found] = []
        while wanted:
            try:
                found.append(self._found.get_nowait())
            except queue.Empty:
                break
        return found

    @property
    def over(self) -> bool:
        """Whether nothing will be found any more."""
        return self._thread is not None and not self._thread.is_alive() and self._found.empty()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, films: dict[int, Film]) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # pictures made small: more would wait for cores that encoders keep busy
        try:
            for number, film in films.items():
                for found in _scan(film):
                    if not self._put((number, found)):
                        return
        finally:
            torch.set_num_threads(threads)

    def _put(self, found: Found) -> bool:
        while not self._stop.is_set():
            try:
                self._found.put(found, timeout=PATIENCE)
                return True
            except queue.Full:
                continue
        return False


def _scan(film: Film) -> Iterator[SegmentTask | ScanEnd | BaseException]:
    last: SegmentTask | None = None
    try:
        scan = film.scan()
        for task in scan:
            if last is not None:
                yield last
            last = task
        film.check()
        yield ScanEnd(scan, last)
    except Exception as e:  # of one input: it ends this one, not the others
        yield e

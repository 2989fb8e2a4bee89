"""Reading and writing beside the model: one thread each, with short queues between.

An error on either side reaches the model's thread with its next item; leaving the ``with`` block ends the threads.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
PATIENCE = 0.1
"""Seconds after which a thread that waits looks whether it is still wanted."""
ROOM = 2**28
"""Bytes of waiting frames on either side of the model: more than a chunk of small ones, which the model takes in one gulp, and
enough for the time in which the encoder finishes a segment."""
LEAST, MOST = 2, 64
"""Frames that wait on either side in any case, and at most."""
RGB_BYTES, PACKED_BYTES = 12, 3
"""For a pixel: three fp32 values; an encoder's frame (8 bits 4:2:0 take 1.5, 10 bits 3, the lossless formats up to 6)."""


def frames_waiting(height: int, width: int, pixel_bytes: int) -> int:
    """How many frames may wait in one place."""
    return max(LEAST, min(MOST, ROOM // (height * width * pixel_bytes)))


class ReadAhead(Generic[T]):
    """Iterates ``source`` in a thread of its own, at most ``depth`` items ahead (and the one in its hands)."""

    def __init__(self, source: Iterable[T], depth: int) -> None:
        self.waited = 0.0
        """Seconds that the consumer has waited for items."""
        self.worked = 0.0
        """Seconds that the thread took to make items; what it waits for room is not in it."""
        self._source = source
        self._items: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="oasis-reader", daemon=True)

    def __enter__(self) -> ReadAhead[T]:
        self._thread.start()
        return self

    def __iter__(self) -> Iterator[T]:
        while True:
            began = time.monotonic()
            item, error = self._items.get()
            self.waited += time.monotonic() - began
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]

    def _run(self) -> None:
        iterator = iter(self._source)
        began = time.monotonic()
        try:
            for item in iterator:
                self.worked += time.monotonic() - began
                if not self._offer((item, None)):
                    return
                began = time.monotonic()
            self._offer((None, StopIteration()))
        except BaseException as e:
            self._offer((None, e))
        finally:
            getattr(iterator, "close", lambda: None)()

    def _offer(self, item: tuple[T | None, BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=PATIENCE)
                return True
            except queue.Full:
                continue
        return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()


class WriteBehind(Generic[T]):
    """Gives items to ``consume`` in a thread of its own, at most ``depth`` of them waiting.

    Leaving the block waits until every item that was put is consumed, also when an error ends it (what was finished is
    kept); an error of ``consume`` is raised by the next ``put``, or then.
    """

    def __init__(self, consume: Callable[[T], None], depth: int) -> None:
        self.waited = 0.0
        """Seconds that the producer has waited to put items, and at the end for the last one."""
        self.worked = 0.0
        """Seconds in which the thread consumed items; what it waits for the next one is not in it."""
        self._consume = consume
        self._items: queue.Queue[T | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="oasis-writer", daemon=True)

    def __enter__(self) -> WriteBehind[T]:
        self._thread.start()
        return self

    def put(self, item: T) -> None:
        began = time.monotonic()
        self._offer(item)
        self.waited += time.monotonic() - began
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            began = time.monotonic()
            try:
                self._consume(item)
            except BaseException as e:
                self._error = e
                return
            finally:
                self.worked += time.monotonic() - began

    def _offer(self, item: T | None) -> None:
        while self._thread.is_alive():
            try:
                self._items.put(item, timeout=PATIENCE)
                return
            except queue.Full:
                continue

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        began = time.monotonic()
        self._offer(None)
        self._thread.join()
        self.waited += time.monotonic() - began
        if self._error is not None and error is None:
            raise self._error

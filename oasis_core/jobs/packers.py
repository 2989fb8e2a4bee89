"""Threads that turn finished pictures into an encoder's frames, so that it alone is what a writer waits for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor

from ..video_io.device_packing import DevicePacking, packs_on
from ..video_io.packing import Packed, Packing
from .overlap import RGB_BYTES, frames_waiting

MOST = 4
"""Threads: a frame of 1280x720 takes one of them about 10 ms, so they keep up with 400 a second."""


class Packers:
    """Packs pictures in the order in which they are put, several at once. An error is that of the frame's future."""

    def __init__(self, packing: Packing, device: str = "cpu") -> None:
        """``device``: the kind that pictures are made on. Where ``packs_on`` says so, the values are packed there already."""
        there = DevicePacking(packing) if packs_on(device, packing) else None
        self.finish: Callable[[Tensor], Tensor] | None = None if there is None else there.pack
        """What turns pictures ``(n, H, W, 3)`` into what ``put`` takes, on their device; None: it takes pictures."""
        self.waited = 0.0
        """Seconds that the producer has waited to put pictures: few of them wait, since they are large."""
        self._pack: Callable[[Tensor, int], Packed] = packing if there is None else there.frame
        self._room = threading.Semaphore(frames_waiting(*packing.size, RGB_BYTES))
        self._pool = ThreadPoolExecutor(max(1, min(MOST, (os.cpu_count() or 1) // 2)), "oasis-packer")

    def __enter__(self) -> Packers:
        return self

    def put(self, made: Tensor, number: int) -> Future[Packed]:
        """``made``: ``(H, W, 3)`` in [0, 1] or what ``finish`` makes of that, on the CPU, and nobody changes it any more;
        ``number``: of the clip's frame."""
        began = time.monotonic()
        self._room.acquire()
        self.waited += time.monotonic() - began
        future = self._pool.submit(self._pack, made, number)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

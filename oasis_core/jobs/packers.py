"""Threads that turn finished pictures into an encoder's frames, so that it alone is what a writer waits for."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor

from ..video_io.packing import Packed, Packing

MOST = 4
"""Threads: a frame of 1280x720 takes one of them about 10 ms, so they keep up with 400 a second."""


class Packers:
    """Packs pictures in the order in which they are put, several at once. An error is that of the frame's future."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self._pool = ThreadPoolExecutor(max(1, min(MOST, (os.cpu_count() or 1) // 2)), "oasis-packer")

    def __enter__(self) -> Packers:
        return self

    def put(self, rgb: Tensor, number: int) -> Future[Packed]:
        """``rgb``: ``(H, W, 3)`` in [0, 1] on the CPU, and nobody changes it any more; ``number``: of the clip's frame."""
        return self._pool.submit(self._packing, rgb, number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

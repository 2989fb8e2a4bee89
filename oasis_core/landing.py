"""Finished frames on their way from a CUDA device to the host, while the device works on others.

Copies into memory that the system cannot move ("pinned") run beside the device's work and several times faster than into other
memory; two such buffers take turns, so that it stays bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from .decode_order import Part

PAGE = 4096
"""Bytes that the system hands out at a time, or fewer than it does."""
STRETCH = 4 << 20
"""Bytes laid out in one go, which a writer may have to wait for: a millisecond or two."""


def fresh(*shape: int) -> Tensor:
    """Fp32 on the host, not written yet, in large pages where the system has them.

    NumPy asks for such pages (Linux: ``madvise``), torch does not: 33 frames of 1280x720 fault 700 times instead of 89,000, and
    filling them takes one thread 81 to 89 ms instead of 155 to 205 (benchmarks/results/first_touch_2026-11-28.json).
    """
    return torch.from_numpy(np.empty(shape, np.float32))


class LaidOut:
    """Fresh memory, made ready by a thread while a device works.

    The system hands out a large block page by page, at the first write to each: 33 frames of 1280x720 are 89,000 faults, which
    whoever writes them waits for. What is written sooner than it is laid out is left to the writer.
    """

    def __init__(self, block: Tensor) -> None:
        """``block``: contiguous, on the host, not written yet; to be written in order, each part once it is claimed."""
        self._block, self._step = block.view(-1), PAGE // block.element_size()
        self._claimed, self._ended = 0, False
        self._busy: int | None = None
        """Where the stretch begins that is being laid out."""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._lay_out, name="oasis-pages", daemon=True)

    def __enter__(self) -> LaidOut:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended = True
        self._thread.join()

    def claim(self, elements: int) -> None:
        """From here on the first ``elements`` are the caller's alone."""
        with self._changed:
            self._claimed = elements
            self._changed.wait_for(lambda: self._busy is None or self._busy >= elements)

    @torch.inference_mode()  # which ComfyUI makes its tensors in, and a thread is not in by itself
    def _lay_out(self) -> None:
        length, stop = STRETCH // self._block.element_size(), 0
        try:
            while not self._ended:
                with self._changed:
                    self._busy = start = max(stop, -(-self._claimed // self._step) * self._step)
                    self._changed.notify()
                if start >= len(self._block):
                    return
                stop = start + length
                self._block[start : stop : self._step] = 0
        finally:
            with self._changed:
                self._busy = None
                self._changed.notify()


@contextmanager
def laid_out(block: Tensor, device: torch.device) -> Iterator[Callable[[int], None]]:
    """Fresh memory for what ``device`` makes: beside a GPU it is laid out, elsewhere nothing happens.

    Gives what is to be called before the first so many rows of ``block`` are written.
    """
    if device.type != "cuda":
        yield lambda rows: None
        return
    with LaidOut(block) as pages:
        yield lambda rows: pages.claim(rows * block[0].numel())


class _Staging:
    """A buffer on the host and the copy that is under way into it."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)
        self._source: Tensor | None = None
        self._done: torch.cuda.Event | None = None

    def start(self, frames: Tensor, stream: torch.cuda.Stream) -> None:
        """Begin to copy what the device's present work gives."""
        if self._buffer.numel() < frames.numel() or self._buffer.dtype != frames.dtype:
            self._buffer = torch.empty(frames.numel(), dtype=frames.dtype, pin_memory=True)
        self._source = frames.contiguous()
        stream.wait_stream(torch.cuda.current_stream(frames.device))
        with torch.cuda.stream(stream):
            self._view().copy_(self._source, non_blocking=True)
            self._done = stream.record_event()

    def _view(self) -> Tensor:
        assert self._source is not None
        return self._buffer[: self._source.numel()].view(self._source.shape)

    def wait(self) -> Tensor:
        """The frames, until the next copy into this buffer."""
        assert self._done is not None
        self._done.synchronize()
        frames, self._source = self._view(), None
        return frames


def landed(parts: Iterable[Part]) -> Iterator[Part]:
    """The same parts with frames on the host. Those from a CUDA device come one later, and hold until the next is asked for:
    ``kept`` keeps them."""
    staging, turn = (_Staging(), _Staging()), 0
    stream: torch.cuda.Stream | None = None
    waiting: Part | None = None
    for part in parts:
        if not part.frames.is_cuda:
            yield replace(part, frames=part.frames.cpu())
            continue
        stream = stream or torch.cuda.Stream(part.frames.device)
        staging[turn].start(part.frames, stream)
        before, waiting, turn = waiting, replace(part, frames=part.frames.new_empty(0)), 1 - turn
        del part  # its frames live as long as the copy
        if before is not None:
            yield replace(before, frames=staging[turn].wait())
    if waiting is not None:
        yield replace(waiting, frames=staging[1 - turn].wait())


def kept(frames: Tensor) -> Tensor:
    """Frames of ``landed`` that stay as they are."""
    return frames.clone() if frames.is_pinned() else frames

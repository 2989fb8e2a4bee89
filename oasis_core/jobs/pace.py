"""How long a job may take: measured on its first chunk's worth of noise, before there is a segment to tell it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..patchify import frame_count, latent_length
from ..pipeline import Upscaler
from ..plan import plan_chunks, plan_tiles
from .shrink import with_plan

ENOUGH = 8.0
"""Seconds after which the transformer is interrupted and its blocks, which are alike, are counted up."""
INTERVALS = 2
"""Blocks that are timed at least."""
WARM = 2.0
"""Seconds: what takes less is measured again, as on all devices but CPUs: first calls compile, allocate and record."""
ROUNDS = 3
"""The second one records CUDA graphs, the third one uses them."""


@dataclass(frozen=True)
class Pace:
    """Of a model's work on one device; files are read and written beside it."""

    chunk: float
    """Seconds for a chunk in the transformer."""
    frame: float
    """Seconds to decode and correct a frame."""

    def seconds(self, upscaler: Upscaler, frames: int) -> float:
        """For a clip of one shot."""
        latents = latent_length(frames, upscaler.model.config.unshuffle[0])
        chunks = len(plan_chunks(latents, upscaler.chunk, upscaler.chunk_overlap))
        return chunks * self.chunk + frames * self.frame


def is_too_slow(upscaler: Upscaler) -> bool:
    """Whether a single block would take minutes: full-size models on a CPU."""
    return upscaler.remembers and upscaler.model.project.weight.device.type == "cpu"


def measure(upscaler: Upscaler, frames: int | None, height: int, width: int) -> Pace:
    """Upscale noise of that size for some seconds. Raises what the model raises, out-of-memory errors among it."""
    factor = upscaler.model.config.unshuffle[0]
    count = min(frame_count(upscaler.chunk, factor), frames or frame_count(upscaler.chunk, factor))
    picture = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(ROUNDS):
        run = _Run(upscaler, height, width)
        run.go([picture] * count, ENOUGH)
        if run.took > WARM and upscaler.model.project.weight.device.type == "cpu":
            break
    if run.decoded is not None:
        return Pace(run.transformer, run.decoded / count)
    alone = (
        frame_count(2, factor) if upscaler.remembers else factor * upscaler.latents(upscaler.geometry(height, width))
    )
    count = min(count, alone)
    decoding = _Run(with_plan(upscaler, count, None), height, width)
    decoding.go([picture] * count, None)
    assert decoding.decoded is not None
    return Pace(run.transformer, decoding.decoded / count)


class _Enough(Exception):
    """The transformer was seen long enough."""


class _Run:
    """One chunk, and when what of it began."""

    def __init__(self, upscaler: Upscaler, height: int, width: int) -> None:
        geometry, cell = upscaler.geometry(height, width), upscaler.model.config.pixel_multiple
        rows, columns = geometry.pad_h // cell[0], geometry.pad_w // cell[1]
        self._upscaler = upscaler
        self._blocks = upscaler.model.config.depth * len(plan_tiles(rows, columns, *upscaler.tiling(rows, columns)))
        self._polls: list[float] = []
        """When each block began, then each call of the decoder."""
        self._begun = self._ended = 0.0

    def go(self, frames: list[torch.Tensor], enough: float | None) -> None:
        """``enough``: seconds after which the transformer is interrupted; None: never."""
        self._begun = time.monotonic()

        def poll() -> None:
            _wait_for(self._upscaler.model.project.weight.device)
            self._polls.append(time.monotonic())
            seen = len(self._polls)
            if enough is not None and INTERVALS < seen <= self._blocks and self._polls[-1] - self._begun > enough:
                raise _Enough

        try:
            for _ in self._upscaler.stream(frames, poll=poll):
                pass
        except _Enough:
            pass
        self._ended = time.monotonic()

    @property
    def took(self) -> float:
        return self._ended - self._begun

    @property
    def transformer(self) -> float:
        """Seconds until the decoder begins; where it was interrupted, what that would have been."""
        if len(self._polls) > self._blocks:
            return self._polls[self._blocks] - self._begun
        block = (self._polls[-1] - self._polls[0]) / (len(self._polls) - 1)
        return self._polls[0] - self._begun + block * self._blocks

    @property
    def decoded(self) -> float | None:
        """Seconds from there to the end; None where it was interrupted."""
        return self._ended - self._polls[self._blocks] if len(self._polls) > self._blocks else None


def _wait_for(device: torch.device) -> None:
    """Devices work behind the caller's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

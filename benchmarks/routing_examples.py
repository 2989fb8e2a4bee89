"""A dense checkpoint and parts of clips, for ``routing_study.py``: divergences, pictures and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from clock import now
from torch import Tensor

from oasis_core.checkpoints import Checkpoint
from oasis_core.evaluation.clips import pair_clips
from oasis_core.evaluation.perceptual import STLPIPS
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing.calibrated import first_chunk
from oasis_core.routing.calibration import Divergences, measure
from oasis_core.routing.spec import HeadPattern, Pattern, RoutingSpec
from oasis_core.video_io import VideoReader

SCALE = 4
SEEN_EVERY = 2
"""Frames of a result that ST-LPIPS compares: every second one."""


@dataclass(frozen=True)
class Example:
    """A middle part of a clip's first frames."""

    name: str
    low: Tensor
    """``(T, h, w, 3)`` in [0, 1]."""
    truth: Tensor
    """``(T, 4h, 4w, 3)``."""
    longer: Tensor
    """``(2T, h, w, 3)``: the same place, for twice as long."""
    whole: Tensor
    """``(T, H, W, 3)``: the whole frames."""


class Study:
    """A dense model and its examples."""

    def __init__(self, checkpoint: Checkpoint, examples: list[Example], patterns: tuple[Pattern, ...]) -> None:
        self.checkpoint, self.examples, self.patterns = checkpoint, examples, patterns
        self.depth, self.heads = checkpoint.config.depth, checkpoint.config.heads
        self.window = checkpoint.routing.window
        self.dense = RoutingSpec.uniform(self.depth, self.heads, HeadPattern.GLOBAL, self.window)
        self._dense_pictures: dict[str, Tensor] = {}
        self._device = checkpoint.model.project.weight.device
        self._perceptual = STLPIPS("alex").to(self._device)

    def upscaler(self, routing: RoutingSpec, scale: float = SCALE, frames: int | None = None) -> Upscaler:
        chunk = frames or len(self.examples[0].low)
        return Upscaler(
            self.checkpoint.model, routing, UpscaleSettings(scale=scale, chunk_frames=chunk, scene_cuts=False, tile=0)
        )

    def measured(
        self,
        clips: list[Tensor],
        scale: float = SCALE,
        patterns: Sequence[Pattern] = (),
        queries: int = 0,
        window: tuple[int, int, int] | None = None,
    ) -> Divergences:
        """Of all queries where nothing else is said."""
        up = self.upscaler(self.dense, scale, len(clips[0]))
        chunks = [first_chunk(up, clip) for clip in clips]
        return measure(
            self.checkpoint.model, chunks, window or self.window, queries, 0, patterns or self.patterns, up.fidelity
        )

    def everyone(self) -> Divergences:
        """Of all examples."""
        return self.measured([e.low for e in self.examples])

    def picture(self, routing: RoutingSpec, example: Example) -> tuple[Tensor, float]:
        """The model's output ``(3, T, H, W)`` in [0, 1] on the device (no colour correction), and the transformer's seconds."""
        model, up = self.checkpoint.model, self.upscaler(routing)
        pixels = first_chunk(up, example.low).to(model.project.weight.dtype)
        z = model.encode(pixels)
        began = now(z.device)
        z = model.restore(z, routing, fidelity=up.fidelity)
        seconds = now(z.device) - began
        return ((model.decode(z, pixels)[0].float() + 1) / 2).clamp(0, 1), seconds

    def row(self, routing: RoutingSpec) -> dict[str, float]:
        """Means over the examples."""
        rows = []
        for example in self.examples:
            out, seconds = self.picture(routing, example)
            if example.name not in self._dense_pictures:
                self._dense_pictures[example.name] = self.picture(self.dense, example)[0]
            dense = self._dense_pictures[example.name]
            truth = example.truth.to(self._device).permute(3, 0, 1, 2)
            out, dense = (x[:, :, : truth.shape[2], : truth.shape[3]] for x in (out, dense))
            some = [x[:, ::SEEN_EVERY].transpose(0, 1).contiguous() for x in (out, truth)]
            rows.append({
                "change": db(out, dense), "psnr": -db(out, truth), "stlpips": float(self._perceptual(*some)),
                "seconds": seconds,
            })  # fmt: skip
        return {key: sum(r[key] for r in rows) / len(rows) for key in rows[0]}

    def sizes(self) -> tuple[int, int, int]:
        """Token grid of an example."""
        model, low = self.checkpoint.model, self.examples[0].low
        pixels = first_chunk(self.upscaler(self.dense), low).to(model.project.weight.dtype)
        grid = model.dit.grid(model.encode(pixels))
        return grid.t, grid.h, grid.w


def read_examples(data: Path, setting: str, frames: int, size: tuple[int, int], only: int | None) -> list[Example]:
    """The middle ``size`` (rows, columns of the input) of the first frames of each clip."""
    examples = []
    for name, (truth, low) in islice(pair_clips(data / "gt", data / "lq" / setting).items(), only):
        lows = torch.stack([f.rgb for f in islice(VideoReader(low), 2 * frames)]).clamp(0, 1)
        truths = torch.stack([f.rgb for f in islice(VideoReader(truth), frames)]).clamp(0, 1)
        h, w = (min(have, want) for have, want in zip(lows.shape[1:3], size, strict=True))
        top, left = (lows.shape[1] - h) // 2, (lows.shape[2] - w) // 2
        longer = lows[:, top : top + h, left : left + w]
        truths = truths[:, SCALE * top : SCALE * (top + h), SCALE * left : SCALE * (left + w)]
        examples.append(Example(name, longer[:frames], truths, longer, lows[:frames]))
    return examples


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation, -1 to 1 (ties in order of appearance)."""
    ranks = [x.double().argsort().argsort().double() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def db(a: Tensor, b: Tensor) -> float:
    """10 log10 of the mean squared difference, of 1."""
    return float(10 * (a - b).square().mean().clamp_min(1e-12).log10())

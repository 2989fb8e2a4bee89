"""Borders of chunks on a real moving clip, with the embedded model: the jump from frame to frame is what it is without them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oasis_core.checkpoints import embedded_path, load_checkpoint
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import plan_chunks
from oasis_core.video_io import VideoReader

SAMPLE = Path(__file__).parents[1] / "assets" / "sample.mp4"
LOW, HIGH = 0.98, 1.02
"""Mean of the jumps at borders over the unchunked output's there."""
BEYOND = 1 / 255
"""RMS against the unchunked output away from the cross-fades."""


@pytest.fixture(scope="module")
def outputs() -> dict[int, Tensor]:
    """A part of the sample, twice enlarged, by chunk length in frames; 24 is the whole clip."""
    checkpoint = load_checkpoint(embedded_path())
    frames = torch.stack([f.rgb[40:104, 80:192] for f in VideoReader(SAMPLE)])
    settings = UpscaleSettings(scale=2.0)
    return {
        chunk: Upscaler(checkpoint.model, checkpoint.routing, replace(settings, chunk_frames=chunk)).upscale(frames)
        for chunk in (24, 16, 8)
    }


def jumps(frames: Tensor) -> Tensor:
    """RMS difference of each frame to the one before, from the second on."""
    return frames.diff(dim=0).square().mean((1, 2, 3)).sqrt()


@pytest.mark.parametrize("chunk", [16, 8])
def test_jumps_at_chunk_borders_are_those_of_the_unchunked_output(outputs: dict[int, Tensor], chunk: int) -> None:
    ratio = jumps(outputs[chunk]) / jumps(outputs[24])
    spans = plan_chunks(24, chunk, 2)
    # Where a fade begins, inside it, and where it ends: the later chunk takes over from frame a.stop - 2 on.
    borders = sorted({frame for a, _ in pairwise(spans) for frame in range(a.stop - 2, min(a.stop + 1, 24))})
    at = torch.tensor([float(ratio[frame - 1]) for frame in borders])
    print(f"chunk {chunk}: {at.mean():.4f} in the mean, {at.min():.4f} to {at.max():.4f}")
    assert LOW <= at.mean() <= HIGH


@pytest.mark.parametrize("chunk", [16, 8])
def test_chunks_show_little_anywhere(outputs: dict[int, Tensor], chunk: int) -> None:
    error = (outputs[chunk] - outputs[24]).square().mean((1, 2, 3)).sqrt()
    print(f"chunk {chunk}: RMS {error.max() * 255:.3f} of 255 at most")
    assert error.max() < BEYOND

"""What a step is judged by; every term takes frames ``(B, 3, T, H, W)`` in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .discriminator import FRAMES

CHARBONNIER_EPS = 1e-3
PERCEPTUAL_FRAMES = 2
"""Frames per clip that the perceptual term sees; drawn anew each step."""
MOST_OFFSET = 15
"""Largest random offset (pixels) of the perceptual crop: pooling grids then fall elsewhere each step, so that the
network cannot hide a fixed pattern in the places where the metric does not look (DESIGN section 5)."""


def charbonnier(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + eps^2)."""
    return ((sr - hr).float().square() + CHARBONNIER_EPS**2).sqrt().mean()


def low_pass(frames: Tensor) -> Tensor:
    """Area-downscaled by 4 in space."""
    return F.avg_pool3d(frames, (1, 4, 4))


def motion(sr: Tensor, hr: Tensor) -> Tensor:
    """L1 of the frame-to-frame differences; 0 for stills."""
    if sr.shape[2] < 2:
        return sr.new_zeros(())
    return (sr.diff(dim=2) - hr.diff(dim=2)).abs().mean()


def frame_pairs(sr: Tensor, hr: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same random frames and crop of both, as images ``(S, 3, h, w)``: what the perceptual term compares."""
    count = min(PERCEPTUAL_FRAMES, sr.shape[2])
    frames = torch.randperm(sr.shape[2], generator=generator)[:count].tolist()
    top, left = torch.randint(MOST_OFFSET + 1, (2,), generator=generator).tolist()
    size = (sr.shape[-2] - MOST_OFFSET) // 16 * 16
    crop = (..., slice(top, top + size), slice(left, left + size))
    return tuple(rearrange(x[:, :, frames][crop], "b c s h w -> (b s) c h w") for x in (sr, hr))  # type: ignore[return-value]


def stacked_frames(sr: Tensor, hr: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same random run of consecutive frames of both, stacked in channels: what the discriminator sees.

    Clips shorter than the run repeat their last frame.
    """
    start = int(torch.randint(max(1, sr.shape[2] - FRAMES + 1), (1,), generator=generator))
    index = [min(start + i, sr.shape[2] - 1) for i in range(FRAMES)]
    return tuple(rearrange(x[:, :, index], "b c s h w -> b (s c) h w") for x in (sr, hr))  # type: ignore[return-value]


def fool(logits: Tensor) -> Tensor:
    """Generator's adversarial term: non-saturating logistic."""
    return F.softplus(-logits.float()).mean()


def tell_apart(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's loss: logistic."""
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def feature_match(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Mean L1 between discriminator features, each map scaled by the ground truth's mean size."""
    terms = [
        (a.float() - b.float()).abs().mean() / b.float().abs().mean().clamp_min(1e-3)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(terms).mean()

"""Separable filters as matrices along the rows and the columns: each frame has its own, the border is part of it.

For the low-resolution frames of the training: a product with an n x n matrix costs less there than an FFT.
"""

from __future__ import annotations

import torch
from torch import Tensor


def filter_axes(frames: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Frames ``(S, C, H, W)`` with ``down`` ``(S, H, H)`` along each column and ``across`` ``(S, W, W)`` along each row."""
    return down[:, None] @ frames @ across[:, None].transpose(-1, -2)


def gaussian_matrix(size: int, sigma: Tensor) -> Tensor:
    """Blurs ``(S, size, size)`` of ``sigma`` ``(S,)`` pixels, up to size / 4; what falls over the border is folded back.

    Rows and columns sum to 1 (half-sample reflection is symmetric), so the mean of what is filtered is kept.
    """
    at = torch.arange(size, device=sigma.device, dtype=torch.float32)
    apart, over = at[:, None] - at, at[:, None] + at + 1
    weights = torch.zeros(len(sigma), size, size, device=sigma.device)
    exponent = -0.5 / sigma.clamp_min(0.05).square()[:, None, None]
    for distance in (apart, over, 2 * size - over):
        weights = weights + torch.exp(exponent * distance.square())
    return weights / weights.sum(2, keepdim=True)


def rescale_matrix(size: int, factor: Tensor, nearest: Tensor) -> Tensor:
    """Down to ``round(size * factor)`` samples and up again, both without antialiasing: ``(S, size, size)``.

    Args:
        factor: ``(S,)`` in (0, 1].
        nearest: ``(S,)`` bool; the nearest sample, else linear interpolation. Pixel centres as ``F.interpolate`` with
            ``align_corners=False`` ("nearest-exact").
    """
    at = torch.arange(size, device=factor.device, dtype=torch.float32)
    small = (size * factor).round().clamp(1, size)[:, None]
    down = _samples(at.expand(len(small), -1), small, torch.full_like(small, size), nearest)
    up = _samples(at.expand(len(small), -1), torch.full_like(small, size), small, nearest)
    return up @ down


def _samples(index: Tensor, target: Tensor, source: Tensor, nearest: Tensor) -> Tensor:
    """Weights ``(S, n, n)``: row i of the target grid from the source grid; both hold at most n samples."""
    centre = ((index + 0.5) * source / target - 0.5).clamp_min(0).minimum(source - 1)
    whole = torch.where(nearest[:, None], ((index + 0.5) * source / target).floor().minimum(source - 1), centre)
    return (1 - (whole[:, :, None] - index[:, None, :]).abs()).clamp_min(0)

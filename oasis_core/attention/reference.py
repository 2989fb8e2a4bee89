"""The slow truth: routed attention in fp32 with explicit masks.

Every backend is tested against this file. It stores L x L scores: for small grids only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..routing.spec import Pattern, extent_of
from .grid import TokenGrid


def pattern_mask(grid: TokenGrid, pattern: Pattern, window: tuple[int, int, int]) -> Tensor:
    """Which keys each query sees: bool ``(L, L)``, rows are queries.

    Window (DESIGN section 1): |t'-t| <= Pt//2, |h'-h| <= Ph//2, |w'-w| <= Pw//2, truncated at the borders; so for every
    extent, an axis without one being seen whole.
    """
    index = torch.arange(grid.length)
    axes = index // grid.frame, index // grid.w % grid.h, index % grid.w
    mask = torch.ones(grid.length, grid.length, dtype=torch.bool)
    for axis, extent in zip(axes, extent_of(pattern, window).axes, strict=True):
        if extent is not None:
            mask &= (axis[:, None] - axis[None, :]).abs() <= extent // 2
    return mask


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, pattern: Pattern, window: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Attention of one pattern for all given heads, in fp32 (fp64 when given fp64).

    Args:
        q, k, v: ``(B, L, N, D)``, L == grid.length.

    Returns:
        The output ``(B, L, N, D)`` and the log-sum-exp of the scores ``(B, N, L)``, both fp32 (fp64 for fp64 input).
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))  # (B, N, L, D)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~pattern_mask(grid, pattern, window).to(q.device), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1)

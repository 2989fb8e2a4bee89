"""The slow truth: routed attention in fp32 with explicit masks.

Every backend is tested against this file. It stores L x L scores: for small grids only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..routing.spec import HeadPattern
from .grid import TokenGrid


def pattern_mask(grid: TokenGrid, pattern: HeadPattern, window: tuple[int, int, int]) -> Tensor:
    """Which keys each query sees: bool ``(L, L)``, rows are queries.

    Window (DESIGN section 1): |t'-t| <= Pt//2, |h'-h| <= Ph//2, |w'-w| <= Pw//2, truncated at the borders.
    """
    if pattern is HeadPattern.GLOBAL:
        return torch.ones(grid.length, grid.length, dtype=torch.bool)
    index = torch.arange(grid.length)
    t, h, w = index // grid.frame, index // grid.w % grid.h, index % grid.w
    if pattern is HeadPattern.INTRA_FRAME:
        return t[:, None] == t[None, :]
    near = [
        (axis[:, None] - axis[None, :]).abs() <= extent // 2 for axis, extent in zip((t, h, w), window, strict=True)
    ]
    return near[0] & near[1] & near[2]


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, pattern: HeadPattern, window: tuple[int, int, int]
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

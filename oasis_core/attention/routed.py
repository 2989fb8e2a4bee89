"""Routed attention: each head runs the operation that the routing gives it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..routing.spec import HeadPattern
from .grid import TokenGrid
from .sdpa import global_attention, intra_frame_attention, window_attention


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: TokenGrid,
    patterns: tuple[HeadPattern, ...],
    window: tuple[int, int, int],
) -> Tensor:
    """Attention of one layer; head n follows ``patterns[n]``; outputs stay in head order (paper section 3.2).

    Args:
        q, k, v: ``(B, L, N, D)`` in raster order, L == grid.length, N == len(patterns).

    Returns:
        ``(B, L, N, D)`` in q's dtype.

    Raises:
        ValueError: a shape that does not fit the grid or the patterns.
    """
    if q.shape[1] != grid.length or q.shape[2] != len(patterns):
        raise ValueError(f"q is {tuple(q.shape)}; expected (B, {grid.length}, {len(patterns)}, D) for grid {grid}")
    out: Tensor | None = None
    for pattern in HeadPattern:
        heads = [n for n, p in enumerate(patterns) if p is pattern]
        if not heads:
            continue
        select = _head_slice(heads)
        part = _run(q[:, :, select], k[:, :, select], v[:, :, select], grid, pattern, window)
        if len(heads) == len(patterns):
            return part
        out = torch.empty_like(q) if out is None else out
        out[:, :, select] = part
    assert out is not None
    return out


def _head_slice(heads: list[int]) -> slice | list[int]:
    """A view-making slice where the heads are contiguous (they are, once folded), else the list itself."""
    contiguous = heads[-1] - heads[0] + 1 == len(heads)
    return slice(heads[0], heads[-1] + 1) if contiguous else heads


def _run(
    q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, pattern: HeadPattern, window: tuple[int, int, int]
) -> Tensor:
    if pattern is HeadPattern.GLOBAL:
        return global_attention(q, k, v, grid)
    if pattern is HeadPattern.INTRA_FRAME:
        return intra_frame_attention(q, k, v, grid)
    return window_attention(q, k, v, grid, window)

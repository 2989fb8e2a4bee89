"""Routed attention: each head runs the operation that the routing gives it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..routing.spec import HeadPattern
from .backends import SDPA, Backend
from .grid import TokenGrid


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: TokenGrid,
    patterns: tuple[HeadPattern, ...],
    window: tuple[int, int, int],
    backend: Backend = SDPA,
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
    order = tuple(n for pattern in HeadPattern for n, p in enumerate(patterns) if p is pattern)
    if order != tuple(range(len(order))):  # heads of one pattern lie together once the weights are folded
        grouped = tuple(patterns[n] for n in order)
        back = tuple(order.index(n) for n in range(len(order)))
        q, k, v = (x.index_select(2, _index(order, x.device)) for x in (q, k, v))
        return routed_attention(q, k, v, grid, grouped, window, backend).index_select(2, _index(back, q.device))
    parts = []
    start = 0
    for pattern in HeadPattern:
        stop = start + patterns.count(pattern)
        if stop > start:
            heads = (..., slice(start, stop), slice(None))
            parts.append(_run(q[heads], k[heads], v[heads], grid, pattern, window, backend))
        start = stop
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


@lru_cache(maxsize=256)
def _index(heads: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(heads, device=device)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: TokenGrid,
    pattern: HeadPattern,
    window: tuple[int, int, int],
    backend: Backend,
) -> Tensor:
    if pattern is HeadPattern.GLOBAL:
        return backend.everywhere(q, k, v, grid)
    if pattern is HeadPattern.INTRA_FRAME:
        return backend.intra_frame(q, k, v, grid)
    return backend.window(q, k, v, grid, window)

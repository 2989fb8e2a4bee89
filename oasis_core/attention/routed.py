"""Routed attention: each head runs the operation that the routing gives it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..routing.extent import Extent
from ..routing.spec import Pattern, extent_of, grouped_order, kinds_of
from .backends import SDPA, Backend
from .grid import TokenGrid


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: TokenGrid,
    patterns: tuple[Pattern, ...],
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
    order = grouped_order(patterns)
    if order != tuple(range(len(order))):  # heads of one pattern lie together once the weights are folded
        grouped = tuple(patterns[n] for n in order)
        back = tuple(order.index(n) for n in range(len(order)))
        q, k, v = (x.index_select(2, _index(order, x.device)) for x in (q, k, v))
        return routed_attention(q, k, v, grid, grouped, window, backend).index_select(2, _index(back, q.device))
    parts = []
    start = 0
    for kind in kinds_of(patterns):
        stop = start + patterns.count(kind)
        heads = (..., slice(start, stop), slice(None))
        parts.append(_run(q[heads], k[heads], v[heads], grid, extent_of(kind, window), backend))
        start = stop
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


@lru_cache(maxsize=256)
def _index(heads: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(heads, device=device)


def _run(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, extent: Extent, backend: Backend) -> Tensor:
    """The operation that the extent is; those of the paper's patterns are each backend's own."""
    if extent == Extent(None, None, None):
        return backend.everywhere(q, k, v, grid)
    if extent == Extent(1, None, None):
        return backend.intra_frame(q, k, v, grid)
    if extent.h is None and extent.w is None:
        return _near_frames(q, k, v, grid, extent, backend)
    t, h, w = (2 * s - 1 if e is None else e for e, s in zip(extent.axes, (grid.t, grid.h, grid.w), strict=True))
    return backend.window(q, k, v, grid, (t, h, w))


def _near_frames(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, extent: Extent, backend: Backend) -> Tensor:
    """Whole frames near in time: in raster order the keys of a frame's queries are one slice, so nothing is masked."""
    reach, size = extent.reach((grid.t, grid.h, grid.w))[0], grid.frame
    frames = []
    for t in range(grid.t):
        seen = slice(max(0, t - reach) * size, min(grid.t, t + reach + 1) * size)
        frames.append(backend.everywhere(q[:, t * size : (t + 1) * size], k[:, seen], v[:, seen], grid))
    return torch.cat(frames, dim=1)

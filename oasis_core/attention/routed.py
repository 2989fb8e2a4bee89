"""Routed attention: each head runs the operation that the routing gives it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..routing.extent import Extent
from ..routing.spec import Pattern, extent_of, grouped_order, kinds_of
from ..transfer import sent
from .backend import Backend
from .backends import SDPA
from .grid import TokenGrid
from .problem import EVERYTHING, OWN_FRAME, Problem


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
        ValueError: a shape that does not fit the grid or the patterns, or a backend that was asked for and cannot run it.
    """
    if q.shape[1] != grid.length or q.shape[2] != len(patterns):
        raise ValueError(f"q is {tuple(q.shape)}; expected (B, {grid.length}, {len(patterns)}, D) for grid {grid}")
    order = grouped_order(patterns)
    if order != tuple(range(len(order))):  # heads of one pattern lie together once the weights are folded
        grouped = tuple(patterns[n] for n in order)
        back = tuple(order.index(n) for n in range(len(order)))
        q, k, v = (x.index_select(2, _index(order, x.device)) for x in (q, k, v))
        return routed_attention(q, k, v, grid, grouped, window, backend).index_select(2, _index(back, q.device))
    kinds = kinds_of(patterns)
    if len(kinds) == 1:
        return _run(q, k, v, grid, extent_of(kinds[0], window), backend, None)
    # Each kind writes its heads where they belong; a backward pass would rather have them joined.
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    out = None if trained else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    parts, start = [], 0
    for kind in kinds:
        stop = start + patterns.count(kind)
        heads = (slice(None), slice(None), slice(start, stop))
        place = None if out is None else out[heads]
        parts.append(_run(q[heads], k[heads], v[heads], grid, extent_of(kind, window), backend, place))
        start = stop
    return torch.cat(parts, dim=2) if out is None else out


@lru_cache(maxsize=256)
def _index(heads: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return sent(torch.tensor(heads), device)


def _run(
    q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, extent: Extent, backend: Backend, out: Tensor | None
) -> Tensor:
    """The heads of one kind, into ``out`` where there is one."""
    if extent.h is None and extent.w is None and extent not in (EVERYTHING, OWN_FRAME):
        return _near_frames(q, k, v, grid, extent, backend, out)
    return backend.run(Problem.of(q, k, v, grid, extent), q, k, v, out)


def _near_frames(
    q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, extent: Extent, backend: Backend, out: Tensor | None
) -> Tensor:
    """Whole frames near in time: in raster order the keys of a frame's queries are one slice, so nothing is masked."""
    reach, size = extent.reach((grid.t, grid.h, grid.w))[0], grid.frame
    problem, frames = Problem.of(q, k, v, grid, EVERYTHING), []
    for t in range(grid.t):
        own = slice(t * size, (t + 1) * size)
        seen = slice(max(0, t - reach) * size, min(grid.t, t + reach + 1) * size)
        place = None if out is None else out[:, own]
        frames.append(backend.run(problem, q[:, own], k[:, seen], v[:, seen], place))
    return torch.cat(frames, dim=1) if out is None else out

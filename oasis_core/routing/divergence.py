"""What localising a head would lose: KL(local || global) per query, from log-sum-exps alone.

Localised attention is global attention restricted to a set S and renormalised, so
KL(local || global) = -log(mass of global attention in S) = lse_global - lse_local. No L x L matrix is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attention import TokenGrid
from .extent import Extent

SCORES = {"cpu": 2**20}
"""Scores held at a time by type of device: 4 MiB in fp32 stay in a CPU's cache."""
SCORES_ELSE = 2**24
"""On other devices: 64 MiB, little beside a forward pass."""


def localisation_kl(q: Tensor, k: Tensor, grid: TokenGrid, extents: Sequence[Extent], queries: Tensor) -> Tensor:
    """KL(local || global) ``(P, B, S, N)`` in nats, fp32 (fp64 for fp64), at least 0 but for rounding.

    Args:
        q, k: ``(B, L, N, D)`` as the attention sees them.
        extents: P candidates.
        queries: S indices into L, on the device of q.
    """
    b, length, n, d = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.empty(len(extents), b, len(queries), n, dtype=dtype, device=q.device)
    budget = SCORES.get(q.device.type, SCORES_ELSE)
    for first in range(0, len(queries), max(1, budget // length)):
        part = slice(first, first + max(1, budget // length))
        boxes = [box(grid, extent, queries[part]) for extent in extents]
        heads = max(1, budget // (length * len(queries[part])))
        for i in range(b):
            for start in range(0, n, heads):
                some = slice(start, start + heads)
                query = q[i, queries[part], some].to(dtype).transpose(0, 1) * d**-0.5  # (heads, s, D)
                scores = query @ k[i, :, some].to(dtype).permute(1, 2, 0)  # (heads, s, L)
                whole = scores.logsumexp(-1)
                for p, (index, seen) in enumerate(boxes):
                    local = scores.gather(-1, index.expand(len(scores), -1, -1))
                    lse = local.masked_fill_(~seen, float("-inf")).logsumexp(-1)
                    out[p, i, part, some] = (whole - lse).transpose(0, 1)
    return out


def box(grid: TokenGrid, extent: Extent, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the keys near each query and whether it sees them, both ``(S, K)``; K is the same for all queries."""
    places = queries // grid.frame, queries // grid.w % grid.h, queries % grid.w
    sizes = (grid.t, grid.h, grid.w)
    index, seen = (
        queries.new_zeros(len(queries), 1),
        torch.ones(len(queries), 1, dtype=torch.bool, device=queries.device),
    )
    for place, size, reach in zip(places, sizes, extent.reach(sizes), strict=True):
        count = min(size, 2 * reach + 1)
        start = (place - reach).clamp(0, size - count)
        axis = start[:, None] + torch.arange(count, device=queries.device)
        near = (axis - place[:, None]).abs() <= reach
        index = (index[:, :, None] * size + axis[:, None]).flatten(1)
        seen = (seen[:, :, None] & near[:, None]).flatten(1)
    return index, seen

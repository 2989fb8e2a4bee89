"""What localising a head would lose: KL(local || global) per query, from log-sum-exps alone.

Localised attention is global attention restricted to a set S and renormalised, so
KL(local || global) = -log(mass of global attention in S) = lse_global - lse_local. No L x L matrix is stored.

All candidates share one matrix of scores, reduced frame by frame: the log-sum-exp of each whole frame, and of the part of it
that a candidate sees. What remains are a few numbers for each query and frame; each candidate takes the frames that it sees.
Where a kernel gives log-sum-exps (``kernel_lse``), there is no such matrix, and what a candidate sees of frames is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..attention import TokenGrid
from . import kernel_lse
from .extent import Extent

SCORES = {"cpu": 2**18}
"""Scores held at a time by type of device: 1 MiB in fp32 stays in a core's cache (4 MiB took up to twice as long)."""
SCORES_ELSE = 2**24
"""On other devices: 64 MiB, little beside a forward pass."""


class Localisation:
    """Candidates and sampled queries of one grid: what does not change from layer to layer is made once."""

    def __init__(self, grid: TokenGrid, extents: Sequence[Extent], queries: Tensor) -> None:
        """``queries``: S indices into the grid's L tokens, on the device that q and k will be on."""
        self._grid, self._extents, self._queries = grid, tuple(extents), queries
        sizes, one_frame = (grid.t, grid.h, grid.w), TokenGrid(1, grid.h, grid.w)
        frame, place = queries // grid.frame, queries % grid.frame
        distance = (torch.arange(grid.t, device=queries.device) - frame[:, None]).abs()  # (S, t)
        reaches = [e.reach(sizes) for e in extents]
        self._parts: list[tuple[Tensor, Tensor]] = []
        """Of a frame: indices ``(S, K)`` of the tokens that a candidate sees, and whether it does not see them."""
        which, known = [0], dict[tuple[int, int], int]()
        everything = (grid.h - 1, grid.w - 1)
        for extent, (_, h, w) in zip(extents, reaches, strict=True):
            if (h, w) != everything and (h, w) not in known:
                index, seen = box(one_frame, Extent(1, extent.h, extent.w), place)
                self._parts.append((index, ~seen))
                known[h, w] = len(self._parts)
            which.append(known.get((h, w), 0))
        self._whole = [i for i, part in enumerate(which) if part == 0]
        """Those of global attention (0) and the candidates (from 1) that see whole frames."""
        self._which = torch.tensor(which, device=queries.device)
        """Of global attention and each candidate: 0, all of a frame, or 1 + its part."""
        beyond = [distance > t for t in (grid.t, *(t for t, _, _ in reaches))]
        self._beyond = torch.stack(beyond)[:, None, None]
        """Likewise the frames ``(1 + P, 1, 1, S, t)`` that it does not see."""
        self._beyond_whole = torch.stack([beyond[i] for i in self._whole])[:, None]

    def kl(self, q: Tensor, k: Tensor) -> Tensor:
        """KL(local || global) ``(P, B, S, N)`` in nats, fp32 (fp64 for fp64), at least 0 but for rounding.

        q, k: ``(B, L, N, D)`` as the attention sees them.
        """
        every = self._by_scores(q, k) if kernel_lse.missing(q) else self._by_kernel(q, k)
        return (every[0] - every[1:]).transpose(2, 3)

    @cached_property
    def _boxes(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Of each candidate (from 1) that sees parts of frames: the keys ``(S, K)`` near each query, and whether it does not
        see them."""
        own = [i for i in range(1, 1 + len(self._extents)) if i not in self._whole]
        boxes = {i: box(self._grid, self._extents[i - 1], self._queries) for i in own}
        return {i: (index, ~seen) for i, (index, seen) in boxes.items()}

    def _by_kernel(self, q: Tensor, k: Tensor) -> Tensor:
        """Log-sum-exps ``(1 + P, B, N, S)`` of global attention and of each candidate."""
        return torch.stack([self._of_kernel(*both) for both in zip(q[:, self._queries], k, strict=True)], 1)

    def _of_kernel(self, q: Tensor, k: Tensor) -> Tensor:
        """``(1 + P, N, S)`` of the sampled queries ``(S, N, D)`` and all keys ``(L, N, D)``; nothing in it waits."""
        frames = kernel_lse.lse_by_frame(q, k, self._grid.t)  # (N, S, t)
        whole = frames.masked_fill(self._beyond_whole, float("-inf")).logsumexp(-1).unbind()
        found = dict(zip(self._whole, whole, strict=True))
        for i, (index, unseen) in self._boxes.items():
            found[i] = kernel_lse.lse_of_gathered(q, k, index, unseen)
        return torch.stack([found[i] for i in range(len(found))])

    def _by_scores(self, q: Tensor, k: Tensor) -> Tensor:
        """The same of a matrix of scores, some at a time."""
        b, _, n, _ = q.shape
        grid, count = self._grid, len(self._queries)
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        # For each query and frame: all of the frame, then each part.
        lse = torch.empty(1 + len(self._parts), b, n, count, grid.t, dtype=dtype, device=q.device)
        budget = SCORES.get(q.device.type, SCORES_ELSE)
        for some, heads, frames in _pieces(count, n, grid, budget):
            seen = slice(frames.start * grid.frame, frames.stop * grid.frame)
            parts = [(index[some], unseen[some]) for index, unseen in self._parts]
            for i in range(b):
                scores = _scores(q[i, self._queries[some], heads], k[i, seen, heads], dtype)  # (n, s, f * frame)
                scores = scores.unflatten(-1, (-1, grid.frame))
                lse[0, i, heads, some, frames] = _logsumexp(scores)
                for p, part in enumerate(parts, 1):
                    index, unseen = (x[None, :, None] for x in part)
                    near = scores.gather(-1, index.expand(len(scores), -1, scores.shape[2], -1))
                    lse[p, i, heads, some, frames] = _logsumexp(near.masked_fill_(unseen, float("-inf")))
        return _logsumexp(lse[self._which].masked_fill_(self._beyond, float("-inf")))


def localisation_kl(q: Tensor, k: Tensor, grid: TokenGrid, extents: Sequence[Extent], queries: Tensor) -> Tensor:
    """``Localisation.kl`` of one layer: ``(P, B, S, N)`` in nats."""
    return Localisation(grid, extents, queries).kl(q, k)


def _pieces(queries: int, heads: int, grid: TokenGrid, most: int) -> Iterator[tuple[slice, slice, slice]]:
    """Queries, heads and frames whose scores are held together: at most ``most``, but at least one query with one frame.

    All queries together if possible (a head's keys are then read once), then several frames, then heads.
    """
    some = min(queries, max(1, most // grid.frame))
    frames = min(grid.t, max(1, most // (grid.frame * some)))
    together = min(heads, max(1, most // (grid.frame * some * frames)))
    for s in range(0, queries, some):
        for n in range(0, heads, together):
            for t in range(0, grid.t, frames):
                yield (
                    slice(s, min(queries, s + some)),
                    slice(n, min(heads, n + together)),
                    slice(t, min(grid.t, t + frames)),
                )


def _scores(q: Tensor, k: Tensor, dtype: torch.dtype) -> Tensor:
    """q k / sqrt(D) ``(N, S, K)`` in ``dtype``, of q ``(S, N, D)`` and k ``(K, N, D)``."""
    scale = q.shape[-1] ** -0.5
    q, k = q.transpose(0, 1), k.transpose(0, 1)
    if q.dtype in kernel_lse.HALVES and _sums_halves_in_fp32(q.device):
        return torch.bmm(q, k.mT, out_dtype=dtype).mul_(scale)
    return torch.bmm(q.to(dtype) * scale, k.to(dtype).contiguous().mT)  # a copy, but the product takes half the time


def _logsumexp(scores: Tensor) -> Tensor:
    """Over the last axis, not all of it -inf.

    The largest probability is 1 / sum(exp(x - max)), and softmax is one pass where torch's logsumexp is several: less than
    half its time on a CPU.
    """
    return scores.amax(-1) - scores.softmax(-1).amax(-1).log()


def _sums_halves_in_fp32(device: torch.device) -> bool:
    """Whether ``torch.bmm`` gives fp32 for fp16 and bf16 there: CUDA since torch 2.8. Nothing is rounded, nothing copied."""
    return device.type == "cuda" and torch.version.hip is None and "dtype" in torch.ops.aten.bmm.overloads()


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

"""What localising a head would lose: KL(local || global) per query, from log-sum-exps alone.

Localised attention is global attention restricted to a set S and renormalised, so
KL(local || global) = -log(mass of global attention in S) = lse_global - lse_local. No L x L matrix is stored.

All candidates share one matrix of scores, reduced frame by frame: the log-sum-exp of each whole frame, and of the part of it
that a candidate sees. What remains are a few numbers for each query and frame; each candidate takes the frames that it sees.
Where Triton runs, a kernel gives these numbers (``triton_lse``), and there is no such matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ..attention import TokenGrid
from ..attention.triton_here import needs_triton
from ..transfer import sent
from .extent import Extent

SCORES = {"cpu": 2**18}
"""Scores held at a time by type of device: 1 MiB in fp32 stays in a core's cache (4 MiB took up to twice as long)."""
SCORES_ELSE = 2**24
"""On other devices: 64 MiB, little beside a forward pass."""

HALVES = (torch.float16, torch.bfloat16)
WIDEST = 256
"""Channels of a head that the kernel takes: what fits the shared memory of consumers' GPUs."""


@lru_cache(maxsize=16)
def kernel_missing(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why ``triton_lse`` cannot take such heads there; None where it can."""
    if why := needs_triton(device):
        return why
    if dtype not in (torch.float32, *HALVES):
        return f"it computes in fp32, bf16 or fp16, not in {dtype}"
    return None if head_dim <= WIDEST else f"heads of {head_dim} channels; it takes up to {WIDEST}"


class Localisation:
    """Candidates and sampled queries of one grid: what does not change from layer to layer is made once."""

    def __init__(self, grid: TokenGrid, extents: Sequence[Extent], queries: Tensor) -> None:
        """``queries``: S indices into the grid's L tokens, on the device that q and k will be on."""
        self._grid, self._queries, device = grid, queries, queries.device
        everything = (grid.h - 1, grid.w - 1)
        reaches = [e.reach((grid.t, grid.h, grid.w)) for e in extents]
        parts = tuple(dict.fromkeys([everything, *((h, w) for _, h, w in reaches)]))
        self._parts = parts
        """Rows and columns that are seen to each side in a frame, each pair once; first all of them."""
        which = [0, *(parts.index((h, w)) for _, h, w in reaches)]
        self._which = sent(torch.tensor(which), device)
        """Of global attention and each candidate: its part."""
        self._reaches = sent(torch.tensor(parts, dtype=torch.int32), device)
        distance = (torch.arange(grid.t, device=device) - (queries // grid.frame)[:, None]).abs()  # (S, t)
        beyond = torch.stack([distance > t for t in (grid.t, *(t for t, _, _ in reaches))])
        self._beyond = beyond[:, None, None, ..., None]
        """Likewise the frames ``(1 + P, 1, 1, S, t, 1)`` that it does not see."""

    def kl(self, q: Tensor, k: Tensor) -> Tensor:
        """KL(local || global) ``(P, B, S, N)`` in nats, fp32 (fp64 for fp64), at least 0 but for rounding. No backward pass.

        q, k: ``(B, L, N, D)`` as the attention sees them.
        """
        lse = self._by_scores(q, k) if kernel_missing(q.device, q.dtype, q.shape[-1]) else self._by_kernel(q, k)
        every = _logsumexp(lse[self._which].masked_fill_(self._beyond, float("-inf")).flatten(-2))  # (1 + P, B, N, S)
        return (every[0] - every[1:]).transpose(2, 3)

    def _by_kernel(self, q: Tensor, k: Tensor) -> Tensor:
        """Log-sum-exps ``(parts, B, N, S, t, C)`` of each query and what it sees of each frame's C pieces; waits for nothing."""
        from .triton_lse import lse_of_parts  # Triton may be missing

        return lse_of_parts(q, k, self._grid, self._queries, self._reaches)

    @cached_property
    def _boxes(self) -> list[tuple[Tensor, Tensor]]:
        """Of each part but the whole: of a frame, the indices ``(S, K)`` of what each query sees, and what of it it does not."""
        one_frame, place = TokenGrid(1, self._grid.h, self._grid.w), self._queries % self._grid.frame
        boxes = (box(one_frame, Extent(1, 2 * h + 1, 2 * w + 1), place) for h, w in self._parts[1:])
        return [(index, ~seen) for index, seen in boxes]

    def _by_scores(self, q: Tensor, k: Tensor) -> Tensor:
        """The same of a matrix of scores, some at a time; a frame is one piece."""
        b, _, n, _ = q.shape
        grid, count = self._grid, len(self._queries)
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        lse = torch.empty(len(self._parts), b, n, count, grid.t, dtype=dtype, device=q.device)
        budget = SCORES.get(q.device.type, SCORES_ELSE)
        for some, heads, frames in _pieces(count, n, grid, budget):
            seen = slice(frames.start * grid.frame, frames.stop * grid.frame)
            boxes = [(index[some], unseen[some]) for index, unseen in self._boxes]
            for i in range(b):
                scores = _scores(q[i, self._queries[some], heads], k[i, seen, heads], dtype)  # (n, s, f * frame)
                scores = scores.unflatten(-1, (-1, grid.frame))
                lse[0, i, heads, some, frames] = _logsumexp(scores)
                for p, both in enumerate(boxes, 1):
                    index, unseen = (x[None, :, None] for x in both)
                    near = scores.gather(-1, index.expand(len(scores), -1, scores.shape[2], -1))
                    lse[p, i, heads, some, frames] = _logsumexp(near.masked_fill_(unseen, float("-inf")))
        return lse[..., None]


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
    if q.dtype in HALVES and _sums_halves_in_fp32(q.device):
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

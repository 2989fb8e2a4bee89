"""Find each head's pattern: how much of its global attention would localising lose? (paper section 3.2)

Localised attention is global attention restricted to a set S and renormalised, so per query
KL(local || global) = lse_global - lse_local. Queries are sampled; no L x L matrix is stored.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..attention import TokenGrid
from ..model import OasisModel
from .spec import DEFAULT_WINDOW, HeadPattern, RoutingSpec


def localisation_kl(
    q: Tensor, k: Tensor, grid: TokenGrid, window: tuple[int, int, int], queries: Tensor
) -> dict[HeadPattern, Tensor]:
    """Mean KL(local || global) of every head over the sampled queries: ``(N,)`` per local pattern, in nats, fp32.

    Args:
        q, k: ``(B, L, N, D)`` as the attention sees them.
        queries: indices into L.
    """
    scores = torch.einsum("bqnd,blnd->bnql", q[:, queries].float(), k.float()) * q.shape[-1] ** -0.5
    keys = torch.arange(grid.length, device=q.device)
    (qt, qh, qw), (kt, kh, kw) = (
        (index // grid.frame, index // grid.w % grid.h, index % grid.w) for index in (queries, keys)
    )
    same_frame = qt[:, None] == kt[None]
    near = [(a[:, None] - b[None]).abs() <= e // 2 for a, b, e in zip((qt, qh, qw), (kt, kh, kw), window, strict=True)]
    masks = {HeadPattern.INTRA_FRAME: same_frame, HeadPattern.WINDOW: near[0] & near[1] & near[2]}
    lse_global = scores.logsumexp(-1)
    return {
        pattern: (lse_global - scores.masked_fill(~mask, float("-inf")).logsumexp(-1)).mean((0, 2))
        for pattern, mask in masks.items()
    }


@torch.no_grad()
def measure(
    model: OasisModel,
    clips: Iterable[Tensor],
    window: tuple[int, int, int] = DEFAULT_WINDOW,
    queries: int = 256,
    seed: int = 0,
) -> dict[HeadPattern, Tensor]:
    """Mean KL of every layer and head over ``clips``, run dense: ``(depth, heads)`` per local pattern, on the CPU.

    Args:
        model: one that was trained dense; a head trained locally has no trained global attention to compare with.
        clips: low-quality pixels ``(B, 3, T, H, W)`` on the target grid, in [-1, 1].
        queries: sampled queries per clip and layer.
    """
    config = model.config
    dense = RoutingSpec.uniform(config.depth, config.heads, HeadPattern.GLOBAL, window)
    sums = {p: torch.zeros(config.depth, config.heads) for p in (HeadPattern.INTRA_FRAME, HeadPattern.WINDOW)}
    generator = torch.Generator().manual_seed(seed)
    count = 0

    def observe(layer: int, q: Tensor, k: Tensor, grid: TokenGrid) -> None:
        chosen = torch.randperm(grid.length, generator=generator)[:queries].to(q.device)
        for pattern, kl in localisation_kl(q, k, grid, window, chosen).items():
            sums[pattern][layer] += kl.cpu()

    for clip in clips:
        model.dit(model.encode(clip), dense, observe=observe)
        count += 1
    if not count:
        raise ValueError("calibration got no clips; give at least one")
    return {pattern: total / count for pattern, total in sums.items()}


def assign(
    kl: dict[HeadPattern, Tensor],
    global_share: float,
    intra_frame_share: float,
    window: tuple[int, int, int] = DEFAULT_WINDOW,
) -> RoutingSpec:
    """Give the dear patterns to the heads that lose most without them.

    The heads with the largest min(KL intra-frame, KL window) stay global, up to ``global_share`` of all; of the rest,
    those that gain most from intra-frame over window become intra-frame, up to ``intra_frame_share``; the others
    window.
    """
    intra, near = kl[HeadPattern.INTRA_FRAME].flatten(), kl[HeadPattern.WINDOW].flatten()
    heads = intra.numel()
    pattern = [HeadPattern.WINDOW] * heads
    by_loss = torch.minimum(intra, near).argsort(descending=True).tolist()
    chosen = by_loss[: round(global_share * heads)]
    for i in chosen:
        pattern[i] = HeadPattern.GLOBAL
    rest = by_loss[len(chosen) :]
    rest.sort(key=lambda i: float(near[i] - intra[i]), reverse=True)
    for i in rest[: round(intra_frame_share * heads)]:
        if near[i] > intra[i]:
            pattern[i] = HeadPattern.INTRA_FRAME
    width = kl[HeadPattern.WINDOW].shape[1]
    return RoutingSpec(tuple(tuple(pattern[i : i + width]) for i in range(0, heads, width)), window)

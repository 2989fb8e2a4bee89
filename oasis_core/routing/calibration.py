"""Find each head's pattern: how much of its global attention would localising lose? (paper section 3.2)

Runs a dense model on clips and averages ``divergence.localisation_kl`` over sampled queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import TokenGrid
from ..model import OasisModel
from ..transfer import sent
from .divergence import localisation_kl
from .extent import Extent
from .spec import DEFAULT_WINDOW, HeadPattern, Pattern, RoutingSpec, extent_of, named

CANDIDATES = (HeadPattern.INTRA_FRAME, HeadPattern.WINDOW)
"""The paper's local patterns."""
CONFIDENCE = 1.96
"""Standard errors to each side of a mean that hold the true one in 95 of 100 samples."""
QUERIES = 256
"""Queries sampled for each clip and layer where nothing is said: a mean's interval is then about an eighth of the spread
between queries."""


@dataclass(frozen=True)
class Divergences:
    """KL(local || global) of every candidate, layer and head, in nats; on the CPU, fp64."""

    patterns: tuple[Pattern, ...]
    """The P candidates; global is not among them, its KL being 0."""
    window: tuple[int, int, int]
    mean: Tensor
    """``(P, depth, heads)``: mean over the clips of each clip's mean over queries."""
    half_width: Tensor
    """``(P, depth, heads)``: of the 95 % confidence interval of ``mean``. It is about the sampling of queries in these
    clips (0 where every query was taken), not about other clips."""
    per_clip: Tensor
    """``(clips, P, depth, heads)``."""
    grids: tuple[TokenGrid, ...]
    """Of each clip."""

    def costs(self) -> tuple[list[int], int]:
        """Pairs of query and key on all clips: of each candidate, and of global attention. The arithmetic of one head."""
        extents = [extent_of(p, self.window) for p in self.patterns]
        sizes = [(g.t, g.h, g.w) for g in self.grids]
        return [sum(e.pairs(s) for s in sizes) for e in extents], sum(g.length**2 for g in self.grids)


def check_dense(routing: RoutingSpec, name: str) -> None:
    """Raises ValueError, one line, where heads of the model were trained on a part of the tokens.

    ``routing`` is the checkpoint's own.
    """
    if (share := routing.share(HeadPattern.GLOBAL)) < 1:
        raise ValueError(
            f"model {name} cannot be calibrated: only {share:.0%} of its heads were trained with global attention, and a "
            "head trained locally has no trained global attention to compare with; give the dense one that "
            "training made on its way"
        )


def candidate_patterns(patterns: Iterable[Pattern], window: tuple[int, int, int]) -> tuple[Pattern, ...]:
    """Each once, presets by their name; global, which is always a choice, is left out.

    Raises:
        ValueError: nothing but global.
    """
    found = tuple(dict.fromkeys(named(extent_of(p, window), window) for p in patterns))
    local = tuple(p for p in found if p is not HeadPattern.GLOBAL)
    if not local:
        raise ValueError("calibration got no local pattern; give at least one, such as window or 3xallxall")
    return local


class Sampler:
    """Draws the same queries for the same seed, layer after layer."""

    def __init__(self, queries: int, seed: int) -> None:
        """``queries``: how many of each grid, 0 for all. Raises ValueError below 0."""
        if queries < 0:
            raise ValueError(f"queries is {queries}; it must be 0 (all) or more")
        self.queries = queries
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, grid: TokenGrid, device: torch.device) -> Tensor:
        """Indices into the grid's tokens, none twice; waits for nothing."""
        if not 0 < self.queries < grid.length:
            return torch.arange(grid.length, device=device)
        return sent(torch.randperm(grid.length, generator=self._generator)[: self.queries], device)


@torch.no_grad()
def measure(
    model: OasisModel,
    clips: Iterable[Tensor],
    window: tuple[int, int, int] = DEFAULT_WINDOW,
    queries: int = QUERIES,
    seed: int = 0,
    patterns: Sequence[Pattern] = CANDIDATES,
    fidelity: float = 0.0,
    poll: Callable[[], None] | None = None,
) -> Divergences:
    """Mean KL of every candidate, layer and head over ``clips``, run dense.

    Args:
        model: one that was trained dense (``check_dense``).
        clips: low-quality pixels ``(B, 3, T, H, W)`` on the target grid, in [-1, 1]; each is one chunk.
        queries: sampled queries per clip and layer; 0: all.
        patterns: candidates; global is always one.
        fidelity: what the model is asked for meanwhile.
        poll: called before every block; what it raises passes through.

    Raises:
        ValueError: no clips, no local candidate, or attention scores that are not finite.
    """
    config = model.config
    candidates = candidate_patterns(patterns, window)
    extents: list[Extent] = [extent_of(p, window) for p in candidates]
    dense = RoutingSpec.uniform(config.depth, config.heads, HeadPattern.GLOBAL, window)
    sampler = Sampler(queries, seed)
    means, variances, grids = [], [], []
    for clip in clips:
        by_layer: list[tuple[Tensor, Tensor]] = []

        def observe(
            layer: int, q: Tensor, k: Tensor, grid: TokenGrid, found: list[tuple[Tensor, Tensor]] = by_layer
        ) -> None:
            chosen = sampler.draw(grid, q.device)
            kl = localisation_kl(q, k, grid, extents, chosen).double().flatten(1, 2)  # (P, B * S, N)
            left = 1 - len(chosen) / grid.length  # of a finite population
            mean = kl.mean(1)
            found.append(
                (mean, kl.var(1) * left / kl.shape[1] if left else torch.zeros_like(mean))
            )  # waits for nothing

        z = model.encode(clip.to(model.project.weight))
        model.dit(z, dense, poll, observe, timestep=model.dit.timestep(fidelity, z.device))
        mean, variance = (torch.stack(x, 1).cpu() for x in zip(*by_layer, strict=True))  # (P, depth, heads)
        means.append(mean)
        variances.append(variance)
        grids.append(model.dit.grid(z))
    if not means:
        raise ValueError("calibration got no clips; give at least one")
    per_clip = torch.stack(means)
    if not per_clip.isfinite().all():
        raise ValueError("calibration met attention scores that are not finite; use a dtype of more range (fp32, bf16)")
    half_width = CONFIDENCE * torch.stack(variances).nan_to_num().sum(0).sqrt() / len(means)
    return Divergences(candidates, window, per_clip.mean(0), half_width, per_clip, tuple(grids))

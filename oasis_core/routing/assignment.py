"""From what localising loses to which head gets which pattern: by shares, by threshold, or by a compute budget."""

from __future__ import annotations

import math

import numpy as np
import torch

from .budget import Choice, Costs, Losses, cheapest_within
from .calibration import Divergences
from .spec import HeadPattern, Pattern, RoutingSpec


def assign_by_threshold(measured: Divergences, threshold: float) -> RoutingSpec:
    """Each head gets the cheapest pattern whose mean KL is at most ``threshold`` nats; global where none is.

    A KL of 0.5 means that the pattern holds 61 % of the global attention's mass (geometric mean over queries).

    Raises:
        ValueError: a threshold that is not 0 or more.
    """
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"KL threshold is {threshold}; it must be 0 or more nats, such as 0.5")
    loss, cost, _ = _options(measured)
    return _spec(measured, cheapest_under(loss, cost, threshold))


def assign_by_budget(measured: Divergences, share: float) -> RoutingSpec:
    """The least sum of KL with at most ``share`` (0 to 1) of the dense attention's arithmetic; exact.

    Raises:
        ValueError: a share outside 0 to 1, or under what the cheapest pattern costs.
    """
    if not 0 < share <= 1:
        raise ValueError(f"attention budget is {share}; it must be above 0 and at most 1 (dense)")
    loss, cost, dense = _options(measured)
    if (least := float(cost.min()) / dense) > share:
        raise ValueError(
            f"attention budget is {share:g} of dense; with these patterns it must be at least {least:.4f} (all heads at the "
            "cheapest one)"
        )
    budget = max(int(share * dense * len(loss)), int(cost.min()) * len(loss))  # rounding does not make it too small
    return _spec(measured, cheapest_within(loss, cost, budget))


def cheapest_under(loss: Losses, cost: Costs, threshold: float) -> Choice:
    """Of each row of ``loss`` (H, P) the cheapest option at most ``threshold``, of equally cheap ones the least loss.

    One option's loss must be 0.
    """
    order = np.lexsort((np.arange(len(cost)), cost))
    ranked = np.where(loss[:, order] <= threshold, cost[order][None], np.iinfo(np.int64).max)
    ties = ranked == ranked.min(1, keepdims=True)
    chosen: Choice = order[np.where(ties, loss[:, order], np.inf).argmin(1)]
    return chosen


def _options(measured: Divergences) -> tuple[Losses, Costs, int]:
    """Losses ``(heads in all, 1 + P)``, the first option global, their costs, and the cost of global."""
    local, dense = measured.costs()
    loss = np.concatenate([np.zeros((1, measured.mean[0].numel())), measured.mean.flatten(1).numpy()])
    return np.maximum(loss.T, 0), np.array([dense, *local], np.int64), dense


def _spec(measured: Divergences, choice: Choice) -> RoutingSpec:
    options: tuple[Pattern, ...] = (HeadPattern.GLOBAL, *measured.patterns)
    heads = measured.mean.shape[2]
    return RoutingSpec(tuple(tuple(options[i] for i in row) for row in choice.reshape(-1, heads)), measured.window)


def assign_by_shares(measured: Divergences, global_share: float, intra_frame_share: float) -> RoutingSpec:
    """Give the dear patterns to the heads that lose most without them.

    The heads with the largest min(KL intra-frame, KL window) stay global, up to ``global_share`` of all; of the rest,
    those that gain most from intra-frame over window become intra-frame, up to ``intra_frame_share``; the others
    window. ``measured`` holds these two candidates.
    """
    where = {p: i for i, p in enumerate(measured.patterns)}
    intra, near = (measured.mean[where[p]].flatten() for p in (HeadPattern.INTRA_FRAME, HeadPattern.WINDOW))
    pattern: list[Pattern] = [HeadPattern.WINDOW] * intra.numel()
    by_loss = torch.minimum(intra, near).argsort(descending=True).tolist()
    chosen = by_loss[: round(global_share * len(pattern))]
    for i in chosen:
        pattern[i] = HeadPattern.GLOBAL
    rest = by_loss[len(chosen) :]
    rest.sort(key=lambda i: float(near[i] - intra[i]), reverse=True)
    for i in rest[: round(intra_frame_share * len(pattern))]:
        if near[i] > intra[i]:
            pattern[i] = HeadPattern.INTRA_FRAME
    width = measured.mean.shape[2]
    layers = tuple(tuple(pattern[i : i + width]) for i in range(0, len(pattern), width))
    return RoutingSpec(layers, measured.window)

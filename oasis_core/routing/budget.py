"""The assignment under a compute budget, solved exactly: a multiple-choice knapsack.

Choose one option for each head so that the sum of losses is least and the sum of costs at most the budget. Dynamic
programming over heads, cut down by the Lagrangian bound: with a price on cost, an option's reduced loss says how much
worse any solution with it is than the bound; what is worse than a known solution is left out, which leaves few heads open
(Pisinger 1995, "A minimal algorithm for the multiple-choice knapsack problem").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float64]
Costs = NDArray[np.int64]
Choice = NDArray[np.int64]

HALVINGS = 200
"""Of the price's interval: as far as fp64 goes."""


def cheapest_within(loss: Losses, cost: Costs, budget: int) -> Choice:
    """The option of each head ``(H,)`` with the least sum of losses and a sum of costs of at most ``budget``.

    Args:
        loss: ``(H, P)``, finite.
        cost: ``(P,)`` of each option, whole and at least 0, the same for all heads.

    Raises:
        ValueError: not even the cheapest options fit.
    """
    heads = len(loss)
    if int(cost.min()) * heads > budget:
        raise ValueError(f"budget is {budget}; the cheapest options cost {int(cost.min()) * heads} together")
    price = _price(loss, cost, budget)
    known = _filled_up(loss, cost, budget, _at_price(loss, cost, price))
    value = float(np.take_along_axis(loss, known[:, None], 1).sum())
    priced = loss + price * cost
    reduced = priced - priced.min(1, keepdims=True)
    bound = float(priced.min(1).sum()) - price * budget
    gap = (value - bound) + 1e-9 * (1 + abs(value))  # rounding never leaves out the best
    return _search(loss, cost, budget, reduced, gap, known, value)


def _search(loss: Losses, cost: Costs, budget: int, reduced: Losses, gap: float, known: Choice, value: float) -> Choice:
    """Every solution that could beat ``known``, head after head; of those that cost no less only the best goes on."""
    heads = len(loss)
    spent, lost, over = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    rest = int(cost.min()) * heads
    for head in range(heads):
        rest -= int(cost.min())
        open_options = np.flatnonzero(reduced[head] <= gap)
        parent = np.repeat(np.arange(len(spent)), len(open_options))
        option = np.tile(open_options, len(spent))
        costs, losses = spent[parent] + cost[option], lost[parent] + loss[head, option]
        overs = over[parent] + reduced[head, option]
        keep = np.flatnonzero((costs + rest <= budget) & (overs <= gap))
        keep = keep[np.lexsort((losses[keep], costs[keep]))]
        best = np.minimum.accumulate(losses[keep])
        keep = keep[np.concatenate(([True], losses[keep][1:] < best[:-1]))] if len(keep) else keep
        steps.append((parent[keep], option[keep]))
        spent, lost, over = costs[keep], losses[keep], overs[keep]
    if not len(lost) or lost.min() >= value:
        return known
    at, choice = int(lost.argmin()), np.empty(heads, np.int64)
    for head in reversed(range(heads)):
        parents, taken = steps[head]
        choice[head], at = taken[at], int(parents[at])
    return choice


def _at_price(loss: Losses, cost: Costs, price: float) -> Choice:
    """Each head's best option at that price; of equals the cheapest."""
    order = np.argsort(cost, kind="stable")
    chosen: Choice = order[(loss + price * cost)[:, order].argmin(1)]
    return chosen


def _price(loss: Losses, cost: Costs, budget: int) -> float:
    """The least price (nearly) at which the heads' best options fit the budget."""
    if cost[_at_price(loss, cost, 0.0)].sum() <= budget:
        return 0.0
    steps = np.diff(np.unique(cost))
    low, high = 0.0, 2 * float(loss.max() - loss.min() + 1e-300) / float(steps.min())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if cost[_at_price(loss, cost, middle)].sum() <= budget:
            high = middle
        else:
            low = middle
    return high


def _filled_up(loss: Losses, cost: Costs, budget: int, choice: Choice) -> Choice:
    """The same, with dearer options where they gain most per cost and still fit."""
    choice = choice.copy()
    left = budget - int(cost[choice].sum())
    while True:
        gain = np.take_along_axis(loss, choice[:, None], 1) - loss
        more = cost[None] - cost[choice][:, None]
        worth = np.where((gain > 0) & (more <= left), gain / np.maximum(more, 1), 0)
        head, option = np.unravel_index(int(worth.argmax()), worth.shape)
        if worth[head, option] <= 0:
            return choice
        left -= int(more[head, option])
        choice[head] = option

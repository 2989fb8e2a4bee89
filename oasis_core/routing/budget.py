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

ROUNDING = 1e-13
"""In part, what a price is raised by so that the cheaper of two equally good options is taken."""


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
    """Every solution that could beat ``known``, open head after open head; of those that cost no less only the best goes on.

    Most heads have one option left: theirs is taken at once.
    """
    able = reduced <= gap
    choice: Choice = reduced.argmin(1)
    undecided = np.flatnonzero(able.sum(1) > 1)
    decided = np.delete(np.arange(len(loss)), undecided)
    spent, over = np.array([cost[choice[decided]].sum()], np.int64), np.zeros(1)
    lost = np.array([loss[decided, choice[decided]].sum()])
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    rest = int(cost.min()) * len(undecided)
    for head in undecided:
        rest -= int(cost.min())
        open_options = np.flatnonzero(able[head])
        costs = (spent[:, None] + cost[open_options]).ravel()
        losses = (lost[:, None] + loss[head, open_options]).ravel()
        overs = (over[:, None] + reduced[head, open_options]).ravel()
        keep = np.flatnonzero((costs + rest <= budget) & (overs <= gap))
        keep = keep[np.lexsort((losses[keep], costs[keep]))]
        best = np.minimum.accumulate(losses[keep])
        keep = keep[np.concatenate(([True], losses[keep][1:] < best[:-1]))] if len(keep) else keep
        steps.append((keep // len(open_options), open_options[keep % len(open_options)]))
        spent, lost, over = costs[keep], losses[keep], overs[keep]
    lost = lost[spent <= budget]
    if not len(lost) or lost.min() >= value:
        return known
    at = int(np.flatnonzero(spent <= budget)[lost.argmin()])
    for head, (parents, taken) in zip(undecided[::-1], steps[::-1], strict=True):
        choice[head], at = taken[at], int(parents[at])
    return choice


def _at_price(loss: Losses, cost: Costs, price: float) -> Choice:
    """Each head's best option at that price; of equals the cheapest."""
    order = np.argsort(cost, kind="stable")
    chosen: Choice = order[(loss + price * cost)[:, order].argmin(1)]
    return chosen


def _price(loss: Losses, cost: Costs, budget: int) -> float:
    """The least price (nearly) at which the heads' best options fit the budget.

    What they cost changes only at prices where two options of a head are equally good: of those, the first that does.
    """

    def fits(price: float) -> bool:
        return bool(cost[_at_price(loss, cost, price)].sum() <= budget)

    if fits(0.0):
        return 0.0
    dear, cheap = np.nonzero(cost[:, None] > cost[None])
    saved = cost[dear] - cost[cheap]
    equal = ((loss[:, cheap] - loss[:, dear]) / saved).ravel()
    enough = 2 * float(loss.max() - loss.min() + 1e-300) / float(saved.min())
    prices = np.append(np.sort(equal[equal > 0]) * (1 + ROUNDING), enough)
    low, high = -1, len(prices) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if fits(float(prices[middle])):
            high = middle
        else:
            low = middle
    return float(prices[high])


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

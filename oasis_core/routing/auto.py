"""Routing that is decided while a clip runs: by what its own heads would lose, on the first chunk of each shot.

Layer by layer within the one forward pass: the layer's queries and keys are there, a few of the queries are sampled, each
head gets its pattern, and the layer runs with it. So the first chunk is made with the very routing that the rest of its shot
gets, and no extra pass is needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..attention import TokenGrid
from ..transfer import fetched
from .assignment import cheapest_under
from .budget import Costs, Losses, cheapest_within
from .calibration import CANDIDATES, Sampler, candidate_patterns
from .divergence import Localisation
from .spec import DEFAULT_WINDOW, HeadPattern, Pattern, RoutingSpec, extent_of, parse_pattern, pattern_text

NAME = "auto"
FORMAT = "oasis-routing-auto"
VERSION = 1
EXAMPLES = f"{NAME}, {NAME}:threshold=0.5 (nats a head may lose) or {NAME}:budget=0.35 (attention against dense)"
QUERIES = 64
"""Queries sampled for each layer: a routing found with half as many costs 0.5 % more KL than the best (docs/routing.md)."""


@dataclass(frozen=True)
class AutoRouting:
    """How a routing is decided.

    Raises:
        ValueError: a rule or value that makes no sense, or no local candidate.
    """

    rule: str = "threshold"
    """threshold: each head gets the cheapest pattern that loses at most ``value`` nats; budget: each layer the least loss at
    the share ``value`` of its dense attention's arithmetic, solved exactly (more where even the cheapest pattern costs more,
    as in a shot of one frame)."""
    value: float = 0.5
    window: tuple[int, int, int] = DEFAULT_WINDOW
    patterns: tuple[Pattern, ...] = CANDIDATES
    queries: int = QUERIES
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = {"threshold": "0 or more", "budget": "above 0 and at most 1"}
        if self.rule not in allowed:
            raise ValueError(f"automatic routing's rule is {self.rule!r}; allowed: {', '.join(allowed)}")
        good = self.value >= 0 if self.rule == "threshold" else 0 < self.value <= 1
        if not (math.isfinite(self.value) and good):
            raise ValueError(f"automatic routing's {self.rule} is {self.value}; it must be {allowed[self.rule]}")
        object.__setattr__(self, "patterns", candidate_patterns(self.patterns, self.window))
        Sampler(self.queries, self.seed)

    @classmethod
    def parse(cls, text: str, window: tuple[int, int, int]) -> AutoRouting:
        """Of ``auto``, ``auto:threshold=0.5``, ``auto:budget=0.35``. Raises ValueError, one line."""
        name, _, rest = text.partition(":")
        rule, _, number = rest.partition("=")
        try:
            if name != NAME or (text != NAME and not number):
                raise ValueError
            value = float(number) if number else cls.value
        except ValueError:
            raise ValueError(f"routing is {text!r}; give a file, {EXAMPLES}") from None
        return cls(rule or cls.rule, value, window)

    def to_json(self) -> str:
        """Everything that decisions depend on beside model and clip; ``from_json`` reads it back."""
        patterns = [pattern_text(p) for p in self.patterns]
        facts = [self.rule, self.value, list(self.window), patterns, self.queries, self.seed]
        return json.dumps({"format": FORMAT, "version": VERSION, "decides": facts})

    @classmethod
    def from_json(cls, text: str) -> AutoRouting:
        """Parse what ``to_json`` wrote. Raises ValueError, one line, for anything else."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT or data["version"] != VERSION:
                raise ValueError(f"it is {data['format']!r} of version {data['version']!r}")
            rule, value, window, patterns, queries, seed = data["decides"]
            return cls(rule, value, tuple(window), tuple(parse_pattern(p) for p in patterns), queries, seed)
        except (KeyError, TypeError, ValueError, RecursionError) as e:
            raise ValueError(f"automatic routing cannot be read ({e}); expected what OASIS wrote") from None

    def decided(self, kl: Losses, cost: Costs) -> tuple[Pattern, ...]:
        """The patterns of one layer's heads.

        Args:
            kl: ``(P, N)``, what each head loses with each local pattern, in nats.
            cost: ``(1 + P,)``, what a head costs that is global, or of each local pattern.

        Raises:
            ValueError: one of them is not finite.
        """
        if not np.isfinite(kl).all():
            raise ValueError("automatic routing met attention scores that are not finite; use a dtype of more range")
        loss = np.maximum(np.concatenate([np.zeros((1, kl.shape[1])), kl]).T, 0)
        if self.rule == "threshold":
            choice = cheapest_under(loss, cost, self.value)
        else:
            budget = max(int(self.value * int(cost[0]) * len(loss)), int(cost.min()) * len(loss))
            choice = cheapest_within(loss, cost, budget)
        options = (HeadPattern.GLOBAL, *self.patterns)
        return tuple(options[i] for i in choice)

    def dense(self, depth: int, heads: int) -> RoutingSpec:
        """What the model runs before anything is decided."""
        return RoutingSpec.uniform(depth, heads, HeadPattern.GLOBAL, self.window)


def is_auto(text: str) -> bool:
    """Whether JSON is meant to be ``AutoRouting.to_json``'s."""
    return f'"{FORMAT}"' in text


class Deciding:
    """Decides in one forward pass (``DiT.forward``'s ``decide``)."""

    def __init__(self, auto: AutoRouting) -> None:
        self._auto, self._layers = auto, list[tuple[Pattern, ...]]()

    @torch.no_grad()
    def __call__(self, layer: int, q: Tensor, k: Tensor, grid: TokenGrid) -> Callable[[], tuple[Pattern, ...]]:
        """Begin to decide, waiting for nothing. What is given waits for the device's work so far, and tells the patterns of the
        layer's heads; it raises ValueError for scores that are not finite, or too small a budget."""
        localisation, cost = _of_grid(self._auto, grid, q.device)
        kl = fetched(localisation.kl(q, k).double().mean((1, 2)))  # (P, N)

        def patterns() -> tuple[Pattern, ...]:
            self._layers.append(self._auto.decided(kl().numpy(), cost))
            return self._layers[-1]

        return patterns

    def routing(self) -> RoutingSpec:
        """What was decided, after the pass."""
        return RoutingSpec(tuple(self._layers), self._auto.window)


@lru_cache(maxsize=4)
def _of_grid(auto: AutoRouting, grid: TokenGrid, device: torch.device) -> tuple[Localisation, Costs]:
    """What is the same in each layer of each shot: what is measured (one seed gives the same queries), what patterns cost."""
    extents = [extent_of(p, auto.window) for p in auto.patterns]
    cost = np.array([grid.length**2, *(e.pairs((grid.t, grid.h, grid.w)) for e in extents)], np.int64)
    with torch.inference_mode(False):
        return Localisation(grid, extents, Sampler(auto.queries, auto.seed).draw(grid, device)), cost


class ShotRoutings:
    """The decisions of one clip, shot by shot."""

    def __init__(self, auto: AutoRouting) -> None:
        self.auto = auto
        self._known: dict[int, RoutingSpec] = {}
        self._keep: Callable[[int, RoutingSpec], None] | None = None

    def to_json(self) -> str:
        return self.auto.to_json()

    def keep_in(self, known: Mapping[int, RoutingSpec], keep: Callable[[int, RoutingSpec], None]) -> None:
        """Begin with the decisions of an earlier attempt; ``keep`` is told of each new one, before it is used again."""
        self._known, self._keep = dict(known), keep

    def forget(self) -> None:
        """Another clip begins."""
        self._known, self._keep = {}, None

    def of(self, shot: int) -> RoutingSpec | None:
        """Of the shot that begins with that frame; None: not decided yet."""
        return self._known.get(shot)

    def within(self, start: int, stop: int) -> dict[int, RoutingSpec]:
        """Those of shots that begin with frames ``start``, ..., ``stop`` - 1."""
        return {shot: routing for shot, routing in list(self._known.items()) if start <= shot < stop}

    def decide(self, shot: int, routing: RoutingSpec) -> None:
        self._known[shot] = routing
        if self._keep is not None:
            self._keep(shot, routing)

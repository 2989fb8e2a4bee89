"""A run that has so much time: when it is over, and how the learning rate falls before, so that what is saved is settled.

While it is high, the weights swing around what they have learned, and their average lags behind: scores of both are worse than a
few hundred steps at falling rates make them (docs/training.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .parallel import Group

CLOCK_EVERY = 20
"""Steps between two looks at the clock where several processes have to agree on it."""


class Deadline:
    """Ends ``seconds`` after ``began``; in the last ``anneal`` (0 to 1) of that time the learning rate falls to nothing.

    Raises:
        ValueError: ``anneal`` outside [0, 1], or without ``seconds``.
    """

    def __init__(
        self,
        group: Group,
        began: float,
        seconds: float | None,
        anneal: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= anneal <= 1:
            raise ValueError(f"anneal is {anneal}; it must be from 0 (not at all) to 1 (all the time)")
        if anneal and seconds is None:
            raise ValueError(f"anneal is {anneal}, the share of a time that is not told; give the seconds too")
        self.group, self.began, self.seconds, self.anneal, self.clock = group, began, seconds, anneal, clock
        self.ease = 1.0
        """What the learning rate is multiplied by: the same in all processes."""

    def over(self, step: int) -> bool:
        """Whether the run ends after ``step``; all processes ask at the same steps."""
        if self.seconds is None or (self.group.world > 1 and step % CLOCK_EVERY):
            return False
        left = self.group.share(self.seconds - (self.clock() - self.began))
        if self.anneal:
            self.ease = min(1.0, max(0.0, left / (self.anneal * self.seconds)))
        return left < 0

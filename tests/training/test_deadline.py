"""When a run with so much time ends, and how it gets there."""

from __future__ import annotations

import pytest

from oasis_core.training.deadline import CLOCK_EVERY, Deadline
from oasis_core.training.parallel import Group


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_falls_to_nothing_in_the_last_share() -> None:
    clock = Clock()
    deadline = Deadline(Group(), 100.0, 50.0, 0.2, clock)
    seen = []
    for clock.now in (100.0, 130.0, 139.0, 140.0, 145.0, 149.0, 150.0, 150.1):
        ended = deadline.over(1)
        seen.append((round(deadline.ease, 3), ended))
    assert seen[:6] == [(1, False), (1, False), (1, False), (1, False), (0.5, False), (0.1, False)]
    assert seen[-1] == (0, True)


def test_without_a_time_it_never_ends() -> None:
    deadline = Deadline(Group(), 0.0, None)
    assert not any(deadline.over(step) for step in range(100))
    assert deadline.ease == 1


def test_several_processes_look_at_the_same_steps() -> None:
    class Two(Group):
        def share(self, value: float) -> float:  # type: ignore[override]
            return value

    deadline = Deadline(Two(1, 2), 0.0, 1.0, 0.0, lambda: 5.0)
    assert [step for step in range(1, 3 * CLOCK_EVERY) if deadline.over(step)] == [CLOCK_EVERY, 2 * CLOCK_EVERY]


@pytest.mark.parametrize(("seconds", "anneal", "words"), [(None, 0.5, "give the seconds"), (10.0, 1.5, "from 0")])
def test_what_makes_no_sense_is_refused(seconds: float | None, anneal: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Deadline(Group(), 0.0, seconds, anneal)

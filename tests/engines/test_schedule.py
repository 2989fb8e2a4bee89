"""Who makes what next, against a crowd of workers that fail at random; and the simulator that runs the same code."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from oasis_core.engines.schedule import ATTEMPTS, LOSSES, SLOW, Attempt, Failure, Key, Schedule


@pytest.fixture(scope="module")
def sim() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "scale_sim.py"
    spec = importlib.util.spec_from_file_location("scale_sim", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale_sim"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(30))
def test_every_segment_is_made_once_or_given_up(seed: int) -> None:
    draw = random.Random(seed)
    schedule, workers, count = Schedule(), draw.randint(1, 6), draw.randint(1, 40)
    poison = {(0, i) for i in range(count) if draw.random() < 0.1}
    made: list[Key] = []
    lost: list[Key] = []
    running: dict[int, Attempt] = {}
    added, now = 0, 0.0
    for _ in range(20_000):
        if schedule.over:
            break
        now += draw.random()
        if added < count and draw.random() < 0.5:
            schedule.add((0, added), 10)
            added += 1
            if added == count:
                schedule.close()
        for worker in range(workers):
            if worker not in running and (attempt := schedule.give(worker, now, workers > 1)) is not None:
                running[worker] = attempt
        for worker, attempt in list(running.items()):
            if worker not in running or draw.random() < 0.5:
                continue  # beaten since, or still at work
            del running[worker]
            chance = draw.random()
            if attempt.key in poison or chance < 0.05:
                how = Failure.ERROR if attempt.key in poison else draw.choice([Failure.LOST, Failure.MEMORY])
                if schedule.failed(attempt, how):
                    lost.append(attempt.key)
            elif schedule.done(attempt, now):
                made.append(attempt.key)
                for rival in schedule.rivals(attempt.key):
                    schedule.failed(rival, Failure.ERROR)
                    del running[rival.worker]
    assert schedule.over
    assert len(made) + len(lost) == len({*made, *lost}) == count
    assert poison <= set(lost)


def test_a_segment_that_raises_is_tried_elsewhere_then_smaller_then_given_up() -> None:
    schedule = Schedule()
    schedule.add((0, 0), 10)
    seen: list[Attempt] = []
    for turn in range(ATTEMPTS):
        attempts = [a for w in (0, 1) if (a := schedule.give(w, float(turn), True)) is not None]
        assert len(attempts) == 1
        seen += attempts
        assert schedule.failed(attempts[0], Failure.ERROR) == (turn == ATTEMPTS - 1)
    assert [a.smaller for a in seen] == [0, 0, 1]
    assert seen[0].worker != seen[1].worker != seen[2].worker


def test_memory_makes_it_smaller_each_time_and_the_end_is_final() -> None:
    schedule = Schedule()
    schedule.add((0, 0), 10)
    for smaller in range(5):
        attempt = schedule.give(0, 0.0, False)
        assert attempt is not None
        assert attempt.smaller == smaller
        assert not schedule.failed(attempt, Failure.MEMORY)
    last = schedule.give(0, 0.0, False)
    assert last is not None
    assert schedule.failed(last, Failure.FINAL)


def test_a_segment_takes_only_so_many_workers_with_it() -> None:
    schedule = Schedule()
    schedule.add((0, 0), 10)
    given_up = []
    while attempt := schedule.give(0, 0.0, False):
        given_up.append(schedule.failed(attempt, Failure.LOST))
    assert given_up == [False] * (LOSSES - 1) + [True]


def test_only_the_tail_is_begun_twice_and_the_first_one_counts() -> None:
    schedule = Schedule()
    for number in range(3):
        schedule.add((0, number), 10)
    quick, late = schedule.give(0, 0.0, True), schedule.give(1, 0.0, True)
    assert quick is not None
    assert late is not None
    assert schedule.done(quick, 10.0)  # a second for a frame
    assert schedule.pace() == 1.0
    third = schedule.give(0, 100.0, True)
    assert third is not None
    assert third.key == (0, 2)
    assert schedule.done(third, 110.0)
    assert schedule.give(0, 110.0, True) is None  # more may come
    schedule.close()
    assert schedule.give(0, SLOW * 10, True) is None  # not late yet
    again = schedule.give(0, SLOW * 10 + 0.1, True)
    assert again is not None
    assert again.key == late.key
    assert schedule.give(2, 200.0, True) is None  # twice is enough
    assert schedule.done(again, 210.0)
    assert schedule.over
    assert schedule.rivals(late.key) == (late,)
    assert not schedule.done(late, 220.0)


def test_beside_another_nothing_is_tried_again() -> None:
    """Two segments of a worker that died are both under suspicion: each is made alone, and the one at fault is found."""
    schedule = Schedule()
    for number in range(4):
        schedule.add((0, number), 10)
    schedule.close()
    two = schedule.give(0, 0.0, True), schedule.give(0, 0.0, True, beside=True)
    assert [a.key for a in two if a is not None] == [(0, 0), (0, 1)]
    for attempt in two:
        assert attempt is not None
        assert not schedule.failed(attempt, Failure.LOST)
    fresh = schedule.give(0, 1.0, True, beside=True)  # the others have not lost a worker
    assert fresh is not None
    assert fresh.key == (0, 2)
    assert schedule.done(fresh, 2.0)
    suspect = schedule.give(0, 3.0, True)
    assert suspect is not None
    assert suspect.key[1] in (0, 1)
    assert schedule.give(0, 3.0, True, beside=True) is None  # it is alone
    late = schedule.give(1, 3.0, True)
    assert late is not None
    assert schedule.give(2, 1e6, True, held=set(schedule.open), beside=True) is None  # nor is a late one


def test_what_waits_behind_another_does_not_take_its_time() -> None:
    schedule = Schedule()
    for number in range(2):
        schedule.add((0, number), 10)
    first, second = schedule.give(0, 0.0, False), schedule.give(0, 0.0, False, beside=True)
    assert first is not None
    assert second is not None
    assert schedule.done(first, 10.0)
    assert schedule.done(second, 20.0)
    assert schedule.pace() == 1.0


@pytest.mark.parametrize("workers", [1, 3, 20, 300])
def test_the_simulated_time_keeps_its_bounds(sim: Any, workers: int) -> None:
    setup = sim.Setup(spread=0.0, shot=1e9, fixed=0.5)
    segments = sim.plan(setup, 24 * 400)
    outcome = sim.simulate(setup, segments, workers)
    ready = setup.start + setup.load + workers * setup.model / setup.storage
    work = sum(setup.fixed + setup.pace * (s.stop - s.needed) for s in segments)
    longest = max(setup.fixed + setup.pace * (s.stop - s.needed) for s in segments)
    least = max(ready + work / workers, ready + longest, outcome.scanned)
    assert least <= outcome.segments <= ready + work / workers + longest + (outcome.scanned - ready) + 1
    assert outcome.seconds == outcome.segments + outcome.join
    assert outcome.again == 0


def test_one_slow_worker_costs_little(sim: Any) -> None:
    setup = sim.Setup(spread=0.0, scan=1e6)
    segments = sim.plan(setup, 24 * 600)
    alike, one_slow = (
        sim.simulate(s, segments, 10).segments for s in (setup, sim.replace(setup, slow=0.1, slowness=10.0))
    )
    assert one_slow < alike * 10 / 9 + 2.5 * setup.pace * 150
    assert sim.simulate(sim.replace(setup, slow=0.1), segments, 10).again >= 1

"""Routing that is decided while a job runs (``routing.auto``): who decides, and who waits for it. No Ray.

A shot's routing is decided on its first chunk, by whoever makes it. Segments that begin inside the shot wait until then, while
others are made. Nobody waits for ever: the first open segment of an undecided shot never waits, and where it takes too long
the others go on. They then decide for themselves on the shot's first chunk, which gives the same on like devices.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..jobs.scan import SegmentTask
from .film import Film
from .schedule import Key, Schedule

PATIENCE = 60.0
"""Seconds from the beginning of the segment that decides until others go on without it."""


def held(schedule: Schedule, tasks: Mapping[Key, SegmentTask], films: Mapping[int, Film], now: float) -> set[Key]:
    """Segments that wait for their shot's routing."""
    inside = [
        key for key in schedule.waiting if tasks[key].begins_inside and films[key[0]].undecided(tasks[key].start.shot)
    ]
    if not inside:
        return set()
    first: dict[tuple[int, int], Key] = {}
    for key in sorted(schedule.open):
        task = tasks[key]
        for shot in (task.start.shot, task.next_shot):
            if shot < task.stop:
                first.setdefault((key[0], shot), key)
    result = set()
    for key in inside:
        decider = first[key[0], tasks[key].start.shot]
        began = schedule.began(decider)
        if key != decider and (began is None or now - began < PATIENCE):
            result.add(key)
    return result

"""Who makes which segment next: retries, lost workers, second attempts at the tail. No clock, no processes.

The simulator (``benchmarks/scale_sim.py``) runs this same code.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence, Set
from dataclasses import dataclass
from enum import Enum
from statistics import median

Key = tuple[int, int]
"""Number of the file in the job, first frame of the segment."""

ATTEMPTS = 3
"""Times that a segment may raise: as it was planned, again elsewhere, then smaller."""
LOSSES = 3
"""Workers that a segment may take with it."""
SLOW = 1.5
"""Times the usual duration after which an idle worker begins the segment too, once nothing else is left."""


class Failure(Enum):
    """How an attempt ended that made nothing."""

    ERROR = "error"
    MEMORY = "memory"
    """The device's memory ran out: only less helps."""
    LOST = "lost"
    """The worker died."""
    FINAL = "final"
    """No other attempt can help."""


@dataclass(frozen=True)
class Attempt:
    """One worker, one segment."""

    key: Key
    worker: int
    number: int
    """Unlike that of any other attempt."""
    smaller: int = 0
    """Times that the plan is made smaller (``jobs.shrink``)."""


@dataclass
class _Segment:
    frames: int
    smaller: int = 0
    raised: int = 0
    last: int | None = None
    """Worker on which it raised last."""
    running: int = 0


class Schedule:
    """Segments are added while they come to light, and given to workers that ask."""

    def __init__(self) -> None:
        self._segments: dict[Key, _Segment] = {}
        """Those that are neither done nor given up."""
        self._waiting: deque[Key] = deque()
        self._running: dict[Attempt, float] = {}
        self._paces: deque[float] = deque(maxlen=99)
        """Seconds for a frame, of finished attempts."""
        self._ended: dict[int, float] = {}
        """When each worker finished its last one."""
        self._lost: Counter[Key] = Counter()
        self._number = 0
        self._closed = False

    def add(self, key: Key, frames: int) -> None:
        """One more segment."""
        self._segments[key] = _Segment(frames)
        self._waiting.append(key)

    def close(self) -> None:
        """No segment will be added any more."""
        self._closed = True

    @property
    def over(self) -> bool:
        """Whether every segment is done or given up."""
        return self._closed and not self._segments

    @property
    def open(self) -> Set[Key]:
        """Segments that are neither done nor given up."""
        return self._segments.keys()

    @property
    def waiting(self) -> Sequence[Key]:
        """Segments that no worker has."""
        return self._waiting

    @property
    def running(self) -> tuple[Attempt, ...]:
        return tuple(self._running)

    def pace(self) -> float | None:
        """Seconds that a worker usually takes for a frame; None before the first segment is done."""
        return median(self._paces) if self._paces else None

    def began(self, key: Key) -> float | None:
        """When the oldest attempt at a segment began that runs; None: none does."""
        return min((began for attempt, began in self._running.items() if attempt.key == key), default=None)

    def give(
        self, worker: int, now: float, others: bool, held: Set[Key] = frozenset(), beside: bool = False
    ) -> Attempt | None:
        """What a worker shall do; None: nothing yet.

        Args:
            others: whether there are other workers, so that one on which a segment has raised can leave it to them.
            held: segments that wait for something that an open one will tell.
            beside: the worker is at work on another one. Segments that have lost a worker are made alone: where two were
                lost, the one that is at fault shows itself.
        """
        if beside and any(self._lost[a.key] for a in self._running if a.worker == worker):
            return None
        for key in self._waiting:
            if key in held or (others and self._segments[key].last == worker) or (beside and self._lost[key]):
                continue
            self._waiting.remove(key)
            return self._begin(key, worker, now)
        if beside or not self._closed or any(key not in held for key in self._waiting):
            return None
        late = [a for a in self._running if self._is_late(a, now - self._since(a))]
        late = [a for a in late if self._segments[a.key].running == 1]
        if not late:
            return None
        return self._begin(min(late, key=lambda a: self._running[a]).key, worker, now)

    def _since(self, attempt: Attempt) -> float:
        """From when its time counts: what waits at a worker behind another one does not take its time."""
        return max(self._running[attempt], self._ended.get(attempt.worker, 0.0))

    def _is_late(self, attempt: Attempt, seconds: float) -> bool:
        pace, segment = self.pace(), self._segments.get(attempt.key)
        return pace is not None and segment is not None and seconds > SLOW * pace * segment.frames

    def _begin(self, key: Key, worker: int, now: float) -> Attempt:
        segment = self._segments[key]
        segment.running += 1
        self._number += 1
        attempt = Attempt(key, worker, self._number, segment.smaller)
        self._running[attempt] = now
        return attempt

    def done(self, attempt: Attempt, now: float) -> bool:
        """The attempt made its segment. False where another one was faster."""
        began = self._since(attempt)
        del self._running[attempt]
        self._ended[attempt.worker] = now
        segment = self._segments.pop(attempt.key, None)
        if segment is None:
            return False
        self._paces.append((now - began) / segment.frames)
        if attempt.key in self._waiting:
            self._waiting.remove(attempt.key)
        return True

    def rivals(self, key: Key) -> tuple[Attempt, ...]:
        """Attempts at a segment that still run."""
        return tuple(a for a in self._running if a.key == key)

    def failed(self, attempt: Attempt, how: Failure) -> bool:
        """The attempt made nothing. True where its segment is given up with it."""
        del self._running[attempt]
        segment = self._segments.get(attempt.key)
        if segment is None:
            return False
        segment.running -= 1
        if how is Failure.LOST:
            self._lost[attempt.key] += 1
        elif how is Failure.MEMORY:
            segment.smaller = max(segment.smaller, attempt.smaller + 1)
        else:
            segment.raised, segment.last = segment.raised + 1, attempt.worker
            segment.smaller = max(segment.smaller, int(segment.raised == ATTEMPTS - 1))
        hopeless = how is Failure.FINAL or segment.raised >= ATTEMPTS or self._lost[attempt.key] >= LOSSES
        if segment.running:
            return False  # the other attempt decides
        if hopeless:
            del self._segments[attempt.key]
            return True
        self._waiting.appendleft(attempt.key)
        return False

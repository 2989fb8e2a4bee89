"""The workers of a job as Ray actors: started, asked, replaced when they die, and ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..openmp import spinning
from ..routing.spec import RoutingSpec
from .cluster import Room
from .far_files import bring
from .orders import Advance, Order, Outcome, WorkerFacts, WorkerSettings
from .schedule import Attempt
from .warming import Rehearsal
from .worker import SegmentWorker

log = logging.getLogger(__name__)

ORDERS = 2
"""That a worker has at a time: while the encoder finishes one segment, the model is at the next one."""
RESTARTS = 3
"""Times that a worker may die in a row without having made a segment."""
CLEARING = 5.0
"""Seconds for workers to remove what they have fetched."""
TOLD = 30.0
"""Seconds after which waiting for workers is told."""


@dataclass
class Given:
    """An attempt that a worker has."""

    attempt: Attempt
    task: Any
    """Ref of its outcome."""
    done: float = 0.0
    """Frames so far."""
    decided: Mapping[int, RoutingSpec] = field(default_factory=dict)
    """``Advance.decided``."""


@dataclass
class Slot:
    """A worker's place; who dies is replaced in it."""

    number: int
    actor: Any
    hello: Any
    """Ref of its facts, until they are known."""
    facts: WorkerFacts | None = None
    given: list[Given] = field(default_factory=list)
    """Oldest first."""
    asked: Any = None
    """Ref of its progress."""
    deaths: int = 0

    @property
    def idle(self) -> bool:
        return self.facts is not None and not self.given

    @property
    def has_room(self) -> bool:
        """Whether another order may wait there."""
        return self.facts is not None and len(self.given) < ORDERS


@dataclass(frozen=True)
class Event:
    """What ``Pool.wait`` tells: an attempt ended; ``outcome`` None: with its worker."""

    attempt: Attempt
    outcome: Outcome | None


class Pool:
    """``room.workers`` actors. ``close`` ends them."""

    def __init__(
        self,
        ray: ModuleType,
        settings: WorkerSettings,
        room: Room,
        server: Any,
        text: str,
        worker: type[SegmentWorker] = SegmentWorker,
    ) -> None:
        """``server``, ``text``: as ``SegmentWorker`` takes them."""
        self._ray, self._given = ray, (settings, server, text)
        # A thread for each order, two to be asked how far it is and for files. Dead actors are replaced by us, since Ray's own
        # restart would leave us without a say in how often.
        environment = {"env_vars": spinning()}
        self._actor = ray.remote(worker).options(
            **room.options, max_concurrency=ORDERS + 2, max_restarts=0, runtime_env=environment
        )
        self.slots = [self._start(number) for number in range(room.workers)]

    def _start(self, number: int) -> Slot:
        actor = self._actor.remote(*self._given)
        return Slot(number, actor, actor.facts.remote())

    def greet(self, poll: Callable[[], None]) -> list[WorkerFacts]:
        """Wait until every worker has its model.

        Raises:
            ValueError, OSError: a worker cannot load it, in its own words; or two differ in what makes the result.
        """
        slots = {slot.hello: slot for slot in self.slots}
        for ref in self._ready(slots, poll):
            slots[ref].facts = self._facts(slots[ref])
        facts = [slot.facts for slot in self.slots if slot.facts is not None]
        for other in facts[1:]:
            check_alike(facts[0], other)
        return facts

    def warm(self, rehearsal: Rehearsal, poll: Callable[[], None]) -> None:
        """Have every worker do work of that kind once, at the same time. Where that fails, its segments will tell why."""
        numbers = {slot.actor.warm.remote(rehearsal): slot.number for slot in self.slots if slot.facts is not None}
        for ref in self._ready(numbers, poll):
            try:
                log.info("worker %d has rehearsed for %.1f s", numbers[ref], self._ray.get(ref))
            except self._ray.exceptions.RayError as e:
                log.warning("worker %d could not rehearse (%s)", numbers[ref], _last_line(e))

    def _ready(self, refs: Iterable[Any], poll: Callable[[], None]) -> Iterator[Any]:
        """Each of them, one of every worker, as soon as it has its answer or an error."""
        missing, told = list(refs), time.monotonic()
        while missing:
            poll()
            ready, missing = self._ray.wait(missing, num_returns=len(missing), timeout=0.1)
            yield from ready
            if missing and time.monotonic() - told > TOLD:
                log.info("waiting for %d of %d workers", len(missing), len(self.slots))
                told = time.monotonic()

    def _facts(self, slot: Slot) -> WorkerFacts:
        try:
            facts: WorkerFacts = self._ray.get(slot.hello)
        except self._ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, (ValueError, OSError, ModuleNotFoundError, MemoryError)):
                raise e.cause from None
            raise OSError(f"worker {slot.number} cannot be started ({_last_line(e.cause)})") from None
        except self._ray.exceptions.RayActorError as e:
            raise OSError(f"worker {slot.number} cannot be started ({_last_line(e)})") from None
        return facts

    def ask(self, question: str, *values: object) -> list[Any]:
        """The answer of every worker that is there to a method's call."""
        refs = [getattr(slot.actor, question).remote(*values) for slot in self.slots if slot.facts is not None]
        return list(self._ray.get(refs))

    def bring(self, worker: int, name: str, folder: Path) -> None:
        """Copy a finished segment from that worker; may run in any thread. Raises OSError, also where it has died."""
        actor = next((slot.actor for slot in self.slots if slot.number == worker), None)
        if actor is None:
            raise OSError(f"worker {worker} is gone, and its segment with it")
        try:
            bring(lambda *asked: self._ray.get(actor.files.remote(*asked)), name, folder)
        except self._ray.exceptions.RayError as e:
            raise OSError(f"a segment did not come over from worker {worker} ({_last_line(e)})") from None

    def begin(self, slot: Slot, attempt: Attempt, order: Order, name: str) -> None:
        """Have a worker that has room make a segment; the dashboard shows ``name``."""
        slot.given.append(Given(attempt, slot.actor.make.options(name=name).remote(order)))

    def stop(self, attempt: Attempt) -> None:
        """Have a worker give up an attempt; its end comes as an event."""
        for slot in self.slots:
            if any(given.attempt == attempt for given in slot.given):
                slot.actor.stop.remote(attempt.number)

    def wait(self, seconds: float) -> list[Event]:
        """What has happened, after ``seconds`` at most. Raises OSError where no worker is left."""
        self._ask_progress()
        refs = {given.task: slot for slot in self.slots for given in slot.given}
        refs |= {slot.hello: slot for slot in self.slots if slot.facts is None}
        if not refs:
            raise OSError("every worker has died again and again: see Ray's logs")
        ready, _ = self._ray.wait(list(refs), num_returns=1, timeout=seconds)
        if ready:  # all that are
            ready, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=0)
        events: list[Event] = []
        dead: dict[int, tuple[Slot, Exception]] = {}
        for ref in ready:
            slot = refs[ref]
            try:
                answer = self._ray.get(ref)
            except self._ray.exceptions.RayError as e:
                dead[slot.number] = slot, e
                continue
            if isinstance(answer, WorkerFacts):
                slot.facts = answer
                continue
            [given] = [given for given in slot.given if given.task == ref]
            slot.given.remove(given)
            slot.deaths = 0 if answer.record is not None else slot.deaths
            events.append(Event(given.attempt, answer))
        for slot, error in dead.values():  # behind what it has made to the end
            log.warning("worker %d died (%s)", slot.number, _last_line(error))
            self._replace(slot)
            events += [Event(given.attempt, None) for given in slot.given]
        return events

    def _replace(self, slot: Slot) -> None:
        self._ray.kill(slot.actor)
        place = self.slots.index(slot)
        if slot.deaths + 1 >= RESTARTS:
            log.warning("worker %d is not started again: it died %d times in a row", slot.number, RESTARTS)
            del self.slots[place]
            return
        self.slots[place] = self._start(slot.number)
        self.slots[place].deaths = slot.deaths + 1

    def _ask_progress(self) -> None:
        for slot in self.slots:
            if not slot.given:
                continue
            if slot.asked is not None:
                ready, _ = self._ray.wait([slot.asked], timeout=0)
                if not ready:
                    continue
                try:
                    advances: tuple[Advance, ...] = self._ray.get(slot.asked)
                except self._ray.exceptions.RayError:
                    continue  # its death comes with the attempt
                told = {advance.attempt: advance for advance in advances}
                for given in slot.given:
                    if advance := told.get(given.attempt.number):
                        given.done, given.decided = advance.frames, advance.decided
            slot.asked = slot.actor.progress.remote()

    def close(self) -> None:
        """End all workers, at work or not; what they fetched goes."""
        said = [slot.actor.files.remote("clear", self._given[2]) for slot in self.slots if slot.facts is not None]
        if said:
            self._ray.wait(said, num_returns=len(said), timeout=CLEARING)
        for slot in self.slots:
            self._ray.kill(slot.actor)
        self.slots = []


def check_alike(one: WorkerFacts, other: WorkerFacts) -> None:
    """Raises ValueError where two workers would make different frames or files."""
    for name, had, has in (
        ("model", one.model[:12], other.model[:12]),
        ("number format", one.dtype, other.dtype),
        ("encoder (libavcodec)", one.encoder, other.encoder),
    ):
        if had != has:
            raise ValueError(
                f"workers differ in their {name}: {had} on {one.host} ({one.device}), {has} on {other.host} "
                f"({other.device}); make them alike, or name --dtype"
            )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__

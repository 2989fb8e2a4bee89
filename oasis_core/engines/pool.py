"""The workers of a job as Ray actors: started, asked, replaced when they die, and ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..openmp import spinning
from ..routing.spec import RoutingSpec
from .cluster import Room
from .far_files import bring
from .schedule import Attempt
from .worker import Advance, Order, Outcome, SegmentWorker, WorkerFacts, WorkerSettings

log = logging.getLogger(__name__)

RESTARTS = 3
"""Times that a worker may die in a row without having made a segment."""
CLEARING = 5.0
"""Seconds for workers to remove what they have fetched."""
TOLD = 30.0
"""Seconds after which waiting for workers is told."""


@dataclass
class Slot:
    """A worker's place; who dies is replaced in it."""

    number: int
    actor: Any
    hello: Any
    """Ref of its facts, until they are known."""
    facts: WorkerFacts | None = None
    attempt: Attempt | None = None
    task: Any = None
    """Ref of the attempt's outcome."""
    asked: Any = None
    """Ref of its progress."""
    done: float = 0.0
    """Frames of the attempt so far."""
    decided: Mapping[int, RoutingSpec] = field(default_factory=dict)
    """``Advance.decided`` of the attempt."""
    deaths: int = 0

    @property
    def idle(self) -> bool:
        return self.facts is not None and self.attempt is None


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
        # Three threads: one makes a segment, the others are asked how far it is and for files. Dead actors are replaced by
        # us, since Ray's own restart would leave us without a say in how often.
        environment = {"env_vars": spinning()}
        self._actor = ray.remote(worker).options(
            **room.options, max_concurrency=3, max_restarts=0, runtime_env=environment
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
        waited = 0.0
        while missing := [slot for slot in self.slots if slot.facts is None]:
            poll()
            ready, _ = self._ray.wait([slot.hello for slot in missing], timeout=0.2)
            for slot in missing:
                if slot.hello in ready:
                    slot.facts = self._facts(slot)
            waited += 0.2
            if waited > TOLD:
                log.info("waiting for %d of %d workers", len(missing), len(self.slots))
                waited = 0.0
        facts = [slot.facts for slot in self.slots if slot.facts is not None]
        for other in facts[1:]:
            check_alike(facts[0], other)
        return facts

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
        """Have an idle worker make a segment; the dashboard shows ``name``."""
        slot.attempt, slot.done, slot.decided = attempt, 0.0, {}
        slot.task = slot.actor.make.options(name=name).remote(order)

    def stop(self, attempt: Attempt) -> None:
        """Have a worker give up an attempt; its end comes as an event."""
        for slot in self.slots:
            if slot.attempt == attempt:
                slot.actor.stop.remote(attempt.number)

    def wait(self, seconds: float) -> list[Event]:
        """What has happened, after ``seconds`` at most. Raises OSError where no worker is left."""
        self._ask_progress()
        refs = {slot.task: slot for slot in self.slots if slot.task is not None}
        refs |= {slot.hello: slot for slot in self.slots if slot.hello is not None and slot.facts is None}
        if not refs:
            raise OSError("every worker has died again and again: see Ray's logs")
        ready, _ = self._ray.wait(list(refs), num_returns=1, timeout=seconds)
        if ready:  # all that are
            ready, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=0)
        return [event for ref in ready if (event := self._happened(refs[ref], ref)) is not None]

    def _happened(self, slot: Slot, ref: Any) -> Event | None:
        attempt = slot.attempt
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayError as e:
            log.warning("worker %d died (%s)", slot.number, _last_line(e))
            self._replace(slot)
            return None if attempt is None else Event(attempt, None)
        if isinstance(answer, WorkerFacts):
            slot.facts = answer
            return None
        assert attempt is not None
        slot.attempt = slot.task = None
        slot.deaths = 0 if answer.record is not None else slot.deaths
        return Event(attempt, answer)

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
            if slot.attempt is None:
                continue
            if slot.asked is not None:
                ready, _ = self._ray.wait([slot.asked], timeout=0)
                if not ready:
                    continue
                try:
                    advance: Advance = self._ray.get(slot.asked)
                except self._ray.exceptions.RayError:
                    continue  # its death comes with the attempt
                own = advance.attempt == slot.attempt.number
                slot.done, slot.decided = (advance.frames, advance.decided) if own else (0.0, {})
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

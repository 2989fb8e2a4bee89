"""A job on many GPUs: its segments as Ray tasks, on workers that keep the model loaded.

Scan, workers and the joining of finished files go on beside each other; one thread alone changes manifests and schedule.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoints import resolve
from ..device import DTYPES, FP8
from ..jobs.fingerprint import hash_file
from ..jobs.scan import SegmentTask
from ..pipeline import Poll, Upscaler
from ..progress import Progress
from ..ready import load_with_decoder, routing_of
from ..video_io import WriterSettings
from ..video_job import Done, JobSettings
from .cluster import connected, room
from .deciding import held
from .far_files import files_to_serve, serve
from .film import Film, FilmRequest, sized_for
from .orders import Outcome, WorkerSettings
from .pool import Event, Pool, Slot
from .scanning import ScanEnd, Scanning
from .schedule import Attempt, Failure, Key, Schedule
from .told import RaySettings, Result, Watch, WorkerState, one_line
from .worker import DISK, SegmentWorker

log = logging.getLogger(__name__)

COMING = 4
"""Segments that come over from workers at a time."""
TICK = 0.2
"""Seconds between two looks at everything."""


def upscale_on_ray(
    requests: Sequence[FilmRequest],
    settings: WorkerSettings,
    writer: WriterSettings,
    job: JobSettings,
    ray_settings: RaySettings,
    on_progress: Progress | None = None,
    watch: Watch | None = None,
    poll: Poll | None = None,
    worker: type[SegmentWorker] = SegmentWorker,
) -> list[Result]:
    """Upscale every input; frames, sound and tags are those that ``video_job.upscale_video`` gives, on like devices.

    An input that fails does not stop the others. An interruption keeps all finished segments, of every input.

    Args:
        on_progress: told the frames done of all inputs.
        watch: told about twice a second what each worker does.
        poll: called often; what it raises ends the job.
        worker: what the actors run.

    Raises:
        ModuleNotFoundError: no Ray. ValueError, OSError: a missing file, no such Ray, a model that cannot be loaded, workers
            that differ, none left; one line each.
    """
    # A decoder with a memory begins anew where segments may.
    settings = replace(settings, settings=replace(settings.settings, restart_frames=job.segment_frames))
    decoder = None if settings.decoder is None else Path(settings.decoder)
    started = time.monotonic()
    files = files_to_serve([request.source.path for request in requests], resolve(settings.model), decoder)
    with connected(ray_settings.address, ray_settings.workers) as ray:
        place = room(ray.cluster_resources(), ray_settings.workers, settings.device)
        text, server = secrets.token_hex(8), None
        if not (ray_settings.address or "").startswith("ray://"):  # such a driver is on none of the cluster's machines
            server = serve(ray, files)
        pool = Pool(ray, settings, place, server, text, worker)
        try:
            shared = text, server, ray_settings.streamed
            return _Run(pool, settings, writer, job, on_progress, watch, poll, shared, started).run(requests)
        finally:
            pool.close()


class _Run:
    """All inputs, from where they stand to their ends."""

    def __init__(
        self, pool: Pool, settings: WorkerSettings, writer: WriterSettings, job: JobSettings,
        on_progress: Progress | None, watch: Watch | None, poll: Poll | None, files: tuple[str, Any, bool], started: float,
    ) -> None:  # fmt: skip
        self.pool, self.settings, self.writer, self.job = pool, settings, writer, job
        self.on_progress, self.watch, self.poll = on_progress, watch, poll or (lambda: None)
        self.schedule, self.tasks = Schedule(), dict[Key, SegmentTask]()
        self.films: dict[int, Film] = {}
        self.joins: dict[int, Future[Done]] = {}
        self.results: dict[int, Result] = {}
        self.name = secrets.token_hex(2)
        """Of this run, in its files' names."""
        self.told = 0.0
        self._files, self._started = files, started
        self._coming: dict[Attempt, tuple[Future[None], Outcome]] = {}
        """Segments on their way from workers that do not see the job's folder."""
        self._held: set[Key] = set()
        """Segments that wait for their shot's routing."""
        self._beaten: set[Attempt] = set()
        """Attempts that were told to end, since another made their segment."""

    def run(self, requests: Sequence[FilmRequest]) -> list[Result]:
        facts = self.pool.greet(self.poll)
        log.info("%d workers: %s", len(facts), ", ".join(sorted({f"{f.host} {f.device}" for f in facts})))
        decoder = None if self.settings.decoder is None else Path(self.settings.decoder)
        model = resolve(self.settings.model)
        dtype = DTYPES["bf16" if facts[0].dtype == FP8 else facts[0].dtype]
        checkpoint = load_with_decoder(model, decoder, "cpu", dtype, self.settings.allow_untrained)
        routing = routing_of(self.settings.routing, checkpoint)
        upscaler = Upscaler(checkpoint.model, routing, self.settings.settings)
        scanning = Scanning(len(self.pool.slots) * 2)
        try:
            with ThreadPoolExecutor(1, "oasis-joiner") as joiner, ThreadPoolExecutor(COMING, "oasis-files") as fetcher:
                self._open(requests, upscaler)
                scanning.start(self.films)
                if self.films:
                    self.pool.warm(next(iter(self.films.values())).rehearsal(), self.poll)
                log.info("workers are ready after %.1f s", time.monotonic() - self._started)
                while not (self.schedule.over and len(self.results) == len(requests)):
                    self.poll()
                    self._take(scanning)
                    self._learn()
                    self._give()
                    for event in self._events():
                        self._happened(event, fetcher)
                    self._arrived()
                    self._end_films(requests, joiner)
                    self._tell()
                self.told = 0.0
                self._tell()  # the end
        except (KeyboardInterrupt, OSError) as e:
            raise type(e)(self._kept(e)) from None
        finally:
            scanning.stop()
            for film in self.films.values():
                film.close()
        return [self.results[number] for number in range(len(requests))]

    def _kept(self, error: BaseException) -> str:
        kept = [film for film in self.films.values() if film.finished and film.folder.path.exists()]
        places = ", ".join(str(film.folder.path) for film in kept)
        told = f"{sum(f.finished for f in kept)} finished frames are kept in {places}: go on with --resume"
        return "; ".join(text for text in (one_line(error) if str(error) else "", told if kept else "") if text)

    def _open(self, requests: Sequence[FilmRequest], upscaler: Upscaler) -> None:
        facts = [slot.facts for slot in self.pool.slots if slot.facts is not None]
        budget = min((f.budget for f in facts if f.budget is not None), default=None)
        for number, request in enumerate(requests):
            try:
                info = request.source.open().info
                plans = [plan for plan in self.pool.ask("recalled", info.height, info.width) if plan is not None]
                sized = sized_for(upscaler, info.height, info.width, [f.memory for f in facts])
                plans += [] if sized is None else [sized]
                files = str(number), *self._files
                film = Film(request, upscaler, self.writer, self.job, facts[0], plans, budget, files)
            except (OSError, ValueError) as e:
                if len(requests) == 1:
                    raise
                self.results[number] = Result(request, None, f"{request.source.path.name}: {one_line(e)}")
                continue
            self.films[number] = film

    def _take(self, scanning: Scanning) -> None:
        """What the scan has found since."""
        ready = len(self.schedule.waiting) - len(self._held)
        for number, found in scanning.take(ready < 2 * len(self.pool.slots)):
            film = self.films[number]
            if isinstance(found, BaseException):
                film.failed.append(one_line(found))
                film.scanned = True
                continue
            task = found.last if isinstance(found, ScanEnd) else found
            if isinstance(found, ScanEnd):
                film.end_of(found.scan)
            if task is not None:
                key = number, task.start.frame
                self.tasks[key] = task
                self.schedule.add(key, task.frames)
        if scanning.over:
            self.schedule.close()

    def _give(self) -> None:
        now, others = time.monotonic(), len(self.pool.slots) > 1
        self._held = held(self.schedule, self.tasks, self.films, now)
        for slot in self.pool.slots:
            if slot.idle:
                self._begin(slot, self.schedule.give(slot.number, now, others, self._held))
        if any(slot.idle for slot in self.pool.slots):
            return  # nothing is left that could wait at the others
        # What is decided after an order was given does not reach it.
        alone = self._held | {key for key in self.schedule.waiting if self.films[key[0]].decides}
        for slot in self.pool.slots:
            while slot.has_room and self._begin(slot, self.schedule.give(slot.number, now, others, alone, beside=True)):
                pass

    def _begin(self, slot: Slot, attempt: Attempt | None) -> bool:
        if attempt is None:
            return False
        film, task = self.films[attempt.key[0]], self.tasks[attempt.key]
        order = film.order(task, attempt.number, self.name, attempt.smaller)
        self.pool.begin(slot, attempt, order, f"{film.name}: {task}")
        return True

    def _learn(self) -> None:
        """What running attempts have decided of shots' routings: others may wait for it."""
        for slot in self.pool.slots:
            for given in slot.given:
                if given.attempt.key in self.schedule.open and given.decided:
                    self.films[given.attempt.key[0]].decide(given.decided)

    def _events(self) -> list[Event]:
        if not self.pool.slots:
            return self.pool.wait(0)  # raises
        soon = TICK / 4 if any(slot.idle for slot in self.pool.slots) else TICK  # the scan may find what those can do
        if any(slot.given or slot.facts is None for slot in self.pool.slots):
            return self.pool.wait(soon)
        time.sleep(soon)  # for the scan, or for files to be joined
        return []

    def _happened(self, event: Event, fetcher: Executor) -> None:
        attempt, outcome = event.attempt, event.outcome
        film, task = self.films[attempt.key[0]], self.tasks[attempt.key]
        if outcome is not None and attempt.key in self.schedule.open:
            same = film.decide(outcome.decided)
            if outcome.record is not None and not same:
                outcome = Outcome(None, Failure.ERROR, "it decided a shot's routing otherwise than another worker")
        if outcome is not None and outcome.record is not None:
            if outcome.here:
                self._keep(film, attempt, outcome)
            else:
                bringing = fetcher.submit(self.pool.bring, attempt.worker, outcome.record.name, film.folder.path)
                self._coming[attempt] = bringing, outcome
            return
        self._failed(film, task, attempt, outcome)

    def _arrived(self) -> None:
        for attempt, (bringing, outcome) in list(self._coming.items()):
            if not bringing.done():
                continue
            del self._coming[attempt]
            film, task = self.films[attempt.key[0]], self.tasks[attempt.key]
            try:
                bringing.result()
                assert outcome.record is not None
                if hash_file(film.folder.path / outcome.record.name) != outcome.record.sha256:
                    raise OSError("a segment did not come over whole")
            except OSError as e:
                self._failed(film, task, attempt, Outcome(None, Failure.ERROR, one_line(e), e.errno in DISK))
            else:
                self._keep(film, attempt, outcome)

    def _failed(self, film: Film, task: SegmentTask, attempt: Attempt, outcome: Outcome | None) -> None:
        how = Failure.LOST if outcome is None else outcome.how
        assert how is not None
        error = "its worker died" if outcome is None else outcome.error
        if outcome is not None and outcome.disk:
            raise OSError(error)
        if attempt in self._beaten:
            self._beaten.discard(attempt)
            self.schedule.failed(attempt, how)
        elif self.schedule.failed(attempt, how):
            film.failed.append(f"{task} ({error})")
            log.warning("%s: %s cannot be made: %s", film.name, task, error)
        else:
            log.warning("%s: %s failed on worker %d: %s", film.name, task, attempt.worker, error)

    def _keep(self, film: Film, attempt: Attempt, outcome: Outcome) -> None:
        assert outcome.record is not None
        task = self.tasks[attempt.key]
        if not self.schedule.done(attempt, time.monotonic()):
            return  # another attempt was faster; its file goes with the folder
        film.accept(outcome.record, outcome.spent)
        if outcome.plan:
            log.warning("%s: %s was made with %s: not exactly what the plan gives", film.name, task, outcome.plan)
        for rival in self.schedule.rivals(attempt.key):
            self._beaten.add(rival)
            self.pool.stop(rival)

    def _end_films(self, requests: Sequence[FilmRequest], joiner: ThreadPoolExecutor) -> None:
        left = {key[0] for key in self.schedule.open}
        for number, film in self.films.items():
            if number in self.results or not film.scanned or number in left:
                continue
            if film.failed:
                kept = f"{film.finished} finished frames are kept in {film.folder.path}: go on with --resume"
                self.results[number] = Result(
                    requests[number], None, f"{film.name}: {'; '.join(film.failed)}; {kept if film.finished else ''}"
                )
            elif number not in self.joins:
                self.joins[number] = joiner.submit(film.finish)
            elif self.joins[number].done():
                self.results[number] = Result.of(film, self.joins[number], self._started)

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self.told < 2 * TICK:
            return
        self.told = now
        best: dict[Key, float] = {}
        running = set(self.schedule.running)
        for given in (given for slot in self.pool.slots for given in slot.given):
            if given.attempt in running:
                best[given.attempt.key] = max(given.done, best.get(given.attempt.key, 0.0))
        begun = sum(done for key, done in best.items() if key in self.schedule.open)
        totals = [film.total for film in self.films.values()]
        total = None if any(t is None for t in totals) else sum(t for t in totals if t is not None)
        if self.on_progress is not None:
            self.on_progress(sum(film.finished for film in self.films.values()) + begun, total)
        if self.watch is not None:
            self.watch([self._state(slot) for slot in self.pool.slots])

    def _state(self, slot: Slot) -> WorkerState:
        if not slot.given:
            return WorkerState(slot.number, "", "", 0.0, 0)
        oldest = slot.given[0]
        task = self.tasks[oldest.attempt.key]
        return WorkerState(slot.number, self.films[oldest.attempt.key[0]].name, str(task), oldest.done, task.frames)

"""One input of a job that several workers share: its manifest, its scan and its end. No Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..jobs.begin_and_end import check_input, join, open_video_job, output_size, told_what_is_kept, what_is_asked
from ..jobs.fit import planned
from ..jobs.manifest import SegmentRecord
from ..jobs.scan import Scan, SegmentTask
from ..jobs.segment_files import segment_name
from ..jobs.shrink import smaller, told, with_plan
from ..memory import working_memory
from ..pipeline import Upscaler
from ..routing.auto import ShotRoutings
from ..routing.spec import RoutingSpec
from ..video_io import WriterSettings
from ..video_job import Done, JobSettings
from .far_files import Shared
from .orders import Order, Source, WorkerFacts
from .times import Spent, Times
from .warming import Rehearsal

log = logging.getLogger(__name__)

Plan = tuple[int, "int | None"]
"""Frames of a chunk, tile (``UpscaleSettings.tile``)."""
MIB = 1 << 20
SHARE = 0.9
"""Of a device's free memory that a plan may need."""


@dataclass(frozen=True)
class FilmRequest:
    """One input and where it goes."""

    source: Source
    target: Path
    notes: Mapping[str, str] | None = None


class Film:
    """Opened where it stands; made to its end by ``accept`` and ``finish``. All but ``scan`` in one thread."""

    def __init__(
        self,
        request: FilmRequest,
        upscaler: Upscaler,
        writer: WriterSettings,
        job: JobSettings,
        facts: WorkerFacts,
        plans: Iterable[Plan],
        budget: int | None,
        files: tuple[str, str, Any, bool],
    ) -> None:
        """
        Args:
            upscaler: as asked for; its model is not run.
            facts: of any worker: all have the same model and number format.
            plans: what workers have found to work where more did not.
            budget: of the smallest worker, as ``jobs.fit.fit`` takes it.
            files: ``Shared``'s key, text, server and never.

        Raises:
            ValueError, OSError: as ``upscale_video`` does before its first frame.
        """
        self.request, self.writer, self._job = request, writer, job
        upscaler = upscaler.restarting(job.segment_frames)
        self.reader = request.source.open()
        self.size = output_size(self.reader, upscaler)
        asked = what_is_asked(self.reader, upscaler, writer, facts.model, job.segment_frames)
        self.folder = open_video_job(self.reader, request.target, self.size, writer, asked, job.resume)
        manifest = self.folder.manifest
        if not manifest.finished and manifest.chunk_frames is None and (least := min(plans, key=_size, default=None)):
            self.folder.update(replace(manifest, chunk_frames=least[0], tile=least[1]))
            log.warning("starting with %s", told(with_plan(upscaler, *least).settings))
        own = upscaler.routing
        self._routings = ShotRoutings(own.auto) if isinstance(own, ShotRoutings) else None
        if self._routings is not None:
            self._routings.keep_in(manifest.routings, self.folder.decide)
        self.upscaler, manifest = planned(upscaler, self.folder.manifest, self.reader.info, budget)
        if manifest != self.folder.manifest:
            self.folder.update(manifest)
        key, text, server, never = files
        probe = self.folder.path / f"segment_probe_{text}.txt"  # goes with the folder
        probe.write_text(text, encoding="utf-8")
        self._shared = Shared(key, probe, text, self.folder.manifest.asked, server, never)
        self.kept = self.folder.manifest.finished
        self.failed: list[str] = []
        """One line for each segment that could not be made."""
        self.scanned = False
        self._began = self._made = 0.0
        """Of the first order, and when the last segment was kept."""
        self._spent: list[Spent] = []

    @property
    def name(self) -> str:
        return self.request.source.path.name

    @property
    def finished(self) -> int:
        """Frames that are there."""
        return self.folder.manifest.finished

    @property
    def total(self) -> int | None:
        """Frames in all, as far as is known."""
        return self.folder.manifest.length or self.reader.info.about

    def scan(self) -> Scan:
        """Of what is missing. The reader is the scan's until it ends."""
        upscaler, config = self.upscaler, self.upscaler.model.config
        if self._routings is not None:  # where frames are read from: of segments that know their routing
            fixed = self._routings.auto.dense(config.depth, config.heads)
            upscaler = Upscaler(upscaler.model, fixed, upscaler.settings)
        return Scan(self.reader, upscaler, self.folder.manifest, self._job.segment_frames)

    def undecided(self, shot: int) -> bool:
        """Whether the routing of the shot that begins with that frame is to be decided yet."""
        return self._routings is not None and self._routings.of(shot) is None

    def decide(self, decided: Mapping[int, RoutingSpec]) -> bool:
        """Keep what a worker has decided of shots that are undecided. False where it decided otherwise than what is kept.

        Raises OSError.
        """
        if self._routings is None:
            return True
        for shot, routing in decided.items():
            if self._routings.of(shot) is None:
                self._routings.decide(shot, routing)
        return all(self._routings.of(shot) == routing for shot, routing in decided.items())

    def check(self) -> None:
        """Raises OSError where the input is not what it was."""
        check_input(self.reader, self.folder.manifest.asked)

    def end_of(self, scan: Scan) -> None:
        """Note what a scan that reached the end has told. Raises OSError."""
        if not self.folder.manifest.complete:
            manifest = self.folder.manifest.with_length(scan.length, scan.problem, scan.end, scan.exact)
            self.folder.update(manifest)
        self.scanned = True

    @property
    def decides(self) -> bool:
        """Whether routing is decided while it is made."""
        return self._routings is not None

    def rehearsal(self) -> Rehearsal:
        """What workers may practise before the first order."""
        manifest = self.folder.manifest
        plan = manifest.chunk_frames, manifest.tile, manifest.decode_plan
        return Rehearsal(self.reader.info, self.writer, *plan)

    def order(self, task: SegmentTask, attempt: int, run: str, less: int) -> Order:
        """For an attempt; ``run`` makes its file's name another than those of earlier runs. The clock begins with the first."""
        self._began = self._began or time.monotonic()
        file = self.folder.path / f"{segment_name(task.start.frame)}-{run}{attempt}"
        manifest = self.folder.manifest
        plan = manifest.chunk_frames, manifest.tile, manifest.decode_plan
        known = {} if self._routings is None else self._routings.within(task.start.shot, task.stop)
        return Order(attempt, self.request.source, task, file, self.writer, *plan, less, self._shared, known)

    def accept(self, record: SegmentRecord, spent: Spent) -> None:
        """Keep a finished segment. Raises OSError."""
        self.folder.add_finished(record)
        self._spent.append(spent)
        self._made = time.monotonic()

    def finish(self) -> Done:
        """Join the segments. Raises OSError or ValueError, one line; the segments stay."""
        self._made = self._made or time.monotonic()
        self._began = self._began or self._made  # nothing was missing
        with told_what_is_kept(self.folder):
            join(self.folder, self.request.target, self.size, self.reader, self.writer, self.request.notes)
        manifest, seconds = self.folder.manifest, time.monotonic() - self._began
        return Done(manifest.position.frame, *self.size, seconds, manifest.problem, self.kept)

    def times(self, started: float, done: Done) -> Times:
        """Of a film that is done; ``started``: when the job was (``time.monotonic``)."""
        making = self._made - self._began
        return Times(self._began - started, making, done.seconds - making, tuple(self._spent))

    def close(self) -> None:
        """Let go of the folder, which goes where nothing is in it."""
        if self.folder.path.exists() and not self.folder.manifest.finished:
            self.folder.remove()
        self.folder.__exit__(None, None, None)


def sized_for(upscaler: Upscaler, height: int, width: int, memories: Iterable[int | None]) -> Plan | None:
    """The plan that the smallest of unequal devices has memory for; None: as asked, also where all devices are alike.

    Like devices find out by themselves what fits, as a single one does, and full-size models are planned anyway
    (``jobs.fit``). ``memories``: free MiB; None: not told.
    """
    known = [m for m in memories if m is not None]
    if upscaler.remembers or not known or min(known) * 1.1 > max(known):
        return None
    found = upscaler
    while working_memory(found, found.settings.chunk_frames, height, width) > SHARE * min(known) * MIB:
        less = smaller(found, height, width)
        if less is None:
            break
        found = less
    return None if found is upscaler else (found.settings.chunk_frames, found.settings.tile)


def _size(plan: Plan) -> tuple[int, float]:
    return plan[0], float("inf") if plan[1] is None else plan[1]

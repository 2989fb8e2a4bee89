"""A video file in, a video file out, in constant memory: what the command line and the ComfyUI node both run.

Segment after segment is written beside the target and kept (``jobs``); at the end they are joined without encoding anew.
Reader and writer work in threads of their own beside the model.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from .beside_gpu import feeding
from .heap import reused
from .jobs.begin_and_end import check_input, join, open_video_job, output_size, told_what_is_kept, what_is_asked
from .jobs.fingerprint import hash_model
from .jobs.fit import device_budget, planned
from .jobs.folder import JobFolder
from .jobs.manifest import Border
from .jobs.overlap import PACKED_BYTES, RGB_BYTES, ReadAhead, WriteBehind, frames_waiting
from .jobs.packers import Packers
from .jobs.remembered import free_memory_mib, recall, remember
from .jobs.segment_files import Ready, SegmentFiles
from .jobs.segments import ends_segment
from .jobs.shrink import free_memory, is_out_of_memory, shrunk, told
from .jobs.stamps import noting_stamps, summed
from .pipeline import Poll, Upscaler
from .plan import Position
from .progress import Progress, Tally
from .routing.auto import ShotRoutings
from .video_io import KnownFrame, VideoReader, WriterSettings
from .video_io.packing import Packing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobSettings:
    """How a job is kept. Raises ValueError for a segment below 1 frame."""

    resume: bool = False
    """Go on with the unfinished job that is there; False: one that is there is an error."""
    segment_frames: int = 120
    """Frames at which a segment ends as soon as it can: what an interruption may cost. Each one starts with a key frame."""

    def __post_init__(self) -> None:
        if self.segment_frames < 1:
            raise ValueError(f"segment is {self.segment_frames} frames; it must be at least 1")


@dataclass(frozen=True)
class Done:
    """What a job came to."""

    frames: int
    width: int
    height: int
    seconds: float
    problem: str | None
    """One line where the input broke off."""
    kept: int = 0
    """Frames that an earlier attempt had made."""
    waited: float = 0.0
    """Seconds, of all, in which the model waited for reader or writer."""
    waited_for_reader: float = 0.0
    """Seconds of these."""
    reading: float = 0.0
    """Seconds in which the reader's thread worked, beside the model."""
    writing: float = 0.0
    """Likewise the writer's, the encoder's threads and what they wait for included."""
    joining: float = 0.0
    """Seconds at the end, after the model, in which segments were joined."""

    def __str__(self) -> str:
        kept = f", {self.kept} of them kept from before" if self.kept else ""
        return f"{self.frames} frames{kept}, {self.width}x{self.height}, {self.pace}"

    @property
    def pace(self) -> str:
        """Time and speed in words."""
        rate = (self.frames - self.kept) / self.seconds
        return f"{self.seconds:.1f} s, {rate:.2f} frames per second"


def upscale_video(
    reader: VideoReader,
    target: Path,
    upscaler: Upscaler,
    writer: WriterSettings,
    on_progress: Progress | None = None,
    poll: Poll | None = None,
    job: JobSettings = JobSettings(),
    show: Callable[[Tensor], None] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Done:
    """Upscale all that ``reader`` gives into ``target``; sound, clock and tags come along.

    Everything that can be refused is refused before the first frame is worked on. An error or interruption keeps the
    finished segments in ``<target>.oasis``; where there are none it leaves nothing behind. Out of memory is met with
    smaller chunks, then tiles, from the last finished segment on.

    Args:
        on_progress, poll: as in ``Upscaler.stream``.
        show: given finished frames ``(H, W, 3)`` as they come, where the model is.
        notes: text that the file carries as metadata (not PNG images), by name.

    Raises:
        ValueError, OSError: interlaced input of which nothing was said, a target that cannot be written or is the input
            itself, a job folder that does not fit, a disk that is full, an input that vanished; one line.
        MemoryError: not even single frames in the smallest tiles fit.
    """
    upscaler = upscaler.restarting(job.segment_frames)
    size = output_size(reader, upscaler)
    asked = what_is_asked(reader, upscaler, writer, hash_model(upscaler.model), job.segment_frames)
    with open_video_job(reader, target, size, writer, asked, job.resume) as folder:
        kept, began = folder.manifest.finished, time.monotonic()
        if isinstance(upscaler.routing, ShotRoutings):
            upscaler.routing.keep_in(folder.manifest.routings, folder.decide)
        work = _Work(reader, upscaler, writer, folder, size, job.segment_frames, on_progress, poll, show)
        with told_what_is_kept(folder):
            work.make_segments()
            joining = time.monotonic()
            join(folder, target, size, reader, writer, notes)
        manifest, ended = folder.manifest, time.monotonic()
        return Done(
            manifest.position.frame, *size, ended - began, manifest.problem, kept,
            work.waited, work.waited_for_reader, work.reading, work.writing, ended - joining,
        )  # fmt: skip


class _Work:
    """The segments of one job, from where it stands to the end."""

    def __init__(
        self, reader: VideoReader, upscaler: Upscaler, writer: WriterSettings, folder: JobFolder, size: tuple[int, int],
        full: int, on_progress: Progress | None, poll: Poll | None, show: Callable[[Tensor], None] | None,
    ) -> None:  # fmt: skip
        self.reader, self.writer, self.folder, self.size, self.full = reader, writer, folder, size, full
        self.asked, self.free = upscaler, free_memory_mib(upscaler)
        self.upscaler = upscaler
        if not folder.manifest.finished and folder.manifest.chunk_frames is None:
            self._recall()
        budget = device_budget(upscaler.model.project.weight.device)
        self.upscaler, manifest = planned(upscaler, folder.manifest, reader.info, budget)
        if manifest != folder.manifest:
            folder.update(manifest)
        self.on_progress, self.poll, self.show = on_progress, poll, show
        self.waited = self.waited_for_reader = self.reading = self.writing = 0.0
        self.shrunk = False

    def make_segments(self) -> None:
        """Until the manifest says that all are there."""
        while not self.folder.manifest.complete:
            try:
                self._go_on()
            except RuntimeError as e:
                if not is_out_of_memory(e):
                    raise
                self._shrink()
            free_memory()  # out of the except block: until here the error holds the frames of the failed call

        if self.shrunk:
            remember(self.asked, self.upscaler, self.reader.info.height, self.reader.info.width, self.free)

    def _recall(self) -> None:
        """Begin with the plan that worked for such a job before, where there is one."""
        found = recall(self.asked, self.reader.info.height, self.reader.info.width)
        if found is not None:
            s = found.settings
            log.warning("starting with %s: more ran out of memory on this device before", told(s))
            self._take(found)

    def _take(self, upscaler: Upscaler) -> None:
        s = upscaler.settings
        self.upscaler = upscaler
        self.folder.update(replace(self.folder.manifest, chunk_frames=s.chunk_frames, tile=s.tile))

    def _shrink(self) -> None:
        """Remember a smaller plan. Raises MemoryError where there is none."""
        had, info = self.upscaler.settings, self.reader.info
        upscaler = shrunk(self.upscaler, info.height, info.width)
        at = self.folder.manifest.position.frame
        log.warning("out of memory with %s: going on from frame %d with %s", told(had), at, told(upscaler.settings))
        self.shrunk = True
        self._take(upscaler)

    def _go_on(self) -> None:
        """From the last finished segment to the end, or to the next one that is finished already."""
        start, info = self.folder.manifest.position, self.reader.info
        first, manifest = self.upscaler.first_needed(start), self.folder.manifest
        known = [KnownFrame(s.start, s.pts, s.checksum) for s in manifest.segments] if manifest.exact else []
        stamps: deque[tuple[int, int]] = deque()
        files = SegmentFiles(self.folder, *self.size, info, self.writer)
        device = self.upscaler.model.project.weight.device.type
        try:
            with (
                reused(),
                feeding(device),
                Packers(Packing(*self.size, info, self.writer), device) as packers,
                ReadAhead(
                    summed(self.reader.frames(first, known)), frames_waiting(info.height, info.width, RGB_BYTES)
                ) as ahead,
                WriteBehind(files.consume, frames_waiting(self.size[1], self.size[0], PACKED_BYTES)) as behind,
            ):
                frames = noting_stamps(ahead, stamps, start.frame - first)
                behind.put(self._feed(frames, stamps, start, packers, behind))
            self.waited += ahead.waited + packers.waited + behind.waited
            self.waited_for_reader += ahead.waited
            self.reading, self.writing = self.reading + ahead.worked, self.writing + behind.worked
        finally:
            files.abort()

    def _feed(
        self,
        frames: Iterator[Tensor],
        stamps: deque[tuple[int, int]],
        start: Position,
        packers: Packers,
        behind: WriteBehind[Ready | Border],
    ) -> Border:
        """Upscale from ``start`` on; returns where that ended."""
        begun = at = start.frame
        stop = self.folder.manifest.gap_end
        tally = Tally(self.on_progress, self.reader.info.about, at)

        def finish(made: Tensor) -> Tensor:
            if self.show is not None:
                self.show(made[-1])
            return made if packers.finish is None else packers.finish(made)

        for part in self.upscaler.parts(frames, start, self.poll, tally, finish):
            at = part.position.frame
            if stop is not None and at >= stop:
                return Border(Position(stop, part.position.shot), exact=self.reader.exact)
            if part.restartable and ends_segment(at - begun, at == part.position.shot, self.full):
                behind.put(Border(part.position, exact=self.reader.exact))
                begun = at
            wanted = part.frames if stop is None else part.frames[: stop - at]
            for number, made in enumerate(wanted, at + 1):
                behind.put(Ready(packers.put(made, number), *stamps.popleft()))
            at += len(wanted)
            tally.finished(len(wanted))
            if len(wanted) < len(part.frames):
                return Border(Position(at, part.position.shot), exact=self.reader.exact)
        check_input(self.reader, self.folder.manifest.asked)
        return Border(Position(at, at), True, self.reader.problem, self.reader.end, self.reader.exact)

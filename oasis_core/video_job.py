"""A video file in, a video file out, in constant memory: what the command line and the ComfyUI node both run.

Segment after segment is written beside the target and kept (``jobs``); at the end they are joined without encoding anew.
Reader and writer work in threads of their own beside the model.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

import av
from torch import Tensor

from .jobs.fingerprint import hash_input, hash_model, hash_text
from .jobs.folder import JobFolder, job_path, open_job, read_manifest
from .jobs.manifest import Asked, Border
from .jobs.overlap import ReadAhead, WriteBehind
from .jobs.remembered import free_memory_mib, recall, remember
from .jobs.segment_files import Ready, SegmentFiles, join_images, join_segments
from .jobs.segments import ends_segment
from .jobs.shrink import free_memory, is_out_of_memory, shrunk, told, with_plan
from .pipeline import Poll, Upscaler
from .plan import Position
from .progress import Progress, Tally
from .video_io import Frame, KnownFrame, VideoReader, VideoWriter, WriterSettings
from .video_io.color_tags import HLG, PQ
from .video_io.writer import check_target

log = logging.getLogger(__name__)

READ_AHEAD = 4
"""Input frames that wait for the model."""
WRITE_BEHIND = 2
"""Output frames that wait for the encoder; four times enlarged they are 16 times larger."""


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

    def __str__(self) -> str:
        rate = (self.frames - self.kept) / self.seconds
        kept = f", {self.kept} of them kept from before" if self.kept else ""
        return f"{self.frames} frames{kept}, {self.width}x{self.height}, {self.seconds:.1f} s, {rate:.2f} frames per second"


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
        on_progress, poll: as in ``Upscaler.stream``; show: as in ``Upscaler.upscale``.
        notes: text that the file carries as metadata (not PNG images), by name.

    Raises:
        ValueError, OSError: interlaced input of which nothing was said, a target that cannot be written or is the input
            itself, a job folder that does not fit, a disk that is full, an input that vanished; one line.
        MemoryError: not even single frames in the smallest tiles fit.
    """
    source = reader.path
    if source.exists() and target.exists() and source.samefile(target):
        raise ValueError(f"output is the input itself ({target}); give another file")
    reader.check_progressive()
    upscaler = upscaler.restarting(job.segment_frames)
    geometry = upscaler.geometry(reader.info.height, reader.info.width)
    size = (geometry.out_w, geometry.out_h)
    _tell_depth(reader, writer)
    before = read_manifest(job_path(target)) if job.resume else None
    if before is None or not before.joining:  # else the images in it are this job's
        check_target(target, *size, writer)
    with open_job(target, what_is_asked(reader, upscaler, writer, job), job.resume) as folder:
        kept, began = folder.manifest.position.frame, time.monotonic()
        if kept:
            log.info("%d finished frames are kept; going on after them", kept)
        work = _Work(reader, upscaler, writer, folder, size, job.segment_frames, on_progress, poll, show)
        try:
            work.make_segments()
            if not folder.manifest.joined and writer.codec == "png":
                join_images(folder, target)
            elif not folder.manifest.joined:
                join_segments(folder, VideoWriter(target, *size, reader.info, writer, source, notes))
            folder.remove()
        except (OSError, av.FFmpegError) as e:
            raise OSError(_told(e, folder)) from e
        except ValueError as e:
            raise ValueError(_told(e, folder)) from e
        except KeyboardInterrupt as e:
            raise KeyboardInterrupt(_told(e, folder)) from None
        finally:
            if folder.path.exists() and not folder.manifest.segments:
                folder.remove()
        manifest, seconds = folder.manifest, time.monotonic() - began
        return Done(manifest.position.frame, *size, seconds, manifest.problem, kept, work.waited)


def _tell_depth(reader: VideoReader, writer: WriterSettings) -> None:
    depth = writer.depth_for(reader.info.bit_depth)
    if depth == 8 and reader.info.color.transfer in (PQ, HLG):
        log.warning("HDR in 8 bits shows bands: leave out --depth, or choose a codec of 10 bits")
    if depth > 8 and writer.codec == "h264":
        log.info(
            "the input has %d bits, so this is 10-bit H.264: more devices play --codec h265", reader.info.bit_depth
        )


def what_is_asked(reader: VideoReader, upscaler: Upscaler, writer: WriterSettings, job: JobSettings) -> Asked:
    """Everything that the output depends on, so that a job goes on only with the same."""
    settings = asdict(upscaler.settings)
    del settings["restart_frames"]  # the segments' length says it
    parts = {"input": hash_input(reader.path), "setting": settings, "output": asdict(writer)}
    asked: Asked = {f"{part}.{name}": _plain(value) for part, values in parts.items() for name, value in values.items()}
    asked["setting.segment_frames"] = job.segment_frames
    asked["input.rate"] = str(reader.info.rate)
    asked["input.deinterlace"] = None if reader.deinterlace is None else reader.deinterlace.value
    asked["model"] = hash_model(upscaler.model)
    asked["routing"] = hash_text(upscaler.routing.to_json())
    asked["encoder"] = ".".join(map(str, av.library_versions["libavcodec"]))
    return asked


def _plain(value: object) -> str | int | float | bool | None:
    value = value.value if isinstance(value, Enum) else value
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _told(error: BaseException, folder: JobFolder) -> str:
    frames = folder.manifest.position.frame
    text = " ".join(str(error).split())
    if not frames:
        return text
    kept = f"{frames} finished frames are kept in {folder.path}: go on with --resume"
    return f"{text}; {kept}" if text else kept


class _Work:
    """The segments of one job, from where it stands to the end."""

    def __init__(
        self, reader: VideoReader, upscaler: Upscaler, writer: WriterSettings, folder: JobFolder, size: tuple[int, int],
        full: int, on_progress: Progress | None, poll: Poll | None, show: Callable[[Tensor], None] | None,
    ) -> None:  # fmt: skip
        self.reader, self.writer, self.folder, self.size, self.full = reader, writer, folder, size, full
        self.asked, self.free = upscaler, free_memory_mib(upscaler)
        self.upscaler = with_plan(upscaler, folder.manifest.chunk_frames, folder.manifest.tile)
        if not folder.manifest.segments and folder.manifest.chunk_frames is None:
            self._recall()
        self.on_progress, self.poll, self.show = on_progress, poll, show
        self.waited, self.shrunk = 0.0, False

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
        """From the last finished segment to the end."""
        start, info = self.folder.manifest.position, self.reader.info
        first, manifest = self.upscaler.first_needed(start), self.folder.manifest
        known = [KnownFrame(s.start, s.pts, s.checksum) for s in manifest.segments] if manifest.exact else []
        stamps: deque[tuple[int, int]] = deque()
        files = SegmentFiles(self.folder, *self.size, info, self.writer)
        try:
            with (
                ReadAhead(self.reader.frames(first, known), READ_AHEAD) as ahead,
                WriteBehind(files.consume, WRITE_BEHIND) as behind,
            ):
                frames = _noting_stamps(ahead, stamps, start.frame - first)
                try:
                    end = self._feed(frames, stamps, start, behind)
                    last = self.reader
                    behind.put(Border(Position(end, end), True, last.problem, last.end, last.exact))
                finally:
                    self.waited += ahead.waited + behind.waited
        finally:
            files.abort()

    def _feed(
        self,
        frames: Iterator[Tensor],
        stamps: deque[tuple[int, int]],
        start: Position,
        behind: WriteBehind[Ready | Border],
    ) -> int:
        """Upscale from ``start`` on; returns the number of frames that the clip has."""
        begun = at = start.frame
        tally = Tally(self.on_progress, self.reader.info.about, at)
        for part in self.upscaler.parts(frames, start, self.poll, tally):
            at = part.position.frame
            if part.restartable and ends_segment(at - begun, at == part.position.shot, self.full):
                behind.put(Border(part.position, exact=self.reader.exact))
                begun = at
            for rgb in part.frames:
                behind.put(Ready(rgb, *stamps.popleft()))
            at += len(part.frames)
            tally.finished(len(part.frames))
            if self.show is not None:
                self.show(part.frames[-1])
        self._check_input()
        return at

    def _check_input(self) -> None:
        """Raises OSError where the input is not what it was: an end that was read may be none."""
        asked = self.folder.manifest.asked
        try:
            now = {f"input.{name}": value for name, value in hash_input(self.reader.path).items()}
        except (OSError, ValueError) as e:
            raise OSError(f"the input vanished while it was read ({e})") from None
        if any(asked[name] != value for name, value in now.items()):
            raise OSError(f"the input changed while it was read ({self.reader.path})")


def _noting_stamps(frames: Iterable[Frame], stamps: deque[tuple[int, int]], skip: int) -> Iterator[Tensor]:
    """The pictures; time stamps and checksums of all but the first ``skip`` go to ``stamps``."""
    for number, frame in enumerate(frames):
        if number >= skip:
            stamps.append((frame.pts, frame.checksum))
        yield frame.rgb

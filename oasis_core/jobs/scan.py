"""A first pass over an input that only looks for cuts: it tells the segments of a job while they come to light."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from ..pipeline import Upscaler
from ..plan import Position
from ..scene_cuts import SceneCutDetector
from ..video_io import KnownFrame, VideoReader
from .manifest import Manifest
from .segments import BorderFinder

ENTRY = 32
"""Frames before the first one needed at which a second way in is told: filters need some frames before theirs."""


@dataclass(frozen=True)
class SegmentTask:
    """What a worker must know to make one segment. Plain numbers."""

    start: Position
    stop: int
    """Frame after the last one."""
    next_shot: int
    """First frame of the shot that frame ``stop`` is in; of the last segment's own shot at the end of the input."""
    pts: int
    """Time stamp of the first frame."""
    checksum: int
    """``Frame.checksum`` of the first frame."""
    known: tuple[KnownFrame, ...]
    """Where the input can be entered."""

    @property
    def frames(self) -> int:
        return self.stop - self.start.frame

    @property
    def begins_inside(self) -> bool:
        """Whether its first frame is not the first of a shot."""
        return self.start.frame > self.start.shot

    def __str__(self) -> str:
        return f"frames {self.start.frame} to {self.stop - 1}"


class Scan:
    """Iterates the segments that ``manifest`` lacks, in the input's order; reads the input once.

    Attributes, after iterating:
        length, problem, end, exact: as ``Manifest.with_length`` takes them.

    Args:
        upscaler: its settings are the job's plan; the model is not run. Its routing is fixed: where that is decided as the
            clip runs, it is known before a segment begins inside a shot.
        full: frames at which a segment ends as soon as it can.
    """

    def __init__(self, reader: VideoReader, upscaler: Upscaler, manifest: Manifest, full: int) -> None:
        self.length = 0
        self.problem: str | None = None
        self.end: int | None = None
        self.exact = True
        self._reader, self._upscaler, self._manifest, self._full = reader, upscaler, manifest, full
        self._seen: dict[int, KnownFrame] = {}
        """Frames that a segment to come may need."""
        self._shots: list[int] = []
        """First frames, in order."""

    def __iter__(self) -> Iterator[SegmentTask]:
        if self._manifest.complete:
            return
        start = self._manifest.position
        up, factor = self._upscaler, self._upscaler.model.config.unshuffle[0]
        finder = BorderFinder(start, up.chunk, up.chunk_overlap, factor, self._full, up.restart_chunks)
        begun = start
        self._shots = [start.shot]
        for number, cut in self._frames(start):
            if number < start.frame:
                continue
            if cut and number > start.frame:
                self._shots.append(number)
            border = finder.add(cut)
            if border is not None:
                yield from self._tasks(begun, border.frame)
                begun = border
                self._forget(begun)
        reader = self._reader
        self.problem, self.end, self.exact = reader.problem, reader.end, reader.exact
        if self.length > begun.frame:
            yield from self._tasks(begun, self.length)

    def _frames(self, start: Position) -> Iterator[tuple[int, bool]]:
        """Number of each frame from some before ``start`` on, and whether it begins a shot."""
        first = max(0, self._upscaler.first_needed(start) - ENTRY)
        known = self._manifest.segments if self._manifest.exact else ()
        entries = [KnownFrame(s.start, s.pts, s.checksum) for s in known]
        detector = SceneCutDetector() if self._upscaler.settings.scene_cuts else None
        for number, frame in enumerate(self._reader.frames(first, entries), first):
            self._seen[number] = KnownFrame(number, frame.pts, frame.checksum)
            self.length = number + 1
            yield number, detector is not None and detector.begins_shot(frame.rgb)

    def _tasks(self, start: Position, stop: int) -> Iterator[SegmentTask]:
        """What is not finished of the segment from ``start`` to ``stop``."""
        for done in self._manifest.ahead:
            if done.stop <= start.frame:
                continue
            if done.start >= stop:
                break
            if done.start > start.frame:
                yield self._task(start, done.start)
            start = Position(done.stop, done.next_shot)
        if start.frame < stop:
            yield self._task(start, stop)

    def _task(self, start: Position, stop: int) -> SegmentTask:
        needed, own = self._upscaler.first_needed(start), self._seen[start.frame]
        entries = (max(0, needed - ENTRY) // 2 * 2, needed) if self._reader.exact else ()
        known = tuple(self._seen[n] for n in entries if n in self._seen)
        return SegmentTask(start, stop, self._shot_of(stop), own.pts, own.checksum, known)

    def _shot_of(self, number: int) -> int:
        """First frame of its shot, of those up to it."""
        return self._shots[bisect_right(self._shots, number) - 1]

    def _forget(self, begun: Position) -> None:
        needed = self._upscaler.first_needed(begun) - ENTRY - 2
        for number in [n for n in self._seen if n < needed]:
            del self._seen[number]

"""Frames into segment files, and segments into the target."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

from ..plan import Position
from ..video_io import VideoInfo, VideoWriter, WriterSettings
from ..video_io.joining import join_videos, packet_order, segment_suffix
from ..video_io.packing import Packed
from .fingerprint import hash_file
from .folder import JobFolder
from .manifest import Border, SegmentRecord


@dataclass(frozen=True)
class Ready:
    """One frame to write."""

    packed: Future[Packed]
    """What ``Packers`` make of it."""
    pts: int
    checksum: int
    """Of the input's frame."""


class SegmentFile:
    """The file (images: folder) of one segment, while it is written. Raises OSError or ValueError as ``VideoWriter`` does."""

    def __init__(
        self, path: Path, width: int, height: int, source: VideoInfo, settings: WriterSettings, start: int
    ) -> None:
        """``path`` without its ending; ``source``: facts of the whole input; ``start``: number of the first frame."""
        self._path = path.with_name(path.name + segment_suffix(settings.codec))
        self._size, self._source, self._settings, self._start = (width, height), source, settings, start
        self._writer: VideoWriter | None = None
        self._first: Ready | None = None
        self._began = time.monotonic()

    def write(self, item: Ready) -> None:
        """Add the next frame, once it is packed; the first one opens the file."""
        if self._writer is None:
            self._first = item
            source = replace(self._source, audio=(), start=item.pts * self._source.time_base)
            self._writer = VideoWriter(self._path, *self._size, source, self._settings).__enter__()
        self._writer.add(item.packed.result(), item.pts)

    def finish(self, end: Position) -> SegmentRecord:
        """Close the file before frame ``end.frame``."""
        assert self._writer is not None
        assert self._first is not None
        writer, self._writer = self._writer, None
        writer.__exit__(None, None, None)
        packets, reorder = (writer.written, 0) if writer.images else packet_order(writer.path)
        if (packets, writer.written) != (end.frame - self._start,) * 2:
            raise OSError(f"{writer.path} holds {packets} of {end.frame - self._start} frames: was the disk full?")
        return SegmentRecord(
            writer.path.name, self._start, end.frame, end.shot, self._first.pts, self._first.checksum,
            reorder, hash_file(writer.path), round(time.monotonic() - self._began, 3),
        )  # fmt: skip

    def abort(self) -> None:
        """Remove what is not finished."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            error = InterruptedError("unfinished segment")
            writer.__exit__(type(error), error, None)


class SegmentFiles:
    """Consumes frames and borders in order; each finished segment is recorded in the job's manifest."""

    def __init__(self, folder: JobFolder, width: int, height: int, source: VideoInfo, settings: WriterSettings) -> None:
        self._folder, self._size, self._settings, self._source = folder, (width, height), settings, source
        self._file = self._next()

    def _next(self) -> SegmentFile:
        start = self._folder.manifest.position.frame
        return SegmentFile(self._folder.path / segment_name(start), *self._size, self._source, self._settings, start)

    def consume(self, item: Ready | Border) -> None:
        """Raises OSError or ValueError as ``VideoWriter`` does."""
        if isinstance(item, Border):
            self._folder.add(self._file.finish(item.position), item)
            self._file = self._next()
        else:
            self._file.write(item)

    def abort(self) -> None:
        """Remove the segment that is not finished."""
        self._file.abort()


def segment_name(start: int) -> str:
    """Without its ending; ``start``: number of its first frame."""
    return f"segment_{start:07d}"


def join_segments(folder: JobFolder, writer: VideoWriter) -> None:
    """Put the finished segments together in ``writer``'s target (not opened yet), without encoding anew.

    Raises OSError or ValueError as ``VideoWriter`` does; the segments stay.
    """
    manifest = folder.manifest
    join_videos([(folder.path / s.name, s.pts, s.reorder) for s in manifest.segments], writer, manifest.end)
    folder.update(replace(folder.manifest, joined=True))


def join_images(folder: JobFolder, target: Path) -> None:
    """Move the images of all segments into the folder ``target``; goes on where it was interrupted. Raises OSError."""
    folder.update(replace(folder.manifest, joining=True))
    _move_images(folder, target)
    folder.update(replace(folder.manifest, joined=True))


def _move_images(folder: JobFolder, target: Path) -> None:
    joined = folder.path / "joined"
    if not joined.exists() and (target / f"frame_{folder.manifest.position.frame - 1:05d}.png").exists():
        return  # interrupted right after the last step below
    joined.mkdir(exist_ok=True)
    for segment in folder.manifest.segments:
        for number in range(segment.stop - segment.start):
            image = folder.path / segment.name / f"frame_{number:05d}.png"
            place = joined / f"frame_{segment.start + number:05d}.png"
            if image.exists() or not place.exists():
                os.replace(image, place)
    if target.is_dir():
        target.rmdir()  # empty: check_target saw to it
    os.replace(joined, target)

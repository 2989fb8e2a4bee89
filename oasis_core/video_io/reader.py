"""Frames out of a video file, a folder of images or a numbered image pattern; one at a time."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import torch
from torch import Tensor

from .color_tags import ColorTags, yuv_to_rgb
from .decoding import Decoding, last_duration, missing_end
from .deinterlace import WARM_UP, Deinterlace, deinterlaced, deinterlaced_info
from .images import IMAGES, image_sequence
from .info import describe, first_frames, open_video, video_stream
from .orientation import upright
from .planes import layout_of, read_planes, read_rgb
from .seeking import KnownFrame, frames_from, nearest, seek

__all__ = ["IMAGES", "Frame", "VideoReader", "image_sequence", "to_rgb"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """One picture, upright."""

    rgb: Tensor
    """``(H, W, 3)`` float32, nominally [0, 1]: values as the file's transfer function encodes them (gamma, PQ, HLG), a YUV
    video's also a little outside; nothing is clipped."""
    pts: int
    """Time stamp in units of the info's ``time_base``."""

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of every fourth row and column: tells whether a frame was decoded as it was before."""
        return zlib.crc32(np.ascontiguousarray(self.rgb.numpy()[::4, ::4]).data)


class VideoReader:
    """Iterates a video's frames in display order, in constant memory.

    A folder (or a pattern such as ``frame_%05d.png``) is read as an image sequence at ``fps``.

    Args:
        deinterlace: what becomes of fields; None: nothing, and ``check_progressive`` refuses interlaced video.

    Attributes:
        info: what the file says of itself, deinterlaced where that is asked for.
        problem: after iterating, one line where the end of the file could not be decoded; else None.
        end: after iterating, the time stamp at which the last frame ends.
        exact: False once a time stamp was missing or out of order, or something damaged: frames cannot be found by time.

    Raises:
        FileNotFoundError: no such input. ValueError: not a video, no frames, a colour matrix that cannot be read, or
            ``fps`` where it has no place.
    """

    def __init__(self, path: Path, fps: Fraction | None = None, deinterlace: Deinterlace | None = None) -> None:
        self.path, self.deinterlace = path, deinterlace
        self.problem: str | None = None
        self.end: int | None = None
        self.exact = True
        self.images = image_sequence(path)
        if fps is not None and self.images is None:
            raise ValueError(f"a frame rate was given ({fps}), but {path} is a video with its own; leave it out")
        file = path if self.images is None else self.images[0]
        with open_video(file) as container:
            info = describe(container, video_stream(container), first_frames(file, container))
        if self.images is not None:
            rate = fps or Fraction(24)
            info = replace(info, frames=len(self.images), rate=rate, time_base=1 / rate, audio=(), start=Fraction(0))
        self._stored = info
        self._filter = deinterlace if deinterlace is not None and deinterlace.filters else None
        self.info = info if self._filter is None else deinterlaced_info(info, self._filter)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def check_progressive(self) -> None:
        """Raises ValueError where the video is interlaced and nothing was said of it."""
        if self._stored.interlaced and self.deinterlace is None:
            raise ValueError(
                f"{self.path} is interlaced: set deinterlace (--deinterlace) to frame (one frame for two fields), field "
                "(one for each, twice the rate), or none if it is progressive and its tags are wrong"
            )

    def frames(self, first: int = 0, known: Sequence[KnownFrame] = ()) -> Iterator[Frame]:
        """The frames from number ``first`` on.

        Decoding begins near the last of ``known`` that is not after it, else at the beginning, since only there frames
        can be counted. The frames are the same.

        Args:
            known: frames of an earlier pass that was ``exact``.
        """
        place = nearest(known, first)
        if place is None:
            yield from map(self._frame, self._pictures(first, known))
            return
        pictures = self._pictures(place.number, known)
        found = next(pictures, None)
        frame = None if found is None else self._frame(found)
        if frame is None or (frame.pts, frame.checksum) != (place.pts, place.checksum):
            log.warning("%s decodes otherwise from its middle: decoding it from the start", self.path)
            yield from map(self._frame, self._pictures(first, ()))
            return
        if place.number == first:
            yield frame
        yield from map(self._frame, islice(pictures, max(0, first - place.number - 1), None))

    def _frame(self, found: tuple[av.VideoFrame, int]) -> Frame:
        picture, pts = found
        rgb = torch.from_numpy(to_rgb(picture, self.info.color))
        return Frame(upright(rgb, self.info.rotation, self.info.mirrored), pts)

    def pictures(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """All frames as they are stored (any pixel format, not turned), with their time stamps."""
        return self._pictures(0, ())

    def _pictures(self, first: int, known: Sequence[KnownFrame]) -> Iterator[tuple[av.VideoFrame, int]]:
        self.problem, self.end, self.exact = None, None, True
        if self._filter is None:
            yield from self._stored_pictures(first, known)
            return
        each = self._filter.frames
        begin = max(0, first // each - WARM_UP)
        stored = [KnownFrame(k.number // each, k.pts // each, k.checksum) for k in known if k.number % each == 0]
        pictures = deinterlaced(self._stored_pictures(begin, stored), self._stored, self._filter)
        yield from islice(pictures, first - begin * each, None)

    def _stored_pictures(self, first: int, known: Sequence[KnownFrame]) -> Iterator[tuple[av.VideoFrame, int]]:
        """Before deinterlacing; ``known`` likewise."""
        if self.images is not None:
            yield from self._of_one_size(self._from_images(self.images, first), first)
            return
        place = nearest(known, first)
        pictures = None if place is None else self._from_middle(place)
        if place is None or pictures is None:
            if place is not None:
                log.info("%s cannot be entered in the middle: decoding it from the start", self.path)
            place, pictures = None, self._from_start()
        begin = 0 if place is None else place.number
        yield from islice(self._of_one_size(pictures, begin), first - begin, None)

    def _of_one_size(
        self, pictures: Iterator[tuple[av.VideoFrame, int]], first: int
    ) -> Iterator[tuple[av.VideoFrame, int]]:
        size: tuple[int, int] | None = None
        for number, (picture, pts) in enumerate(pictures, first + 1):
            size = size or (picture.width, picture.height)
            if (picture.width, picture.height) != size:
                self.problem = (
                    f"{self.path}: frame {number} is {picture.width}x{picture.height} after {size[0]}x{size[1]}; "
                    f"the {number - 1} frames before it were used"
                )
                return
            yield picture, pts

    def _from_images(self, files: list[Path], first: int) -> Iterator[tuple[av.VideoFrame, int]]:
        for number, file in enumerate(files[first:], first):
            try:
                with open_video(file) as container:
                    picture = first_frames(file, container, 1)[0]
            except (OSError, ValueError) as e:
                if number == 0:
                    raise
                self.problem = f"{e}; the {number} images before it were used"
                return
            self._ends(number + 1)
            yield picture, number

    def _from_start(self) -> Iterator[tuple[av.VideoFrame, int]]:
        with open_video(self.path) as container:
            stream = video_stream(container)
            decoding = Decoding(container.demux(stream), stream)
            yield from self._in_order(decoding, iter(decoding), stream, 0)

    def _from_middle(self, place: KnownFrame) -> Iterator[tuple[av.VideoFrame, int]] | None:
        """From frame ``place`` on; None where it cannot be found."""
        container = open_video(self.path)
        stream = video_stream(container)
        key, packets = seek(container, stream, place.pts) or (0, iter(()))
        decoding = Decoding(packets, stream)
        frames = frames_from(decoding, key, place.pts)
        if frames is None:
            container.close()
            return None

        def going_on(frames: Iterator[av.VideoFrame]) -> Iterator[tuple[av.VideoFrame, int]]:
            with container:
                yield from self._in_order(decoding, frames, stream, place.number)

        return going_on(frames)

    def _in_order(
        self, decoding: Decoding, frames: Iterator[av.VideoFrame], stream: av.VideoStream, count: int
    ) -> Iterator[tuple[av.VideoFrame, int]]:
        """With time stamps that ascend; ``count`` frames lie before."""
        last: int | None = None
        length = 0
        info, told = self._stored, self._stored.interlaced or self.deinterlace is not None
        step = max(1, round(1 / (info.rate * info.time_base)))
        for frame in frames:
            pts = frame.pts if frame.pts is not None else (0 if last is None else last + step)
            if last is not None and pts <= last:  # broken time stamps: keep the order, catch up where they are right
                pts = last + 1
            self.exact = self.exact and pts == frame.pts and not decoding.damaged
            last, count = pts, count + 1
            length = getattr(frame, "duration", None) or step  # PyAV 12 has no durations
            if frame.interlaced_frame and not told:
                told = True
                log.warning("%s is interlaced from %.2f s on; see --deinterlace", self.path, pts * info.time_base)
            yield frame, pts
        ended = None if last is None else (last + length) * info.time_base
        lost = decoding.lost() or missing_end(stream, info, count, ended)
        if last is not None:
            self._ends(last + (length if lost else last_duration(stream, last, length)))
        if lost:
            self.problem = f"{self.path}: {lost}; what could be decoded was used"

    def _ends(self, pts: int) -> None:
        self.end = pts * (1 if self._filter is None else self._filter.frames)


def to_rgb(frame: av.VideoFrame, tags: ColorTags) -> np.ndarray:
    """``(H, W, 3)`` float32: chroma interpolated to full size, then the matrix and range that the tags say."""
    name = frame.format.name
    layout = layout_of(name, frame.width, frame.height)
    if not layout.yuv:
        return read_rgb(frame)
    return yuv_to_rgb(read_planes(frame, centred=name.startswith("yuvj")), tags, layout.depth)

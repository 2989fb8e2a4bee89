"""What a video file says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from .color_tags import UNSPECIFIED, ColorTags
from .hdr import Hdr10, hdr10_of
from .orientation import orientation
from .planes import depth_of, is_yuv

TEXT_DEMUXERS = ("tty", "srt", "ass", "webvtt", "lrc")
"""What FFmpeg takes a text file for: it would render one as a picture of a terminal."""
LOOK = 8
"""Frames that are looked at for fields: titles may be progressive in interlaced video."""
LONGEST_SIDE = 16384
"""Pixels; a damaged header asks for more, and for all memory with it."""
ATTACHED_PICTURE = 0x400
"""FFmpeg's AV_DISPOSITION_ATTACHED_PIC: the cover of an audio file."""


@dataclass(frozen=True)
class VideoInfo:
    """A video's first video stream, as a viewer sees it."""

    width: int
    """Pixels, after rotation."""
    height: int
    frames: int | None
    """Where the file tells, else None."""
    rate: Fraction
    """Average frames per second."""
    time_base: Fraction
    """Unit of time stamps, seconds."""
    rotation: int
    """Degrees counter-clockwise that the reader turns the stored picture by: 0, 90, 180 or 270."""
    sample_aspect: Fraction
    """Width of a pixel over its height, after rotation; kept, never resampled."""
    pixel_format: str
    bit_depth: int
    color: ColorTags
    audio: tuple[str, ...]
    """Codec of each audio stream."""
    mirrored: bool = False
    """Whether the reader also mirrors the turned picture, left to right."""
    start: Fraction = Fraction(0)
    """Second at which the file's clock starts (transport streams: anywhere); the writer makes it 0 for picture and sound."""
    interlaced: bool = False
    """Whether one of the first frames says that it is two fields."""

    duration: float | None = None
    """Seconds that the file says it lasts; None where it does not."""

    hdr10: Hdr10 | None = None
    """Static HDR metadata, where the first frame has some."""

    @property
    def about(self) -> int | None:
        """Frames, to show progress by: as told, or by duration and rate; None where neither is known."""
        if self.frames or self.duration is None:
            return self.frames
        return max(1, round(self.duration * self.rate))

    @property
    def seconds(self) -> float | None:
        return float(self.frames / self.rate) if self.frames else None


def probe(path: Path) -> VideoInfo:
    """Facts of a video; its first frame is decoded (rotation lies there).

    Raises:
        FileNotFoundError: no such file. ValueError: not a video, or no frame in it. One line each.
    """
    with open_video(path) as container:
        return describe(container, video_stream(container), first_frames(path, container))


def open_video(path: Path) -> av.container.InputContainer:
    """Open for reading; the caller closes it. Raises FileNotFoundError or ValueError, one line each."""
    if not path.exists():
        raise FileNotFoundError(f"input not found: {path}")
    try:
        # Absolute, and files only: a name is never taken for a protocol, a play list never followed into the network.
        container = av.open(str(path.resolve()), container_options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError) as e:
        raise ValueError(f"{path} is not a video that can be read ({_short(e)}); give a video file") from None
    if container.format.name in TEXT_DEMUXERS:
        container.close()
        raise ValueError(f"{path} is text and not a video; give a video file")
    if not _pictures(container):
        container.close()
        raise ValueError(f"{path} has no video stream; give a video file")
    video_stream(container).thread_type = "AUTO"
    return container


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first video stream that is no cover picture; ``open_video`` saw to it that there is one."""
    return _pictures(container)[0]


def _pictures(container: av.container.InputContainer) -> list[av.VideoStream]:
    return [
        s for s in container.streams.video if s.codec_context is not None and not s.disposition.value & ATTACHED_PICTURE
    ]


def first_frames(path: Path, container: av.container.InputContainer, count: int = LOOK) -> list[av.VideoFrame]:
    """Decode the first ``count`` frames, or as many as there are. Raises ValueError where there is none."""
    found: list[av.VideoFrame] = []
    try:
        for frame in container.decode(video_stream(container)):
            found.append(frame)
            if len(found) == count:
                break
    except av.FFmpegError as e:
        if not found:
            raise ValueError(f"{path} has no frame that can be decoded ({_short(e)})") from None
    if not found:
        raise ValueError(f"{path} has no frames; give a video with at least one")
    return found


def describe(container: av.container.InputContainer, stream: av.VideoStream, frames: list[av.VideoFrame]) -> VideoInfo:
    """Facts from the stream and its first frames. Raises ValueError for frames or a colour matrix that cannot be read."""
    frame = frames[0]
    if max(frame.width, frame.height) > LONGEST_SIDE:
        raise ValueError(
            f"{container.name} has frames of {frame.width}x{frame.height}; a side can have {LONGEST_SIDE} pixels at most"
        )
    rotation, mirrored = orientation(frame)
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if rotation % 180:
        width, height, aspect = height, width, 1 / aspect
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    context = stream.codec_context  # PyAV 16 has no primaries on frames
    matrix = frame.colorspace if is_yuv(frame.format) else UNSPECIFIED
    try:
        tags = ColorTags.of(
            matrix, frame.color_range, int(context.color_primaries), int(context.color_trc), frame.height
        )
    except ValueError as e:
        raise ValueError(f"{container.name} cannot be used: {e}") from None
    if frame.format.name.startswith("yuvj"):
        tags = ColorTags(tags.matrix, True, tags.primaries, tags.transfer)
    audio = tuple(s.codec_context.name for s in container.streams.audio if s.codec_context is not None)
    start = Fraction(max(0, container.start_time or 0), av.time_base)
    return VideoInfo(
        width, height, stream.frames or None, rate, stream.time_base or 1 / rate, rotation, aspect,
        frame.format.name, depth_of(frame.format), tags, audio, mirrored, start,
        any(f.interlaced_frame for f in frames),
        duration=container.duration / av.time_base if container.duration else None,
        hdr10=hdr10_of(frame),
    )  # fmt: skip


def _short(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error).split("]")[-1].strip(" :'") or type(error).__name__

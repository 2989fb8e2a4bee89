"""What a video file says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from .color_tags import ColorTags


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

    @property
    def seconds(self) -> float | None:
        return float(self.frames / self.rate) if self.frames else None


def probe(path: Path) -> VideoInfo:
    """Facts of a video; its first frame is decoded (rotation lies there).

    Raises:
        FileNotFoundError: no such file. ValueError: not a video, or no frame in it. One line each.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        first = first_frame(path, container)
        return describe(container, stream, first)


def open_video(path: Path) -> av.container.InputContainer:
    """Open for reading; the caller closes it. Raises FileNotFoundError or ValueError, one line each."""
    if not path.exists():
        raise FileNotFoundError(f"input not found: {path}")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as e:
        raise ValueError(f"{path} is not a video that can be read ({_short(e)}); give a video file") from None
    if not container.streams.video:
        container.close()
        raise ValueError(f"{path} has no video stream; give a video file")
    container.streams.video[0].thread_type = "AUTO"
    return container


def first_frame(path: Path, container: av.container.InputContainer) -> av.VideoFrame:
    """Decode one frame. Raises ValueError where there is none."""
    try:
        for frame in container.decode(video=0):
            return frame
    except av.FFmpegError as e:
        raise ValueError(f"{path} has no frame that can be decoded ({_short(e)})") from None
    raise ValueError(f"{path} has no frames; give a video with at least one")


def describe(container: av.container.InputContainer, stream: av.VideoStream, frame: av.VideoFrame) -> VideoInfo:
    """Facts from the stream and its first frame."""
    rotation = round(frame.rotation / 90) * 90 % 360
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if rotation % 180:
        width, height, aspect = height, width, 1 / aspect
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    depth = max((c.bits for c in frame.format.components), default=8)
    tags = ColorTags.of(
        frame.colorspace, frame.color_range, int(frame.color_primaries), int(frame.color_trc), frame.height
    )
    if frame.format.name.startswith("yuvj"):
        tags = ColorTags(tags.matrix, True, tags.primaries, tags.transfer)
    audio = tuple(s.codec_context.name for s in container.streams.audio)
    return VideoInfo(
        width, height, stream.frames or None, rate, stream.time_base or 1 / rate, rotation, aspect,
        frame.format.name, depth, tags, audio,
    )  # fmt: skip


def _short(error: BaseException) -> str:
    return str(error).split("]")[-1].strip(" :'") or type(error).__name__

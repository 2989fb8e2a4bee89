"""Frames into a video file or a folder of PNG images; the result appears whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from torch import Tensor

from .audio import AudioTracks
from .color_tags import BT601, BT709, HD_HEIGHT, LUMA_WEIGHTS, UNSPECIFIED, ColorTags, rgb_to_codes
from .info import VideoInfo
from .planes import is_yuv, make_frame

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Codec:
    """An encoder, where it may go, and what it takes."""

    encoder: str
    containers: tuple[str, ...]
    formats: tuple[str, ...]
    """Pixel formats: for even sizes, then (where there is one) for odd ones."""
    depth: int
    crf: int | None
    """Default quality; None: the codec has no such scale."""
    options: tuple[tuple[str, str], ...] = ()


CODECS = {
    "h264": Codec("libx264", (".mp4", ".mov", ".mkv", ".avi"), ("yuv420p", "yuv444p"), 8, 16, (("preset", "medium"),)),
    "h265": Codec("libx265", (".mp4", ".mov", ".mkv"), ("yuv420p", "yuv444p"), 8, 18, (("x265-params", "log-level=error"),)),
    "av1": Codec("libsvtav1", (".mp4", ".mkv", ".webm"), ("yuv420p",), 8, 24, (("preset", "6"),)),
    "prores": Codec("prores_ks", (".mov", ".mkv"), ("yuv422p10le", "yuv444p10le"), 10, None, (("profile", "3"),)),
    "ffv1": Codec("ffv1", (".mkv", ".avi"), ("bgr0", "bgr0"), 8, None, (("level", "3"), ("g", "1"))),
    "png": Codec("png", (), ("rgb24", "rgb24"), 8, None),
}  # fmt: skip
"""By the name that users give. ffv1 and png are lossless."""
SMALLEST = {"h265": 64, "av1": 64}
"""Smallest frame side that the encoder can be trusted with (x265 corrupts memory on frames under its blocks of 64)."""

SEGMENT_CONTAINER = ".nut"
"""Where pieces of a job go (``joining``), beside a codec's own containers: not offered to users."""


@dataclass(frozen=True)
class WriterSettings:
    """What a user chooses for the file.

    Raises:
        ValueError: unknown codec, or a quality outside 0 to 51 (63 for av1).
    """

    codec: str = "h264"
    crf: int | None = None
    """Constant rate factor, lower is better: 0 to 51 (av1: 63); None: the codec's default."""

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ValueError(f"codec is {self.codec!r}; allowed: {', '.join(CODECS)}")
        most = 63 if self.codec == "av1" else 51
        if self.crf is not None and CODECS[self.codec].crf is None:
            raise ValueError(f"crf is {self.crf}, but {self.codec} has no such quality scale; leave it out")
        if self.crf is not None and not 0 <= self.crf <= most:
            raise ValueError(f"crf is {self.crf}; it must be from 0 (best) to {most} for {self.codec}")


class VideoWriter:
    """Writes frames with the source's time stamps, pixel aspect, colour tags and audio.

    Writes beside the target under a temporary name; leaving the ``with`` block without an error puts it in place.

    Args:
        path: target file; for codec "png" a folder that does not exist yet or is empty.
        width, height: of the frames to come.
        source: the input's facts (rate, time base, pixel aspect, colour).
        notes: text that the file carries as metadata, by name (not images).
        audio_from: file whose audio is copied (re-encoded only where the container cannot hold its codec).

    Raises:
        ValueError: the codec cannot go into that container, or cannot hold that size.
        OSError: the target cannot be written (folder missing, not writable, is a folder).
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        source: VideoInfo,
        settings: WriterSettings,
        audio_from: Path | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.size, self.source, self.settings = path, (height, width), source, settings
        self.codec = CODECS[settings.codec]
        check_target(path, width, height, settings)
        self.images = settings.codec == "png"
        self.part = path.with_name(f"{path.stem}.part{path.suffix}")
        self.tags = _output_tags(source, height)
        self.first_pts = round(source.start / source.time_base)
        self.written = 0
        self._copied = False
        self._notes = notes or {}
        self._container: av.container.OutputContainer | None = None
        self._audio: AudioTracks | None = None
        self._audio_from = audio_from if source.audio else None

    def __enter__(self) -> VideoWriter:
        try:
            if self.images:
                self.part.mkdir()
            else:
                self._open()
        except (av.FFmpegError, OSError) as e:
            self._discard()
            raise OSError(f"cannot write {self.path} ({e}); choose another place or codec") from None
        return self

    def _open(self) -> None:
        flags = (
            "+faststart+use_metadata_tags" if self._notes else "+faststart"
        )  # else MP4 keeps the names it knows only
        options = {"movflags": flags} if self.path.suffix.lower() in (".mp4", ".mov") else {}
        self._container = av.open(str(self.part), "w", options=options)
        self._container.metadata.update(self._notes)
        stream = self._container.add_stream(self.codec.encoder, rate=self.source.rate, options=dict(self.codec.options))
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        height, width = self.size
        stream.width, stream.height = width, height
        self._pix_fmt = context.pix_fmt = pixel_format(self.settings.codec, width, height)
        context.time_base = self.source.time_base
        context.sample_aspect_ratio = self.source.sample_aspect
        crf = self.settings.crf if self.settings.crf is not None else self.codec.crf
        if crf is not None:
            stream.options = {**dict(self.codec.options), "crf": str(crf)}
        if context.pix_fmt != "bgr0":
            context.colorspace, context.color_range = self.tags.matrix, 2 if self.tags.full_range else 1
            context.color_primaries, context.color_trc = self.tags.primaries, self.tags.transfer
        if self.settings.codec == "h265" and self.path.suffix.lower() in (".mp4", ".mov"):
            context.codec_tag = "hvc1"  # Apple's players show no other
        self._stream = stream
        if self._audio_from is not None:
            self._audio = AudioTracks(self._audio_from, self._container, self.source.start)

    def write(self, frames: Tensor, pts: list[int]) -> None:
        """Add frames ``(n, H, W, 3)`` in [0, 1] with their time stamps in the source's time base."""
        if tuple(frames.shape[1:]) != (*self.size, 3) or len(pts) != len(frames):
            raise ValueError(
                f"frames are {tuple(frames.shape)} with {len(pts)} time stamps; expected (n, {self.size}, 3)"
            )
        if not frames.isfinite().all():
            raise ValueError(f"frames {self.written + 1} to {self.written + len(frames)} hold NaN or infinite values")
        for rgb, stamp in zip(frames.float().clamp(0, 1).cpu().numpy(), pts, strict=True):
            if self.images:
                av.VideoFrame.from_ndarray(_eight_bit(rgb), format="rgb24").save(
                    str(self.part / f"frame_{self.written:05d}.png")
                )
            else:
                self._encode(rgb, stamp)
            self.written += 1

    def _encode(self, rgb: np.ndarray, pts: int) -> None:
        assert self._container is not None
        frame = self._frame(rgb)
        frame.pts, frame.time_base = pts - self.first_pts, self.source.time_base
        self._container.mux(self._stream.encode(frame))
        if self._audio is not None:
            self._audio.copy_until(float(frame.pts * self.source.time_base))

    def copy(self, packet: av.Packet, pts: int, dts: int) -> None:
        """Add an encoded frame of the same encoder and settings, with its time stamps in the source's time base.

        Raises OSError where it cannot be written. Frames are either all copied or all encoded.
        """
        assert self._container is not None
        packet.time_base, packet.duration = self.source.time_base, 0
        packet.pts, packet.dts = pts - self.first_pts, dts - self.first_pts
        packet.stream = self._stream
        try:
            self._container.mux(packet)
        except av.FFmpegError as e:
            raise OSError(f"cannot write {self.path} ({e.strerror or e})") from None
        self.written, self._copied = self.written + 1, True
        if self._audio is not None:
            self._audio.copy_until(float((pts - self.first_pts) * self.source.time_base))

    def _frame(self, rgb: np.ndarray) -> av.VideoFrame:
        """In the encoder's pixel format."""
        if self._pix_fmt == "bgr0":
            return av.VideoFrame.from_ndarray(_eight_bit(rgb), format="rgb24").reformat(format="bgr0")
        codes = rgb_to_codes(rgb, self.tags, self.codec.depth)
        frame = make_frame(codes, self._pix_fmt, centred=False)
        frame.colorspace, frame.color_range = self.tags.matrix, 2 if self.tags.full_range else 1
        return frame

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._finish()
        except BaseException:
            self._discard()
            raise

    def _finish(self) -> None:
        if not self.written:
            raise ValueError(f"no frames came for {self.path}; nothing is written")
        if self._container is not None:
            packets = [] if self._copied else self._stream.encode(None)
            if self.settings.codec == "h265" and self.written <= 2:
                for packet in packets:  # x265 leaves their decoding times to chance (measured: PyAV 17 and 18)
                    packet.dts = packet.pts
            self._container.mux(packets)
            if self._audio is not None:
                self._audio.copy_until(None)
                self._audio.close()
            self._container.close()
            self._container = None
        if self.images and self.path.is_dir():
            self.path.rmdir()  # empty: check_target saw to it
        os.replace(self.part, self.path)

    def _discard(self) -> None:
        """Remove what was begun."""
        if self._audio is not None:
            self._audio.close()
        if self._container is not None:
            try:
                self._container.close()
            except (av.FFmpegError, OSError, ValueError) as e:  # a half-made file may not close well; it goes anyway
                log.debug("closing the unfinished file: %s", e)
            self._container = None
        if self.part.is_dir():
            shutil.rmtree(self.part, ignore_errors=True)
        else:
            self.part.unlink(missing_ok=True)


def check_target(path: Path, width: int, height: int, settings: WriterSettings) -> None:
    """Refuse before any work what could not be written. Raises ValueError or OSError as ``VideoWriter`` says."""
    codec, name = CODECS[settings.codec], settings.codec
    if not path.parent.is_dir():
        raise OSError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise OSError(f"cannot write {path}: the folder {path.parent} is not writable")
    if name == "png":
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise OSError(f"cannot write the images to {path}: it exists and is not an empty folder")
        return
    if path.is_dir():
        raise OSError(f"cannot write {path}: it is a folder; give a file name such as {path / 'upscaled.mp4'}")
    if path.suffix.lower() not in (*codec.containers, SEGMENT_CONTAINER):
        fits = [f"{n} ({', '.join(c.containers)})" for n, c in CODECS.items() if c.containers]
        raise ValueError(
            f"{name} does not go into {path.suffix or 'a file without ending'}; possible: {'; '.join(fits)}"
        )
    if min(width, height) < SMALLEST.get(name, 0):
        raise ValueError(
            f"{name} cannot hold {width}x{height}; each side must be at least {SMALLEST[name]}: use h264 or ffv1"
        )
    chosen = pixel_format(name, width, height)
    if chosen != codec.formats[0] and path.suffix.lower() != SEGMENT_CONTAINER:
        log.info("%dx%d has an odd side: written as %s, which some players do not show", width, height, chosen)


def pixel_format(codec: str, width: int, height: int) -> str:
    """The format for that size: subsampled where sizes allow, otherwise one that holds odd sides (never a crop)."""
    formats = CODECS[codec].formats
    odd = width % 2 or (height % 2 and "420" in formats[0])
    if not odd:
        return formats[0]
    if len(formats) < 2:
        raise ValueError(
            f"{codec} cannot hold the odd size {width}x{height}; use h264, h265, ffv1 or an even target size"
        )
    return formats[1]


def _output_tags(source: VideoInfo, height: int) -> ColorTags:
    """The source's matrix and tags, full range only for what came from YUV; RGB sources get the usual matrix."""
    tags = source.color
    yuv = is_yuv(av.VideoFormat(source.pixel_format))
    if yuv and tags.matrix in LUMA_WEIGHTS and tags.primaries != UNSPECIFIED:
        return tags
    matrix = BT709 if height >= HD_HEIGHT else BT601
    return ColorTags(matrix, yuv and tags.full_range, matrix, matrix)


def _eight_bit(rgb: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.rint(rgb * 255).astype(np.uint8))


def as_fraction(value: str) -> Fraction:
    """Frames per second as users write them: 24, 23.976 or 24000/1001. Raises ValueError with the range."""
    try:
        rate = Fraction(value)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"frame rate is {value!r}; give a number such as 24, 23.976 or 24000/1001") from None
    if not 0 < rate <= 1000:
        raise ValueError(f"frame rate is {value}; it must be above 0 and at most 1000")
    return rate

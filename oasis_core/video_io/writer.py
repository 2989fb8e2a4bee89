"""Frames into a video file or a folder of PNG images; the result appears whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
from torch import Tensor

from ..outputs import check_folder
from .encoders import CODECS, SMALLEST, WriterSettings, pixel_format
from .info import VideoInfo
from .packing import Packed, Packing
from .tracks import SourceTracks

log = logging.getLogger(__name__)

SEGMENT_CONTAINER = ".nut"
"""Where pieces of a job go (``joining``), beside a codec's own containers: not offered to users."""


class VideoWriter:
    """Writes frames with the source's time stamps, pixel aspect, depth, colour tags, audio, subtitles and chapters.

    Writes beside the target under a temporary name; leaving the ``with`` block without an error puts it in place.

    Args:
        path: target file; for codec "png" a folder that does not exist yet or is empty.
        width, height: of the frames to come.
        source: the input's facts (rate, time base, pixel aspect, depth, colour).
        audio_from: file whose audio, subtitles and chapters are copied (``tracks`` says what becomes of those that the
            container cannot hold).
        notes: text that the file carries as metadata, by name (not images).

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
        self.path, self.source, self.settings = path, source, settings
        self.codec = CODECS[settings.codec]
        check_target(path, width, height, settings)
        self.packing = Packing(width, height, source, settings)
        self.images = self.packing.images
        self.part = path.with_name(f"{path.stem}.part{path.suffix}")
        self.first_pts = round(source.start / source.time_base)
        self.written = 0
        self._copied = False
        self._notes = notes or {}
        self._container: av.container.OutputContainer | None = None
        self._tracks: SourceTracks | None = None
        self._tracks_from = audio_from if audio_from is not None and audio_from.is_file() else None

    @property
    def sums_durations(self) -> bool:
        """Whether the container (MP4's family) tells a video's length by the sum of its packets' times between decodings."""
        return self.path.suffix.lower() in (".mp4", ".mov")

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
        flags = "+faststart+use_metadata_tags" if self._notes else "+faststart"  # else MP4 keeps known names alone
        options = {"movflags": flags} if self.sums_durations else {}
        self._container = av.open(str(self.part), "w", options=options)
        self._container.metadata.update(self._notes)
        settings = self._encoder_options()
        stream = self._container.add_stream(self.codec.encoder, rate=self.source.rate, options=dict(settings))
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        stream.height, stream.width = self.packing.size
        context.pix_fmt = self.packing.pixel_format
        context.time_base = self.source.time_base
        context.sample_aspect_ratio = self.source.sample_aspect
        stream.options = dict(settings)
        context.colorspace, context.color_range = self.packing.matrix, self.packing.color_range
        context.color_primaries, context.color_trc = self.packing.tags.primaries, self.packing.tags.transfer
        if self.codec.frame_threads:
            context.thread_type = "FRAME"  # PyAV's choice, slices, keeps few cores busy and costs bits
        if self.settings.codec == "h265" and self.sums_durations:
            context.codec_tag = "hvc1"  # Apple's players show no other
        self._stream = stream
        if self._tracks_from is not None:
            self._tracks = SourceTracks(self._tracks_from, self._container, self.source.start)

    def _encoder_options(self) -> dict[str, str]:
        crf = self.settings.crf if self.settings.crf is not None else self.codec.crf
        asked = {"crf": None if crf is None else str(crf), "preset": self.settings.encoder_preset}
        found = dict(self.codec.options) | {name: value for name, value in asked.items() if value is not None}
        for name, text in self.source.hdr10.parameters(self.settings.codec).items() if self.source.hdr10 else ():
            found[name] = f"{found[name]}:{text}" if name in found else text
        return found

    def write(self, frames: Tensor, pts: list[int]) -> None:
        """Add frames ``(n, H, W, 3)`` in [0, 1] with their time stamps in the source's time base."""
        if frames.ndim != 4 or len(pts) != len(frames):
            raise ValueError(f"frames are {tuple(frames.shape)} with {len(pts)} time stamps; expected (n, H, W, 3)")
        for rgb, stamp in zip(frames.cpu(), pts, strict=True):
            self.add(self.packing(rgb, self.written + 1), stamp)

    def add(self, packed: Packed, pts: int) -> None:
        """Add one frame that is packed already."""
        if isinstance(packed, bytes):
            (self.part / f"frame_{self.written:05d}.png").write_bytes(packed)
        else:
            assert self._container is not None
            packed.pts, packed.time_base = pts - self.first_pts, self.source.time_base
            self._container.mux(self._stream.encode(packed))
            if self._tracks is not None:
                self._tracks.copy_until(float(packed.pts * self.source.time_base))
        self.written += 1

    def copy(self, packet: av.Packet, pts: int, dts: int, duration: int = 0) -> None:
        """Add an encoded frame of the same encoder and settings, with its time stamps in the source's time base.

        ``duration``: how long it is shown; 0: not known.

        Raises OSError where it cannot be written. Frames are either all copied or all encoded.
        """
        assert self._container is not None
        packet.time_base, packet.duration = self.source.time_base, duration
        packet.pts, packet.dts = pts - self.first_pts, dts - self.first_pts
        packet.stream = self._stream
        try:
            self._container.mux(packet)
            if self._tracks is not None:
                self._tracks.copy_until(float((pts - self.first_pts) * self.source.time_base))
        except av.FFmpegError as e:
            raise OSError(f"cannot write {self.path} ({e.strerror or e})") from None
        self.written, self._copied = self.written + 1, True

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
            if self._tracks is not None:
                self._tracks.copy_until(None)
                self._tracks.close()
            self._container.close()
            self._container = None
        if self.images and self.path.is_dir():
            self.path.rmdir()  # empty: check_target saw to it
        os.replace(self.part, self.path)

    def _discard(self) -> None:
        """Remove what was begun."""
        if self._tracks is not None:
            self._tracks.close()
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
    check_folder(path)
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
    depth = min(codec.formats)
    chosen = pixel_format(name, depth, width, height)
    if chosen != codec.formats[depth][0] and path.suffix.lower() != SEGMENT_CONTAINER:
        log.info("%dx%d has an odd side: written as %s, which some players do not show", width, height, chosen)


def as_fraction(value: str) -> Fraction:
    """Frames per second as users write them: 24, 23.976 or 24000/1001. Raises ValueError with the range."""
    try:
        rate = Fraction(value)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"frame rate is {value!r}; give a number such as 24, 23.976 or 24000/1001") from None
    if not 0 < rate <= 1000:
        raise ValueError(f"frame rate is {value}; it must be above 0 and at most 1000")
    return rate

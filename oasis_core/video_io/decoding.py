"""Decoding that gets past damage, and tells what was lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

import av

from .info import VideoInfo

TOLERANCE = Fraction(1, 50)
"""Share of a file's announced length that may be missing: headers are rounded, edit lists cut."""
LEAST_MISSING = 2
"""Frames that may be missing in any case."""


class Decoding:
    """Iterates a stream's frames in display order; a packet that cannot be decoded is left out and counted."""

    def __init__(self, packets: Iterator[av.Packet], stream: av.VideoStream) -> None:
        self._packets = packets
        self._stream = stream
        self._damaged = 0
        self._broken: str | None = None

    def __iter__(self) -> Iterator[av.VideoFrame]:
        while True:
            try:
                packet = next(self._packets)
            except StopIteration:
                return
            except av.FFmpegError as e:
                self._broken = e.strerror or type(e).__name__
                yield from self._decode(None)  # what the decoder still holds
                return
            yield from self._decode(packet)

    @property
    def damaged(self) -> bool:
        return self._damaged > 0

    def forget(self) -> None:
        """What was damaged so far does not count."""
        self._damaged = 0

    def lost(self) -> str | None:
        """What could not be read, in part of a line; None: nothing."""
        parts = []
        if self._damaged:
            parts.append(f"{self._damaged} damaged packets or frames")
        if self._broken is not None:
            parts.append(f"reading stopped early ({self._broken})")
        return ", ".join(parts) or None

    def _decode(self, packet: av.Packet | None) -> Iterator[av.VideoFrame]:
        real = packet is not None and packet.size > 0
        try:
            frames = self._stream.decode(packet)
        except av.FFmpegError:  # draining twice is an error too, but no damage
            self._damaged += real
            return
        corrupt = sum(frame.is_corrupt for frame in frames)
        self._damaged += corrupt or (real and packet is not None and packet.is_corrupt)
        yield from frames


def missing_end(stream: av.VideoStream, info: VideoInfo, frames: int, ended: Fraction | None) -> str | None:
    """Whether ``frames`` pictures that end at second ``ended`` fall short of what the header announces, in part of a line.

    MP4 announces both: an edit list hides frames, and a last frame may be long, but who lacks frames and time is cut off.
    """
    announced = _announced(stream)
    if announced is None or ended is None:
        return None
    begin = (stream.start_time or 0) * (stream.time_base or info.time_base)
    missing = announced - (ended - begin)
    if missing <= max(LEAST_MISSING / info.rate, announced * TOLERANCE):
        return None
    if info.frames and info.frames - frames <= max(Fraction(LEAST_MISSING), info.frames * TOLERANCE):
        return None
    return f"the file is cut off after {float(ended - begin):.2f} of {float(announced):.2f} seconds"


def _announced(stream: av.VideoStream) -> Fraction | None:
    """Seconds of pictures by the header: where it counts frames (MP4) the stream's, or Matroska's statistics of the track."""
    if stream.frames and stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    found = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if found is None:
        return None
    hours, minutes, seconds = found.groups()
    return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)


def last_duration(stream: av.VideoStream, pts: int, own: int) -> int:
    """How long a video's last frame is shown, in the stream's time base.

    In MP4 a frame's ``own`` duration is the time to the next one to decode: there it is what the stream lasts beyond it.
    """
    if stream.frames and stream.duration:
        rest = (stream.start_time or 0) + stream.duration - pts
        if rest > 0:
            return int(rest)
    return own

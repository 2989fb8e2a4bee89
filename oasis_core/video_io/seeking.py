"""Going on in the middle of a video: from a key frame before a frame whose number and time stamp are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import av

from .decoding import Decoding

STEPS_BACK = (0, 1, 5, 25)
"""Seconds before the wanted frame that a seek aims at, one after the other: containers find key frames by decoding time,
and where frames are reordered that one may be shown too late."""


@dataclass(frozen=True)
class KnownFrame:
    """What an earlier pass over a video has told of a frame."""

    number: int
    """Its place in display order, from 0."""
    pts: int
    """Its time stamp in the reader's time base."""
    checksum: int
    """``Frame.checksum``: what is found at that time is decoded as it was."""


def nearest(known: Iterable[KnownFrame], first: int) -> KnownFrame | None:
    """The last of ``known`` that is not after frame ``first``; None where that is the beginning or there is none."""
    return max((k for k in known if 0 < k.number <= first), key=lambda k: k.number, default=None)


def seek(
    container: av.container.InputContainer, stream: av.VideoStream, pts: int
) -> tuple[int, Iterator[av.Packet]] | None:
    """A key frame that is shown at ``pts`` or before: its time stamp, and the packets from it on.

    None: the file cannot be entered in the middle (no index, no time stamps on its packets).
    """
    for seconds in STEPS_BACK:
        back = 0 if stream.time_base is None else round(seconds / stream.time_base)
        try:
            container.seek(pts - back, stream=stream)
            packets = container.demux(stream)
            key = next((p for p in packets if p.is_keyframe and p.size), None)
        except av.FFmpegError:
            return None
        if key is not None and key.pts is not None and key.pts <= pts:
            return key.pts, chain([key], packets)
    return None


def frames_from(decoding: Decoding, key: int, pts: int) -> Iterator[av.VideoFrame] | None:
    """The frames from time stamp ``pts`` on, of packets that begin with the key frame at ``key``.

    None where there is no frame at exactly that time, or the key frame is not whole by itself (intra refresh).
    """
    frames = iter(decoding)
    begun = False
    for frame in frames:
        if frame.pts is None or frame.pts > pts:
            return None
        if frame.pts >= key and not begun:
            begun = frame.pts == key and frame.pict_type == av.video.frame.PictureType.I
            if not begun:
                return None
        if frame.pts == pts:
            decoding.forget()  # frames before it may lack what they refer to
            return chain([frame], frames)
    return None

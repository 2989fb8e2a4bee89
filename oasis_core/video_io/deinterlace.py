"""Fields into frames, by FFmpeg's bwdif filter (motion-adaptive; Weston 3-field and w3fdif taps)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import Enum
from fractions import Fraction

import av

from .info import VideoInfo

WARM_UP = 2
"""Frames before one that decide about it: the filter looks one back and one ahead."""


class Deinterlace(str, Enum):
    """What to do with interlaced video."""

    FRAME = "frame"
    """One frame for each two fields: the rate stays."""
    FIELD = "field"
    """One frame for each field: twice the rate, motion as smooth as it was shot."""
    NONE = "none"
    """Nothing: fields are left interleaved (right for progressive video that is tagged as interlaced)."""

    @classmethod
    def of(cls, name: str) -> Deinterlace:
        """The mode of that name. Raises ValueError that lists the names."""
        try:
            return cls(name)
        except ValueError:
            raise ValueError(f"deinterlace is {name!r}; allowed: {', '.join(m.value for m in cls)}") from None

    @property
    def filters(self) -> bool:
        return self is not Deinterlace.NONE

    @property
    def frames(self) -> int:
        """Frames that come of one."""
        return 2 if self is Deinterlace.FIELD else 1


def deinterlaced_info(info: VideoInfo, mode: Deinterlace) -> VideoInfo:
    """Facts of the video that comes out."""
    n = mode.frames
    return replace(info, rate=info.rate * n, time_base=info.time_base / n, frames=info.frames and info.frames * n)


def deinterlaced(
    pictures: Iterable[tuple[av.VideoFrame, int]], info: VideoInfo, mode: Deinterlace
) -> Iterator[tuple[av.VideoFrame, int]]:
    """Frames (not turned) with their time stamps in ``info.time_base``; out in ``deinterlaced_info``'s.

    One frame for two fields: where the file says that it is interlaced, only frames that say so are touched; else, and
    with one for each field (so that every frame gives two), all of them.
    """
    base = deinterlaced_info(info, mode).time_base
    graph: av.filter.Graph | None = None
    for picture, pts in pictures:
        if graph is None:
            graph = _graph(picture, info, mode)
        picture.pts, picture.time_base = pts, info.time_base
        graph.vpush(picture)
        yield from _pull(graph, base)
    if graph is not None:
        graph.vpush(None)
        yield from _pull(graph, base)


def _graph(picture: av.VideoFrame, info: VideoInfo, mode: Deinterlace) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=info.time_base
    )
    which = "interlaced" if info.interlaced and mode is Deinterlace.FRAME else "all"
    fields = graph.add("bwdif", f"mode=send_{mode.value}:parity=auto:deint={which}")
    sink = graph.add("buffersink")
    source.link_to(fields)
    fields.link_to(sink)
    graph.configure()
    return graph


def _pull(graph: av.filter.Graph, base: Fraction) -> Iterator[tuple[av.VideoFrame, int]]:
    while True:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        assert isinstance(frame, av.VideoFrame)
        assert frame.pts is not None
        assert frame.time_base is not None
        yield frame, round(frame.pts * frame.time_base / base)

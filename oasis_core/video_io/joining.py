"""Videos of one encoder, one after the other in one file: packets are copied, nothing is encoded anew."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av

from .writer import SEGMENT_CONTAINER, VideoWriter

PACKETS_ALONE = {"codec_whitelist": "none"}
"""Of the demuxer: no frame is decoded to find out what a stream holds (20 of the 23 ms that opening a segment took)."""


def segment_suffix(codec: str) -> str:
    """Ending of a segment of that codec: NUT keeps any time base exactly, but holds no ProRes; images: none."""
    return {"png": "", "prores": ".mov"}.get(codec, SEGMENT_CONTAINER)


def packet_order(path: Path) -> tuple[int, int]:
    """Packets of a video, and how many places a packet may come before its frame's turn (0: no B-frames).

    Raises OSError where the file cannot be read.
    """
    stamps = _stamps(path, Fraction(1, 10**9))
    ranks = {pts: rank for rank, pts in enumerate(sorted(stamps))}
    return len(stamps), max((number - ranks[pts] for number, pts in enumerate(stamps)), default=0)


def join_videos(segments: Sequence[tuple[Path, int, int]], writer: VideoWriter, end: int | None = None) -> None:
    """Write all segments into ``writer``'s target, which is opened and finished here.

    Decoding times are made anew over the whole: the k-th packet's is the (k - reorder)-th smallest time stamp.

    Args:
        segments: file, first frame's time stamp (in the writer's source's time base) and ``packet_order``'s reorder.
        end: time stamp at which the last frame ends, likewise; None: not known.

    Raises:
        OSError: a segment or the target; ValueError as ``VideoWriter`` does.
    """
    base = writer.source.time_base
    delay = max(reorder for _, _, reorder in segments)
    step = max(1, round(1 / (writer.source.rate * base)))
    first = segments[0][1]
    # A segment's last frame is shown until the next one begins.
    ends = [*(start for _, start, _ in segments[1:]), end]
    decoding = deque(first - step * (delay - i) for i in range(delay))
    with writer:
        for (path, start, _), stop in zip(segments, ends, strict=True):
            stamps = _stamps(path, base)
            shift = start - min(stamps)
            shown = sorted(pts + shift for pts in stamps)
            decoding.extend(shown)
            stop = shown[-1] + step if stop is None else stop
            lengths = dict(zip(shown, (b - a for a, b in pairwise([*shown, stop])), strict=True))
            with _open(path) as container:
                for number, (packet, pts) in enumerate(zip(_packets(container), stamps, strict=True), 1):
                    dts, length = decoding.popleft(), lengths[pts + shift]
                    if writer.sums_durations and number == len(stamps):
                        # Samples last from one decoding to the next, and the last one so long that they reach the end.
                        length = max(length, stop - first - (dts - (first - step * delay)))
                    writer.copy(packet, pts + shift, dts, length)


def _stamps(path: Path, base: Fraction) -> list[int]:
    """Time stamps of a video's packets, as they lie in the file, in units of ``base`` seconds."""
    with _open(path) as container:
        return [round((p.pts or 0) * p.time_base / base) for p in _packets(container)]


def _packets(container: av.container.InputContainer) -> Iterator[av.Packet]:
    return (p for p in container.demux(video=0) if p.size)  # the last one is empty: it says that the file is over


@contextmanager
def _open(path: Path) -> Iterator[av.container.InputContainer]:
    try:
        with av.open(str(path), options=dict(PACKETS_ALONE)) as container:
            yield container
    except av.FFmpegError as e:
        raise OSError(f"{path} cannot be read ({e.strerror or e})") from None

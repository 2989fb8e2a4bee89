"""Frames on their way to the model, and what of them the writer needs again on the other side."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from torch import Tensor

from ..video_io import Frame


def noting_stamps(frames: Iterable[Frame], stamps: deque[tuple[int, int]], skip: int) -> Iterator[Tensor]:
    """The pictures; time stamps and checksums of all but the first ``skip`` go to ``stamps``."""
    for number, frame in enumerate(frames):
        if number >= skip:
            stamps.append((frame.pts, frame.checksum))
        yield frame.rgb


def summed(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The same with their checksums, in the thread that reads them: the model's has other work."""
    for frame in frames:
        _ = frame.checksum
        yield frame

"""A video file in, a video file out, in constant memory: what the command line and the ComfyUI node both run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .pipeline import Progress, Upscaler
from .video_io import VideoReader, VideoWriter, WriterSettings
from .video_io.writer import check_target


@dataclass(frozen=True)
class Done:
    """What a job came to."""

    frames: int
    width: int
    height: int
    seconds: float
    problem: str | None
    """One line where the input broke off."""

    def __str__(self) -> str:
        rate = self.frames / self.seconds
        return f"{self.frames} frames, {self.width}x{self.height}, {self.seconds:.1f} s, {rate:.2f} frames per second"


def upscale_video(
    reader: VideoReader,
    target: Path,
    upscaler: Upscaler,
    writer: WriterSettings,
    on_progress: Progress | None = None,
    poll: Callable[[], None] | None = None,
) -> Done:
    """Upscale all that ``reader`` gives into ``target``; sound, clock and tags come along.

    Everything that can be refused is refused before the first frame is worked on.

    Args:
        on_progress, poll: as in ``Upscaler.stream``.

    Raises:
        ValueError, OSError: a target that cannot be written, or is the input itself; one line.
    """
    source = reader.path
    if source.exists() and target.exists() and source.samefile(target):
        raise ValueError(f"output is the input itself ({target}); give another file")
    geometry = upscaler.geometry(reader.info.height, reader.info.width)
    check_target(target, geometry.out_w, geometry.out_h, writer)
    stamps: deque[int] = deque()

    def frames() -> Iterator[Tensor]:
        for frame in reader:
            stamps.append(frame.pts)
            yield frame.rgb

    began, count = time.monotonic(), 0
    with VideoWriter(target, geometry.out_w, geometry.out_h, reader.info, writer, source) as file:
        for part in upscaler.stream(frames(), reader.info.frames, on_progress, poll):
            file.write(part, [stamps.popleft() for _ in part])
            count += len(part)
    return Done(count, geometry.out_w, geometry.out_h, time.monotonic() - began, reader.problem)

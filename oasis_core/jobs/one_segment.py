"""One segment of a job, made by itself: frame for frame what a single pass over the whole input gives there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ..beside_gpu import feeding
from ..heap import reused
from ..pipeline import Poll, Upscaler
from ..plan import Position
from ..progress import Progress, Tally
from ..video_io import VideoReader, WriterSettings
from ..video_io.packing import Packing
from .manifest import SegmentRecord
from .overlap import PACKED_BYTES, RGB_BYTES, ReadAhead, WriteBehind, frames_waiting
from .packers import Packers
from .scan import SegmentTask
from .segment_files import Ready, SegmentFile
from .stamps import noting_stamps, summed

AtModel = Callable[[Callable[[], int]], int]
"""Runs what it is given where and when the model is free for it, and gives what that gives."""


@reused()  # to the end: what the encoder frees serves the next segment's, where segments overlap
def make_segment(
    reader: VideoReader,
    upscaler: Upscaler,
    task: SegmentTask,
    path: Path,
    writer: WriterSettings,
    on_progress: Progress | None = None,
    poll: Poll | None = None,
    at_model: AtModel = lambda work: work(),
) -> SegmentRecord:
    """Write the segment's file, or nothing where an error ends it.

    Reading begins at once, and encoding goes on after the model is done: with ``at_model``, while it makes other segments.

    Args:
        upscaler: with the plan that ``task`` was made for, or a smaller one: then the frames are close to, not exactly those
            of that plan.
        path: without its ending.
        on_progress: told of this segment's frames alone.
        poll: as in ``Upscaler.stream``.
        at_model: runs the model's part.

    Raises:
        OSError, ValueError: input, model's output or disk; one line.
    """
    geometry = upscaler.geometry(reader.info.height, reader.info.width)
    start = task.start.frame
    first = upscaler.first_needed(task.start)
    stamps: deque[tuple[int, int]] = deque()
    file = SegmentFile(path, geometry.out_w, geometry.out_h, reader.info, writer, start)
    tally = Tally(on_progress, task.frames)
    device = upscaler.model.project.weight.device.type
    try:
        with (
            feeding(device),
            Packers(Packing(geometry.out_w, geometry.out_h, reader.info, writer), device) as packers,
            WriteBehind(file.write, frames_waiting(geometry.out_h, geometry.out_w, PACKED_BYTES)) as behind,
            ReadAhead(  # the last one: it ends while the writer still works
                summed(reader.frames(first, task.known)), frames_waiting(geometry.in_h, geometry.in_w, RGB_BYTES)
            ) as ahead,
        ):
            frames = noting_stamps(ahead, stamps, start - first)

            def work() -> int:
                at = start
                with (
                    feeding(device),  # where the model works may be another thread
                    closing(upscaler.parts(frames, task.start, poll, tally, packers.finish)) as parts,  # type: ignore[type-var]
                ):
                    for part in parts:
                        if at == start and stamps[0] != (task.pts, task.checksum):
                            raise ValueError(
                                f"{reader.path}: frame {start} is not what it was when the job was planned"
                            )
                        wanted = part.frames[: task.stop - at]
                        for number, made in enumerate(wanted, at + 1):
                            behind.put(Ready(packers.put(made, number), *stamps.popleft()))
                        at += len(wanted)
                        tally.finished(len(wanted))
                        if at == task.stop:
                            break
                return at

            at = at_model(work)
        if at < task.stop:
            raise OSError(f"{reader.path} ends before frame {at}; planned were {task}")
        return file.finish(Position(task.stop, task.next_shot))
    finally:
        file.abort()

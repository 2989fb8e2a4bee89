"""Where a job is divided into segments. Pure integers, the same for every worker and every attempt.

A segment can only begin where a stream can (``pipeline.Part.restartable``): at the start of a shot, or of a chunk in it,
where discarded warm-up frames (``plan.warm_up_start``) bring the cross-fade into the state that it had. With a decoder that
remembers, only every so many chunks (``Upscaler.restart_chunks``, ``every`` below; None: at the start of a shot alone).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..patchify import frame_count, latent_length
from ..plan import Position, plan_chunks, warm_up_start


@dataclass(frozen=True)
class Segment:
    """Frames start.frame, ..., stop - 1."""

    start: Position
    stop: int
    needed: int
    """First frame that the model must see to make it (earlier ones where colour correction has a memory)."""


class BorderFinder:
    """``plan_segments`` for an input whose length and cuts come to light frame by frame.

    Args:
        start: where the first segment begins; chunks of its shot are counted from there.
        size, overlap, factor, full, every: as for ``plan_segments``.
    """

    def __init__(self, start: Position, size: int, overlap: int, factor: int, full: int, every: int | None = 1) -> None:
        self._overlap, self._factor, self._full = overlap, factor, full
        self._stride = None if every is None else every * (size - overlap)
        self._begun, self._frame, self._shot = start.frame, start.frame, start.shot
        inside = start.frame - start.shot
        self._next = self._after(latent_length(inside, factor) if inside else 0)

    def add(self, begins_shot: bool) -> Position | None:
        """Take the next frame; the end of a segment that has become certain with it, if one has.

        ``begins_shot`` says nothing new of the very first frame and is not looked at there.
        """
        frame, self._frame = self._frame, self._frame + 1
        if begins_shot and frame != self._begun:
            self._shot, self._next = frame, self._after(0)
            return self._end(Position(frame, frame))
        if self._next is None or self._next + self._overlap >= latent_length(frame - self._shot + 1, self._factor):
            return None
        found = Position(self._shot + frame_count(self._next, self._factor), self._shot)
        self._next = self._after(self._next)
        return self._end(found)

    def _after(self, latent: int) -> int | None:
        """Next place in the shot where a stream can begin; None: there is none."""
        return None if self._stride is None else latent + self._stride

    def _end(self, found: Position) -> Position | None:
        if not ends_segment(found.frame - self._begun, found.frame == found.shot, self._full):
            return None
        self._begun = found.frame
        return found


def ends_segment(held: int, begins_shot: bool, full: int) -> bool:
    """Whether a segment of ``held`` frames ends where a stream can begin: full, or half full and the place is a cut."""
    return held >= full or (begins_shot and 2 * held >= full)


def plan_segments(
    length: int, cuts: Iterable[int], size: int, overlap: int, factor: int, full: int, every: int | None = 1
) -> tuple[Segment, ...]:
    """The segments of a clip whose length and cuts are known; streamed, a job comes to the same ones.

    Args:
        cuts: frames that begin a shot (0 does in any case).
        size, overlap: of chunks, in latent frames of ``factor`` frames.
        full: frames at which a segment ends as soon as it can.
        every: chunks of a shot after which a stream can begin; None: never inside a shot.

    Raises:
        ValueError: no frames, or ``full`` below 1.
    """
    if length < 1 or full < 1:
        raise ValueError(f"clip has {length} frames and a segment {full}; both must be at least 1")
    starts = sorted({0, *(c for c in cuts if 0 < c < length)})
    borders = [Position()]
    for shot, end in zip(starts, [*starts[1:], length], strict=True):
        for place in _chunk_starts(end - shot, size, overlap, factor)[::every] if every else [0]:
            position = Position(shot + place, shot)
            held = position.frame - borders[-1].frame
            if ends_segment(held, position.frame == shot, full):
                borders.append(position)
    stops = [*(b.frame for b in borders[1:]), length]
    return tuple(
        Segment(b, stop, warm_up_start(b, size, overlap, factor)) for b, stop in zip(borders, stops, strict=True)
    )


def _chunk_starts(frames: int, size: int, overlap: int, factor: int) -> list[int]:
    """Frames of a shot at which its chunks take over."""
    chunks = plan_chunks(latent_length(frames, factor), size, overlap)
    latents = [number * (size - overlap) for number in range(len(chunks))]
    return [frame_count(latent, factor) if latent else 0 for latent in latents]

"""Where a job is cut: chunks in time, tiles in space. Pure integers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil


@dataclass(frozen=True, order=True)
class Span:
    """Positions start, ..., stop - 1."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def times(self, factor: int) -> Span:
        """The same stretch in units that are ``factor`` times finer."""
        return Span(self.start * factor, self.stop * factor)


@dataclass(frozen=True, order=True)
class Position:
    """A frame at which a stream can begin: the start of a shot, or of a chunk in it."""

    frame: int = 0
    shot: int = 0
    """First frame of its shot."""


def warm_up_start(position: Position, size: int, overlap: int, factor: int, memory: int = 0) -> int:
    """First frame that the model must see so that the frames from ``position`` on come out as if it had seen them all.

    Inside a shot that is the chunk before, into which a last chunk may be moved back, and with an ``overlap`` of more than
    half a chunk all those that reach past the start of the one at ``position``: each is cross-faded with what the one before it
    made of the same frames. ``size`` and ``overlap`` in latent frames, ``factor`` frames to each (a shot's first frame has one
    of its own). ``memory``: frames before ``position`` that must come out so too; more chunks where it does not fit.
    """
    if position.frame == position.shot:
        return position.frame
    latent = 1 + (position.frame - position.shot - 1) // factor
    stride = size - overlap
    # Chunk k before this one ends ``size - k * stride`` after this one's start: more than 0 for those that reach past it.
    reaching = max(1, ceil(overlap / stride))
    before = latent - stride * (reaching + ceil(memory / (factor * stride)))
    return position.shot if before <= 0 else position.shot + 1 + factor * (before - 1)


def plan_chunks(length: int, size: int, overlap: int) -> tuple[Span, ...]:
    """Pieces of ``size`` that cover 0..length, neighbours sharing ``overlap`` positions.

    The last piece is moved back to full size (so it may share more). One piece where length <= size.

    Raises:
        ValueError: length or size below 1, overlap negative or not below size.
    """
    if length < 1 or size < 1:
        raise ValueError(f"length is {length} and piece size {size}; both must be at least 1")
    if not 0 <= overlap < size:
        raise ValueError(f"overlap is {overlap}; it must be from 0 to {size - 1} (below the piece's size {size})")
    if length <= size:
        return (Span(0, length),)
    starts = range(0, length - overlap, size - overlap)
    return tuple(Span(min(s, length - size), min(s, length - size) + size) for s in starts)


def plan_tiles(height: int, width: int, tile: int, overlap: int) -> tuple[tuple[Span, Span], ...]:
    """Rows x columns of square tiles of side ``tile``; 0 means one tile, the whole frame.

    Raises:
        ValueError: negative tile, or overlap not below the tile.
    """
    if tile < 0:
        raise ValueError(f"tile is {tile}; it must be 0 (whole frame) or a positive size")
    if tile == 0:
        return ((Span(0, height), Span(0, width)),)
    rows, columns = plan_chunks(height, tile, overlap), plan_chunks(width, tile, overlap)
    return tuple((r, c) for r in rows for c in columns)


def plan_calls(span: Span, most: int, stride: int, shared: int) -> tuple[Span, ...]:
    """Pieces of ``span`` of up to ``most`` positions, cut where a chunk begins and where what it shares with the last one ends.

    So they are the same in a stream that begins with any of the chunks, which follow each other by ``stride``.

    Raises:
        ValueError: most or stride below 1.
    """
    if most < 1 or stride < 1:
        raise ValueError(f"at most {most} positions by {stride}; both must be at least 1")
    cuts = [p for p in range(span.start + 1, span.stop) if p % stride in (0, shared % stride)]
    borders = [span.start, *cuts, span.stop]
    return tuple(Span(i, min(i + most, b)) for a, b in pairwise(borders) for i in range(a, b, most))


class ChunkCursor:
    """``plan_chunks`` for a stream whose length is not known yet.

    A chunk that another one follows is known as soon as the stream is seen to go on past it; the last one once the
    stream ends. Positions before ``keep_from`` are never needed again.
    """

    def __init__(self, size: int, overlap: int) -> None:
        plan_chunks(1, size, overlap)  # checks the sizes
        self.size, self.overlap = size, overlap
        self._next = 0

    def known(self, seen: int, ended: bool) -> tuple[Span, ...]:
        """Chunks that have become certain, now that ``seen`` positions have arrived; each is told once."""
        chunks = []
        while self._next + self.size < seen:
            chunks.append(Span(self._next, self._next + self.size))
            self._next += self.size - self.overlap
        if ended and seen:
            start = max(0, min(self._next, seen - self.size))
            chunks.append(Span(start, seen))
        return tuple(chunks)

    @property
    def keep_from(self) -> int:
        """First position that a chunk still to come may hold (the last one is moved back by less than a stride)."""
        return max(0, self._next - (self.size - self.overlap) + 1)

"""Plans against brute force: coverage, overlaps, and the streamed plan equal to the known-length one."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from oasis_core.plan import ChunkCursor, Span, plan_calls, plan_chunks, plan_tiles

CASES = [(length, size, overlap) for size in range(1, 9) for overlap in range(size) for length in range(1, 31)]


def streamed(length: int, size: int, overlap: int, step: int = 1) -> tuple[Span, ...]:
    """The plan as a stream tells it, ``step`` positions arriving at a time; checks what it promises on the way."""
    cursor = ChunkCursor(size, overlap)
    chunks: list[Span] = []
    forgotten = 0
    for seen in [*range(step, length, step), length]:
        for ended in (False, True) if seen == length else (False,):
            told = cursor.known(seen, ended)
            assert all(span.start >= forgotten and span.stop <= seen for span in told)
            chunks += told
            assert cursor.keep_from >= forgotten
            forgotten = cursor.keep_from
            assert seen - forgotten <= 2 * size - overlap + step  # bounded memory
    return tuple(chunks)


def test_chunks_cover_and_overlap_as_stated() -> None:
    for length, size, overlap in CASES:
        chunks = plan_chunks(length, size, overlap)
        assert chunks[0].start == 0
        assert chunks[-1].stop == length
        assert {i for c in chunks for i in range(c.start, c.stop)} == set(range(length))
        if length <= size:
            assert chunks == (Span(0, length),)
            continue
        assert all(c.size == size for c in chunks)
        shared = [a.stop - b.start for a, b in pairwise(chunks)]
        assert all(s == overlap for s in shared[:-1])
        assert overlap <= shared[-1] < size
        # The last one is needed: without it something would be missing.
        assert chunks[-2].stop < length


def test_interior_positions_are_covered_once_or_within_an_overlap() -> None:
    for length, size, overlap in CASES:
        chunks = plan_chunks(length, size, overlap)
        if 2 * overlap > size:
            continue  # overlaps overlap
        times = Counter(i for c in chunks[:-1] for i in range(c.start, c.stop))
        seams = {i for a, b in pairwise(chunks[:-1]) for i in range(b.start, a.stop)}
        assert all(times[i] == (2 if i in seams else 1) for i in times)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 30])
def test_streamed_plan_equals_the_plan_of_the_known_length(step: int) -> None:
    for length, size, overlap in CASES:
        assert streamed(length, size, overlap, step) == plan_chunks(length, size, overlap), (length, size, overlap)


def test_a_chunk_is_told_as_soon_as_another_one_must_follow() -> None:
    cursor = ChunkCursor(5, 2)
    assert [cursor.known(n, False) for n in range(1, 10)] == [()] * 5 + [(Span(0, 5),), (), (), (Span(3, 8),)]
    assert cursor.known(9, True) == (Span(4, 9),)


def test_an_empty_stream_has_no_chunks() -> None:
    cursor = ChunkCursor(5, 2)
    assert cursor.known(0, True) == ()


def test_tiles_cover_every_pixel_and_lie_inside() -> None:
    for height, width, tile, overlap in [(9, 20, 5, 2), (5, 5, 5, 0), (3, 30, 8, 7), (16, 1, 4, 1), (7, 7, 100, 20)]:
        tiles = plan_tiles(height, width, tile, overlap)
        covered = {(y, x) for r, c in tiles for y in range(r.start, r.stop) for x in range(c.start, c.stop)}
        assert covered == {(y, x) for y in range(height) for x in range(width)}
        assert all(r.size == min(tile, height) and c.size == min(tile, width) for r, c in tiles)
        assert len(set(tiles)) == len(tiles)


def test_tile_0_is_the_whole_frame() -> None:
    assert plan_tiles(9, 20, 0, 4) == ((Span(0, 9), Span(0, 20)),)


def test_span() -> None:
    assert Span(2, 5).size == 3
    assert Span(2, 5).times(4) == Span(8, 20)


@pytest.mark.parametrize("args", [(0, 4, 1), (-3, 4, 1), (10, 0, 0), (10, 4, 4), (10, 4, 9), (10, 4, -1), (2, 4, 4)])
def test_impossible_chunks_are_refused(args: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        plan_chunks(*args)


@pytest.mark.parametrize(("tile", "overlap"), [(-1, 0), (-64, 8), (8, 8), (8, -1)])
def test_impossible_tiles_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=r"^(tile|overlap) is -?\d+; it must be"):
        plan_tiles(20, 20, tile, overlap)


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (4, 4), (4, -1)])
def test_impossible_cursors_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        ChunkCursor(size, overlap)


@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (7, 2), (6, 3), (16, 2), (5, 4)])
@pytest.mark.parametrize("most", [1, 3, 8, 100])
def test_calls_cover_each_position_once_and_are_the_same_from_any_chunk_on(size: int, overlap: int, most: int) -> None:
    stride, length = size - overlap, 60
    calls = plan_calls(Span(0, length), most, stride, overlap)
    assert [p for c in calls for p in range(c.start, c.stop)] == list(range(length))
    assert max(c.size for c in calls) <= most
    for begin in range(0, length - size, stride):
        again: list[Span] = []
        borders = [0, *range(size, length - begin, stride), length - begin]  # as chunks become known
        for a, b in pairwise(borders):
            again += plan_calls(Span(a, b), most, stride, overlap)
        assert [Span(c.start + begin, c.stop + begin) for c in again] == [c for c in calls if c.start >= begin]


def test_calls_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 0 positions by 5; both must be at least 1"):
        plan_calls(Span(0, 3), 0, 5, 0)

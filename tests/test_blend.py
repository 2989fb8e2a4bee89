"""Pieces put back together: nothing darkens, identical pieces give the source, frames come once and in order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oasis_core.blend import OverlapAdd, TemporalCrossFade, ramp
from oasis_core.plan import Span, plan_chunks, plan_tiles

EPS = 5e-7  # fp32: a few roundings of values around 1
TILINGS = [(9, 20, 5, 2), (12, 12, 4, 0), (7, 31, 8, 5), (16, 3, 6, 1), (10, 11, 6, 5), (8, 8, 20, 4)]
CHUNKINGS = [(1, 4, 1), (4, 4, 2), (5, 4, 2), (11, 4, 1), (12, 4, 1), (13, 4, 0), (17, 5, 2), (18, 5, 3), (9, 4, 3)]


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def blend_tiles(pieces: dict[tuple[Span, Span], Tensor], height: int, width: int, overlap: int) -> Tensor:
    blended = OverlapAdd(next(iter(pieces.values())), height, width)
    for (rows, columns), piece in pieces.items():
        blended.add(piece, rows, columns, overlap)
    return blended.result()


def cross_fade(chunks: list[Tensor], spans: tuple[Span, ...], overlap: int) -> list[Tensor]:
    fade = TemporalCrossFade(overlap)
    return [fade.add(c, s, s is spans[-1]) for c, s in zip(chunks, spans, strict=True)]


def test_ramp() -> None:
    torch.testing.assert_close(ramp(6, 2, 0), torch.tensor([1 / 3, 2 / 3, 1, 1, 1, 1]))
    torch.testing.assert_close(ramp(6, 0, 3), torch.tensor([1, 1, 1, 3 / 4, 2 / 4, 1 / 4]))
    assert torch.equal(ramp(5, 0, 0), torch.ones(5))


def test_ramps_of_neighbours_add_up_to_one() -> None:
    for overlap in range(9):
        left, right = ramp(10, 0, overlap), ramp(10, overlap, 0)
        shared = left[10 - overlap :] + right[:overlap]
        torch.testing.assert_close(shared, torch.ones(overlap), atol=EPS, rtol=0)


def test_ramps_are_positive_even_where_they_meet() -> None:
    for length in range(1, 9):
        for left in range(length + 1):
            for right in range(length + 1):
                weights = ramp(length, left, right)
                assert weights.shape == (length,)
                assert 0 < weights.min() <= weights.max() <= 1


@pytest.mark.parametrize(("left", "right"), [(5, 0), (0, 5), (-1, 0)])
def test_impossible_ramps_are_refused(left: int, right: int) -> None:
    with pytest.raises(ValueError, match="from 0 to the piece's length 4"):
        ramp(4, left, right)


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), TILINGS)
def test_tiles_of_one_source_give_the_source(height: int, width: int, tile: int, overlap: int) -> None:
    for source in (torch.randn(1, 2, 3, height, width), torch.full((1, 1, 1, height, width), 0.7)):
        places = plan_tiles(height, width, tile, overlap)
        pieces = {(r, c): source[..., r.start : r.stop, c.start : c.stop] for r, c in places}
        torch.testing.assert_close(blend_tiles(pieces, height, width, overlap), source, atol=EPS, rtol=EPS)


def test_outer_edges_have_no_ramp() -> None:
    """One frame-sized tile, and the outer rows of several, carry full weight: no black border."""
    blended = OverlapAdd(torch.zeros(1, 8, 20), 8, 20)
    for rows, columns in plan_tiles(8, 20, 8, 3):
        blended.add(torch.ones(1, rows.size, columns.size), rows, columns, 3)
    assert torch.equal(blended.weight[0], blended.weight[-1])
    assert blended.weight[0, 0] == blended.weight[0, -1] == 1


def test_tiles_fade_from_one_to_the_next() -> None:
    """0 on the left, 1 on the right: a monotonic passage that starts and ends near the pieces' own values."""
    left, right = Span(0, 10), Span(6, 16)
    rows = Span(0, 1)
    pieces = {(rows, left): torch.zeros(1, 10), (rows, right): torch.ones(1, 10)}
    out = blend_tiles(pieces, 1, 16, 4)[0]
    expected = torch.cat([torch.zeros(6), torch.arange(1, 5) / 5, torch.ones(6)])
    torch.testing.assert_close(out, expected, atol=EPS, rtol=0)


def test_tiles_keep_their_dtype() -> None:
    pieces = {(Span(0, 4), Span(0, 4)): torch.randn(4, 4, dtype=torch.bfloat16)}
    out = blend_tiles(pieces, 4, 4, 1)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, next(iter(pieces.values())))


def test_tiles_that_do_not_fit_or_cover_are_refused() -> None:
    blended = OverlapAdd(torch.zeros(1, 4, 4), 8, 4)
    with pytest.raises(ValueError, match=r"tile is \(1, 3, 4\); its place is 4 x 4"):
        blended.add(torch.zeros(1, 3, 4), Span(0, 4), Span(0, 4), 1)
    blended.add(torch.zeros(1, 4, 4), Span(0, 4), Span(0, 4), 1)
    with pytest.raises(ValueError, match="do not cover"):
        blended.result()


@pytest.mark.parametrize(("length", "size", "overlap"), CHUNKINGS)
def test_chunks_of_one_source_give_the_source(length: int, size: int, overlap: int) -> None:
    source = torch.randn(1, 2, length, 3, 4)
    spans = plan_chunks(length, size, overlap)
    parts = cross_fade([source[:, :, s.start : s.stop] for s in spans], spans, overlap)
    torch.testing.assert_close(torch.cat(parts, dim=2), source, atol=EPS, rtol=EPS)


@pytest.mark.parametrize(("length", "size", "overlap"), CHUNKINGS)
def test_frames_go_out_as_soon_as_they_are_final(length: int, size: int, overlap: int) -> None:
    spans = plan_chunks(length, size, overlap)
    done = 0
    for span, part in zip(
        spans, cross_fade([torch.zeros(1, 1, s.size, 1, 1) for s in spans], spans, overlap), strict=True
    ):
        done += part.shape[2]
        assert done == (length if span is spans[-1] else span.stop - overlap)


def test_cross_fade_weights() -> None:
    """Chunk 0 says 0, chunk 1 says 1, the moved-back last one says 2 (and counts only from the fade on)."""
    spans = plan_chunks(12, 6, 2)
    assert spans == (Span(0, 6), Span(4, 10), Span(6, 12))
    chunks = [torch.full((1, 1, 6, 1, 1), float(i)) for i in range(3)]
    out = torch.cat(cross_fade(chunks, spans, 2), dim=2).flatten()
    expected = torch.tensor([0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1, 4 / 3, 5 / 3, 2, 2])
    torch.testing.assert_close(out, expected, atol=EPS, rtol=EPS)


@pytest.mark.parametrize(("length", "size", "overlap"), CHUNKINGS)
def test_cross_fade_is_linear_in_the_chunks(length: int, size: int, overlap: int) -> None:
    spans = plan_chunks(length, size, overlap)
    a, b = ([torch.randn(1, 1, s.size, 2, 2) for s in spans] for _ in range(2))

    def fade(chunks: list[Tensor]) -> Tensor:
        return torch.cat(cross_fade(chunks, spans, overlap), dim=2)

    mixed = fade([2 * x - 3 * y for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(mixed, 2 * fade(a) - 3 * fade(b), atol=5e-6, rtol=0)


def test_cross_fade_keeps_the_dtype_and_the_chunks() -> None:
    spans = plan_chunks(7, 4, 2)
    chunks = [torch.randn(1, 1, s.size, 2, 2, dtype=torch.float16) for s in spans]
    before = [c.clone() for c in chunks]
    assert {part.dtype for part in cross_fade(chunks, spans, 2)} == {torch.float16}
    assert all(torch.equal(c, b) for c, b in zip(chunks, before, strict=True))


@pytest.mark.parametrize(("span", "frames"), [(Span(5, 9), 4), (Span(1, 5), 4), (Span(2, 6), 3)])
def test_a_chunk_that_is_not_next_is_refused(span: Span, frames: int) -> None:
    fade = TemporalCrossFade(2)
    fade.add(torch.zeros(1, 1, 4, 1, 1), Span(0, 4), last=False)
    with pytest.raises(ValueError, match="the next one must start at frame 2"):
        fade.add(torch.zeros(1, 1, frames, 1, 1), span, last=False)
    with pytest.raises(ValueError, match="adds nothing"):
        fade.add(torch.zeros(1, 1, 4, 1, 1), Span(0, 4), last=True)

"""The method end to end: chunks and tiles without seams."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from oasis_core.model import OasisModel
from oasis_core.patchify import latent_length
from oasis_core.plan import plan_chunks
from oasis_core.routing import HeadPattern

from .tiny_pipeline import CLOSE, clip, identity_model, random_model, upscaler


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize(("chunk", "overlap"), [(1, 0), (5, 0), (5, 1), (9, 2), (13, 3)])
def test_chunks_do_not_show_where_heads_stay_in_their_frame(factor: int, chunk: int, overlap: int) -> None:
    model = random_model(factor, depth=2)
    frames = clip(22)
    whole = upscaler(model, pattern=HeadPattern.INTRA_FRAME).upscale(frames)
    chunked = upscaler(model, pattern=HeadPattern.INTRA_FRAME, chunk_frames=chunk, chunk_overlap=overlap)
    assert (whole - frames).abs().mean() > 0.01  # the model does something
    torch.testing.assert_close(chunked.upscale(frames), whole, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("factor", [1, 4])
def test_chunks_of_window_heads_show_only_where_they_are_faded(factor: int) -> None:
    """One layer that sees one latent frame to each side: frames outside the cross-fades have all they need."""
    model = random_model(factor)
    frames = clip(1 + factor * 16)
    chunk, overlap = 1 + factor * 5, 2
    whole = upscaler(model, pattern=HeadPattern.WINDOW).upscale(frames)
    settings = {"chunk_frames": chunk, "chunk_overlap": overlap}
    chunked = upscaler(model, pattern=HeadPattern.WINDOW, **settings).upscale(frames)  # type: ignore[arg-type]
    spans = plan_chunks(latent_length(len(frames), factor), latent_length(chunk, factor), overlap)
    faded = {i for a, _ in pairwise(spans) for i in range(a.stop - overlap, a.stop)}
    error = (chunked - whole).abs().amax((1, 2, 3))
    inside = torch.tensor([latent_length(i + 1, factor) - 1 in faded for i in range(len(frames))])
    assert error[~inside].max() < CLOSE
    assert 1e-4 < error[inside].max() < 0.3  # seen, but a fraction of the range


@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (16, 8), (24, 8), (40, 16), (40, 32)])
@pytest.mark.parametrize("size", [(33, 50), (64, 16)])
def test_tiles_do_not_show_where_a_token_depends_on_itself(tile: int, overlap: int, size: tuple[int, int]) -> None:
    model = random_model(depth=2)
    for block in model.dit.blocks:
        block.self_attn.o.weight.data.zero_()
    frames = clip(3, *size)
    whole = upscaler(model).upscale(frames)
    assert (whole - frames).abs().mean() > 0.01
    tiled = upscaler(model, tile=tile, tile_overlap=overlap).upscale(frames)
    torch.testing.assert_close(tiled, whole, atol=CLOSE, rtol=0)


def test_tiles_of_window_heads_show_only_near_their_seams() -> None:
    model = random_model()
    frames = clip(3, 24, 160)
    whole = upscaler(model, pattern=HeadPattern.WINDOW).upscale(frames)
    tiled = upscaler(model, pattern=HeadPattern.WINDOW, tile=96, tile_overlap=16).upscale(frames)
    error = (tiled - whole).abs().amax((0, 1, 3))
    # Tiles are columns 0..96 and 64..160; the decoder's convolutions reach less than 16 pixels further.
    assert error[:48].max() < CLOSE
    assert error[112:].max() < CLOSE
    assert 1e-5 < error[48:112].max() < 0.3


def numbered_calls(monkeypatch: pytest.MonkeyPatch) -> OasisModel:
    """A model whose nth restoration gives pixels of n / 4, so that fades can be read off the output."""
    model = identity_model()
    calls = iter(range(5))
    monkeypatch.setattr(model, "restore", lambda z, *_: torch.full_like(z, next(calls) / 2 - 1))
    monkeypatch.setattr(
        model, "decode", lambda z, pixels, first, state: z[:, :3].repeat_interleave(4, 3).repeat_interleave(4, 4)
    )
    return model


def test_chunks_fade_into_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    out = upscaler(numbered_calls(monkeypatch), chunk_frames=7, chunk_overlap=3).upscale(clip(14))
    # Chunks at 0..7, 4..11 and (moved back) 7..14; the fades are over 4..7 and 8..11.
    expected = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8]) / 16
    torch.testing.assert_close(out.mean((1, 2, 3)), expected, atol=1e-6, rtol=0)


def test_tiles_fade_into_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    out = upscaler(numbered_calls(monkeypatch), tile=64, tile_overlap=24).upscale(clip(1, 16, 104))
    columns = out.mean((0, 1, 3))
    assert (columns.diff() >= -1e-6).all()
    assert columns[:40].max() < 1e-6  # two tiles, at 0..64 and 40..104
    assert (columns[64:] - 0.25).abs().max() < 1e-6
    assert columns.diff().max() < 0.25 / 6  # no step where they meet: six latent columns share it


def test_a_tile_larger_than_the_frame_is_the_frame() -> None:
    model, frames = random_model(), clip(2)
    assert torch.equal(upscaler(model, tile=4000).upscale(frames), upscaler(model).upscale(frames))


@pytest.mark.parametrize(("size", "tiles"), [((17, 33), 1), ((40, 60), 2)])
def test_large_frames_are_tiled_on_their_own(
    size: tuple[int, int], tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oasis_core.settings.WHOLE_FRAME", 24 * 40)
    monkeypatch.setattr("oasis_core.settings.AUTO_TILE", 40)
    calls: list[int] = []
    upscaler(random_model(), tile=None, tile_overlap=8).upscale(clip(1, *size), poll=lambda: calls.append(1))
    assert len(calls) == tiles + 1  # one block for each tile, one decode

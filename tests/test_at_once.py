"""Several latent frames upsampled, decoded and corrected in one call: what one at a time gives, in fewer calls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oasis_core.color import ColorCorrector, ColorMethod
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import Position
from oasis_core.routing import RoutingSpec

CLOSE = 1e-5
"""fp32, order of sums only; pixel values from 0 to 1."""
SETTINGS = UpscaleSettings(scale=1.5, chunk_frames=7, chunk_overlap=2)
FRAMES = 23


def upscaler(factor: int = 1, residual: bool = True, **changes: object) -> Upscaler:
    """A random model of cells of 4 pixels: 18x26 is enlarged to 27x39, padded to 32x40."""
    config = OasisConfig(
        name="tiny", unshuffle=(factor, 4, 4), latent_channels=4, patch=(1, 2, 2), dim=16, depth=1, heads=2, ffn_dim=16,
        freq_dim=8, decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=2, hr_blocks=1, residual=residual),
    )  # fmt: skip
    torch.manual_seed(0)
    model = OasisModel(config)
    for p in model.requires_grad_(False).parameters():
        torch.nn.init.normal_(p, std=0.2)
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return Upscaler(model.eval(), RoutingSpec.by_ratio(1, 2, 0.5, 0.5), settings)


def clip(frames: int = FRAMES, seed: int = 0) -> Tensor:
    """One shot: a picture of its own under noise."""
    g = torch.Generator().manual_seed(seed)
    base = F.interpolate(torch.rand(1, 3, 4, 6, generator=g), size=(18, 26), mode="bilinear")[0].permute(1, 2, 0)
    return (0.2 + 0.5 * base + 0.03 * torch.randn(frames, 18, 26, 3, generator=g)).clamp(0, 1)


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("color", ColorMethod)
@pytest.mark.parametrize("at_once", [2, 3, 8, 100])
def test_several_at_once_give_what_one_gives(factor: int, color: ColorMethod, at_once: int) -> None:
    frames = clip()
    one = upscaler(factor, color=color, chunk_frames=5 * factor).upscale(frames)
    several = upscaler(factor, color=color, chunk_frames=5 * factor, at_once=at_once)
    assert (several.upscale(frames) - one).abs().max() < CLOSE
    assert torch.equal(torch.cat(list(several.stream(iter(frames)))), several.upscale(frames))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 6, 7, 8, 12])
def test_clips_of_any_length(frames: int, residual: bool) -> None:
    one, several = upscaler(residual=residual), upscaler(residual=residual, at_once=4)
    assert (several.upscale(clip(frames)) - one.upscale(clip(frames))).abs().max() < CLOSE


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("at_once", [3, 8])
@pytest.mark.parametrize("color", ColorMethod)
@pytest.mark.parametrize(("chunk", "overlap"), [(7, 2), (6, 3), (1, 0)])
def test_a_stream_that_begins_at_any_chunk_is_the_same(
    factor: int, at_once: int, color: ColorMethod, chunk: int, overlap: int
) -> None:
    """Bit for bit: the same frames are taken together, whatever the stream begins with."""
    frames, changes = clip(FRAMES * factor), {"color": color, "chunk_overlap": overlap}
    chunk_frames = 1 + factor * (chunk - 1)
    up = upscaler(factor, at_once=at_once, chunk_frames=chunk_frames, **changes)
    parts = list(up.parts(iter(frames), Position()))
    whole, places = torch.cat([p.frames for p in parts]), [p.position for p in parts if p.restartable]
    alone = upscaler(factor, chunk_frames=chunk_frames, **changes).parts(iter(frames), Position())
    assert places == [p.position for p in alone if p.restartable]
    assert len(places) >= 3
    for place in places:
        again = torch.cat([p.frames for p in up.parts(iter(frames[up.first_needed(place) :]), place)])
        assert torch.equal(again, whole[place.frame :])


def test_each_shot_comes_out_as_if_it_were_alone() -> None:
    up, first, second = upscaler(at_once=4), clip(9, seed=1), 1 - clip(10, seed=2)
    parts = list(up.parts(iter(torch.cat([first, second])), Position()))
    assert [p.position for p in parts if p.restartable] == [Position(0), Position(5), Position(9, 9), Position(14, 9)]
    both = torch.cat([p.frames for p in parts])
    assert torch.equal(both[:9], up.upscale(first))
    assert torch.equal(both[9:], up.upscale(second))


def test_a_chunk_is_drawn_in_as_few_calls_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 7 that share 2, the last one moved back: 5, 5, 5, 5 and 3 frames come out."""
    drawn: list[int] = []
    encoded: list[int] = []
    asked: list[int] = []
    told: list[float] = []
    for name, sizes in (("decode", drawn), ("encode", encoded)):
        real = getattr(OasisModel, name)

        def noting(self: OasisModel, *args, real=real, sizes=sizes, **more):  # type: ignore[no-untyped-def]
            sizes.append(args[0].shape[2])
            return real(self, *args, **more)

        monkeypatch.setattr(OasisModel, name, noting)
    up = upscaler(at_once=4, residual=False)
    out = up.upscale(clip(), lambda done, total: told.append(done), lambda: asked.append(1))
    assert len(out) == sum(drawn) == sum(encoded) == FRAMES
    assert drawn == [4, 1, 4, 1, 4, 1, 4, 1, 3]
    assert encoded == [2, 3, 2, 3, 2, 3, 2, 3, 2, 1]
    assert len(asked) == len(drawn) + 5  # and a block of each chunk
    assert told == sorted(told)
    assert told[-1] == FRAMES


@pytest.mark.parametrize("method", ColorMethod)
def test_frames_are_corrected_together_as_they_are_alone(method: ColorMethod) -> None:
    sr, reference = clip(12), clip(12, seed=3)
    alone, together = ColorCorrector(method), ColorCorrector(method)
    expected = torch.cat([alone.correct(sr[i : i + 1], reference[i : i + 1]) for i in range(12)])
    found = [together.correct(*(x[a:b] for x in (sr, reference)), at_once=5) for a, b in ((0, 7), (7, 8), (8, 12))]
    assert (torch.cat(found) - expected).abs().max() < CLOSE


def test_how_many() -> None:
    settings = UpscaleSettings()
    assert [settings.drawn_at_once(720 * 1280, kind) for kind in ("cuda", "cpu", "mps")] == [8, 1, 1]
    assert [settings.drawn_at_once(pixels, "cuda") for pixels in (1080 * 1920, 2160 * 3840)] == [3, 1]
    assert replace(settings, at_once=5).drawn_at_once(2160 * 3840, "cpu") == 5
    up = upscaler(chunk_frames=3, chunk_overlap=1)
    assert up.latents(up.geometry(18, 26), "cuda") == 3  # no more than a chunk
    assert up.latents(up.geometry(18, 26)) == 1
    with pytest.raises(ValueError, match="latent frames in one call are 0; they must be at least 1"):
        UpscaleSettings(at_once=0)

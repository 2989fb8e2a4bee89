"""Colour correction over time: no lag in ramps, no echo of flashes, no flicker of contrast, the same however it is cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oasis_core.color import WINDOW, ColorCorrector, ColorMethod, correct_color
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import Position
from oasis_core.routing import RoutingSpec

STATISTICS = [ColorMethod.ADAIN, ColorMethod.LAB]
FRAMES = 24


def scene(height: int = 48, width: int = 64) -> Tensor:
    """One picture ``(H, W, 3)`` around 0.4, coloured and textured."""
    g = torch.Generator().manual_seed(3)
    coarse = F.interpolate(torch.rand(1, 3, 5, 6, generator=g), size=(height, width), mode="bilinear")
    fine = torch.rand(1, 3, height, width, generator=g)
    return 0.2 + (0.3 * coarse + 0.1 * fine)[0].permute(1, 2, 0)


def tinted(frames: Tensor) -> Tensor:
    """What a model makes of them: less contrast in red, more in blue, and a cast."""
    return (frames - 0.4) * torch.tensor([0.8, 1.0, 1.2]) + 0.4 + torch.tensor([0.05, 0.0, -0.04])


def ramp() -> Tensor:
    """The scene under light that grows to twice as much."""
    return scene() * torch.linspace(0.7, 1.4, FRAMES)[:, None, None, None]


def through(sr: Tensor, reference: Tensor, method: ColorMethod, sizes: tuple[int, ...] = (1,)) -> Tensor:
    """One shot through a corrector, in pieces of these sizes, again and again."""
    corrector, out, at = ColorCorrector(method), [], 0
    while at < len(sr):
        size = sizes[len(out) % len(sizes)]
        out.append(corrector.correct(sr[at : at + size], reference[at : at + size]))
        at += size
    return torch.cat(out)


def means(frames: Tensor) -> Tensor:
    return frames.mean((1, 2))


def contrast(frames: Tensor) -> Tensor:
    """Standard deviation of each frame and channel."""
    return frames.std((1, 2))


def test_brightness_follows_a_ramp_without_lag() -> None:
    out = through(tinted(ramp()), ramp(), ColorMethod.ADAIN)
    torch.testing.assert_close(means(out), means(ramp()), atol=1e-4, rtol=0)
    assert (means(out).diff(dim=0) > 0).all()
    # the model's gain is the same in every frame, so that averaging changes nothing
    torch.testing.assert_close(out, ramp(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", STATISTICS)
def test_a_ramp_is_as_smooth_as_it_came(method: ColorMethod) -> None:
    """Second differences of the brightness: jumps would show as spikes."""
    out = through(tinted(ramp()), ramp(), method)
    bend, own = (means(x).mean(-1).diff(n=2).abs().max() for x in (out, tinted(ramp())))
    assert bend < own + 1e-4


@pytest.mark.parametrize("method", STATISTICS)
@pytest.mark.parametrize("at", [1, 12, FRAMES - 2])
def test_a_flash_stays_a_flash_and_has_no_echo(method: ColorMethod, at: int) -> None:
    """One frame far brighter, clipped in the input and dull in the model's output."""
    reference = scene().repeat(FRAMES, 1, 1, 1)
    sr = tinted(reference)
    quiet = through(sr, reference, method)
    reference[at] = (reference[at] * 3).clamp(0, 1)
    sr[at] = sr[at] * 0.5 + 0.45
    out = through(sr, reference, method)
    others = [i for i in range(FRAMES) if i != at]
    torch.testing.assert_close(out[others], quiet[others], atol=1e-3, rtol=0)
    if method is ColorMethod.ADAIN:  # Lab leaves lightness to the model
        assert (means(out)[at] - means(reference)[at]).abs().max() < 0.02  # what clamping to 1 takes
    torch.testing.assert_close(out[at], correct_color(sr, reference, method)[at], atol=1e-3, rtol=0)


def test_contrast_does_not_pump_with_the_input_s_noise() -> None:
    """Noise that comes with every key frame and fades: each frame alone would take its contrast from it."""
    g = torch.Generator().manual_seed(0)
    clean = scene().repeat(FRAMES, 1, 1, 1)
    strength = torch.tensor(([0.08, 0.05, 0.03, 0.02, 0.01] * 5)[:FRAMES])[:, None, None, None]
    noisy = clean + strength * torch.randn(clean.shape, generator=g)
    alone = contrast(correct_color(tinted(clean), noisy, ColorMethod.ADAIN))
    steady = contrast(through(tinted(clean), noisy, ColorMethod.ADAIN))
    pumping = [float(x[WINDOW:].log().diff(dim=0).abs().mean()) for x in (alone, steady)]
    print(f"frame-to-frame change of contrast: {pumping[0]:.4f} alone, {pumping[1]:.4f} over {WINDOW} frames")
    assert pumping[1] < pumping[0] / 5


@pytest.mark.parametrize("method", list(ColorMethod))
def test_pieces_do_not_show(method: ColorMethod) -> None:
    sr, reference = (
        tinted(ramp()),
        ramp() + 0.02 * torch.randn(ramp().shape, generator=torch.Generator().manual_seed(1)),
    )
    whole = through(sr, reference, method, (FRAMES,))
    for sizes in ((1,), (5,), (1, 4, 4), (7, 2)):
        assert torch.equal(through(sr, reference, method, sizes), whole)


@pytest.mark.parametrize("method", list(ColorMethod))
def test_the_memory_is_as_long_as_it_says(method: ColorMethod) -> None:
    """A corrector that begins ``memory`` frames before one gives what one that saw all gives; one later does not."""
    noise = 0.05 * torch.randn(ramp().shape, generator=torch.Generator().manual_seed(1))
    sr, reference = tinted(scene().repeat(FRAMES, 1, 1, 1)), scene() + noise
    whole, last = through(sr, reference, method)[-1], method.memory + 1
    assert torch.equal(through(sr[-last:], reference[-last:], method)[-1], whole)
    if method.memory:
        assert not torch.equal(through(sr[1 - last :], reference[1 - last :], method)[-1], whole)


# In the pipeline.


def upscaler(method: ColorMethod, **changes: object) -> Upscaler:
    """A random model that changes contrast and colour from frame to frame."""
    config = OasisConfig(
        name="tiny", unshuffle=(1, 4, 4), latent_channels=4, patch=(1, 2, 2), dim=16, depth=1, heads=2, ffn_dim=16,
        freq_dim=8, decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=2, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    model = OasisModel(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    settings = {"scale": 1.0, "color": method, "chunk_frames": 4, "chunk_overlap": 1, "scene_cuts": True, **changes}
    return Upscaler(model.eval(), RoutingSpec.by_ratio(1, 2, 1, 0), UpscaleSettings(**settings))  # type: ignore[arg-type]


def clip(seed: int, frames: int = FRAMES) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    base = F.interpolate(torch.rand(1, 3, 4, 6, generator=g), size=(16, 24), mode="bilinear")[0].permute(1, 2, 0)
    return (0.2 + 0.5 * base + 0.03 * torch.randn(frames, 16, 24, 3, generator=g)).clamp(0, 1)


@pytest.mark.parametrize("method", list(ColorMethod))
@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_a_stream_that_begins_at_any_chunk_is_the_same(method: ColorMethod, chunk: int) -> None:
    """Resumed segments: every restartable place gives the frames of the whole stream, bit for bit."""
    frames = clip(0)
    up = upscaler(method, chunk_frames=chunk, chunk_overlap=min(1, chunk - 1))
    parts = list(up.parts(iter(frames), Position()))
    whole = torch.cat([p.frames for p in parts])
    places = [p.position for p in parts if p.restartable]
    assert len(places) >= 3
    for place in places:
        again = torch.cat([p.frames for p in up.parts(iter(frames[up.first_needed(place) :]), place)])
        assert torch.equal(again, whole[place.frame :])


@pytest.mark.parametrize("method", STATISTICS)
def test_statistics_begin_anew_at_a_cut(method: ColorMethod) -> None:
    """The second shot comes out as if it were alone."""
    up, first, second = upscaler(method), clip(1), 1 - clip(2)
    both = up.upscale(torch.cat([first, second]))
    assert torch.equal(both[FRAMES:], up.upscale(second))
    assert torch.equal(both[:FRAMES], up.upscale(first))

"""The method end to end: what comes in, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oasis_core.color import ColorMethod
from oasis_core.geometry import resize
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import HeadPattern, RoutingSpec

from .tiny_pipeline import PLAIN, clip, identity_model, random_model, refused, upscaler


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def test_alpha_is_resampled_and_kept() -> None:
    up = upscaler(random_model(), UpscaleSettings(scale=2.0))
    frames = torch.cat([clip(3), torch.rand(3, 16, 24, 1)], dim=-1)
    out = up.upscale(frames)
    assert out.shape == (3, 32, 48, 4)
    assert torch.equal(out[..., :3], up.upscale(frames[..., :3]))
    assert torch.equal(out[..., 3:], resize(frames[..., 3:], 32, 48))


@pytest.mark.parametrize("channels", [3, 4])
def test_values_outside_the_range_are_clamped(channels: int) -> None:
    up = upscaler(random_model(), UpscaleSettings(scale=2.0))
    frames = clip(2, channels=channels) * 6 - 3
    assert torch.equal(up.upscale(frames), up.upscale(frames.clamp(0, 1)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 4])
def test_other_float_types_are_taken(dtype: torch.dtype, channels: int) -> None:
    up = upscaler(random_model(), UpscaleSettings(scale=2.0))
    frames = clip(2, channels=channels).to(dtype)
    out = up.upscale(frames)
    assert out.dtype == torch.float32
    assert torch.equal(out, up.upscale(frames.float()))


def test_a_half_precision_model_is_near_the_single_one() -> None:
    model, frames = random_model(), clip(3)
    expected = upscaler(model).upscale(frames)
    out = upscaler(model.to(torch.bfloat16)).upscale(frames)
    assert out.dtype == torch.float32
    assert (out - expected).abs().mean() < 0.01  # bf16 keeps 8 bits: 4e-3 of a value


def test_neither_the_input_nor_the_model_is_changed() -> None:
    model, frames = random_model(), clip(3, channels=4)
    weights, before = {n: t.clone() for n, t in model.state_dict().items()}, frames.clone()
    out = upscaler(model, UpscaleSettings(scale=1.0)).upscale(frames)
    assert torch.equal(frames, before)
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
    out += 1  # an ordinary tensor, the caller's own
    assert not out.requires_grad


@pytest.mark.parametrize("method", ColorMethod)
def test_colour_is_corrected_against_the_resampled_input(method: ColorMethod) -> None:
    model = identity_model()
    model.decoder.conv_out.bias.data.fill_(0.2)  # brighter by 0.1 in [0, 1]
    frames = clip(2, 32, 32)
    out = upscaler(model, color=method).upscale(frames)
    shift = (out - frames).mean().item()
    assert shift == pytest.approx(0.1 if method in (ColorMethod.NONE, ColorMethod.LAB) else 0, abs=0.02)


def test_frames_that_are_none_are_refused() -> None:
    up = upscaler(random_model())
    for shape in [(0, 16, 16, 3), (2, 16, 16, 1), (2, 16, 16, 5), (2, 3, 16, 16), (16, 16, 3), (1, 2, 16, 16, 3)]:
        refused(f"frames are {shape}; expected (T, H, W, 3 or 4)", lambda s=shape: up.upscale(torch.zeros(s)))
    refused("input is 16x15 pixels; it must be at least 16x16", lambda: up.upscale(torch.zeros(1, 15, 16, 3)))
    refused("uint8", lambda: up.upscale(torch.zeros(1, 16, 16, 3, dtype=torch.uint8)))


@pytest.mark.parametrize("factor", [1, 4])
def test_streams_of_what_are_no_frames_are_refused(factor: int) -> None:
    up = upscaler(random_model(factor))
    refused("the clip has no frames", lambda: list(up.stream(iter([]))))
    for shape in [(16, 16), (16,), (16, 16, 4), (3, 16, 16), (1, 16, 16, 3), ()]:
        refused(f"frame is {shape}", lambda s=shape: list(up.stream([torch.zeros(s)])))
    refused("uint8", lambda: list(up.stream([torch.zeros(16, 16, 3, dtype=torch.uint8)])))
    for at in (1, 2, 5):
        frames = [*clip(at), torch.zeros(24, 16, 3), torch.zeros(24, 16, 3)]
        refused("frame size changes from (16, 24, 3) to (24, 16, 3)", lambda f=frames: list(up.stream(f)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_frames": 0}, "chunk is 0 frames"),
        ({"chunk_overlap": -1}, "chunk overlap is -1"),
        ({"tile": -8}, "tile is -8"),
        ({"tile": 64, "tile_overlap": 64}, "tile overlap is 64"),
        ({"tile": 64, "tile_overlap": -1}, "tile overlap is -1"),
    ],
)
def test_settings_outside_their_range_are_refused(change: dict[str, int], message: str) -> None:
    refused(message, lambda: replace(PLAIN, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tile": 100},
            "tile is 100; it must be 0 (whole frame) or a multiple of 8, this model's token, such as 96 or 104",
        ),
        ({"tile": 7}, "or a multiple of 8, this model's token, such as 8"),
        ({"tile": 64, "tile_overlap": 20}, "tile overlap is 20; it must be 0 or a multiple of 8, this model's token"),
        ({"scale": 0.5}, "scale is 0.5"),
        ({"scale": 9.0}, "scale is 9.0"),
        ({"scale": None}, "either a scale or a target size"),
        ({"width": 40}, "either a scale or a target size"),
        ({"scale": None, "width": 10}, "target width is 10"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(change: dict[str, float | None], message: str) -> None:
    refused(message, lambda: upscaler(random_model(), **change).upscale(clip(1)))


def test_the_routing_of_another_model_is_refused() -> None:
    other = RoutingSpec.uniform(2, 2, HeadPattern.GLOBAL)
    refused("routing is for another model", lambda: Upscaler(random_model(), other, PLAIN))

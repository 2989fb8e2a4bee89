"""The method end to end: sizes and frame counts exact, streamed == whole, chunks and tiles without seams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from oasis_core.color import ColorMethod
from oasis_core.geometry import resize
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.patchify import latent_length
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import plan_chunks
from oasis_core.routing import HeadPattern, RoutingSpec

CONFIG = OasisConfig(
    name="tiny",
    unshuffle=(1, 4, 4),
    latent_channels=4,
    patch=(1, 2, 2),
    dim=16,
    depth=1,
    heads=2,
    ffn_dim=16,
    freq_dim=8,
    decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=2, hr_blocks=0),
)
PLAIN = UpscaleSettings(scale=1.0, color=ColorMethod.NONE, chunk_frames=100, tile=0, scene_cuts=False)
"""No resampling, no colour correction, one shot, one chunk, one tile."""
CLOSE = 1e-5
"""fp32, order of sums only; pixel values from 0 to 1."""


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def random_model(factor: int = 1, depth: int = 1) -> OasisModel:
    """Every weight random; the output stays mostly inside 0 to 1, so that clamping hides nothing."""
    model = OasisModel(replace(CONFIG, unshuffle=(factor, 4, 4), depth=depth))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.decoder.conv_out.weight.data *= 0.3
    return model.eval()


def identity_model(factor: int = 1) -> OasisModel:
    """Velocity zero and nothing added by the decoder: what comes out is the resampled input."""
    model = random_model(factor)
    model.init_weights()
    return model


def routing(model: OasisModel, pattern: HeadPattern | None = None) -> RoutingSpec:
    if pattern is None:
        return RoutingSpec.by_ratio(model.config.depth, model.config.heads, 0.5, 0, (3, 3, 3))
    return RoutingSpec.uniform(model.config.depth, model.config.heads, pattern, (3, 3, 3))


def upscaler(
    model: OasisModel, settings: UpscaleSettings = PLAIN, pattern: HeadPattern | None = None, **changes: object
) -> Upscaler:
    return Upscaler(model, routing(model, pattern), replace(settings, **changes))  # type: ignore[arg-type]


def clip(frames: int, height: int = 16, width: int = 24, channels: int = 3) -> Tensor:
    return torch.rand(frames, height, width, channels) * 0.6 + 0.2


def refused(message: str, act: object) -> None:
    """``act`` raises ValueError, in one line that holds ``message``."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below, with special characters
        act()  # type: ignore[operator]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# Sizes and counts.

TARGETS = [
    ((16, 16), {"scale": 1.0}, (16, 16)),
    ((17, 33), {"scale": 1.0}, (17, 33)),
    ((17, 33), {"scale": 1.5}, (26, 50)),
    ((19, 18), {"scale": 2.3}, (44, 41)),
    ((16, 21), {"scale": 4.0}, (64, 84)),
    ((17, 33), {"scale": None, "width": 50}, (26, 50)),
    ((17, 33), {"scale": None, "height": 61}, (61, 118)),
    ((17, 33), {"scale": None, "width": 33, "height": 67}, (67, 33)),
]


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize(("size", "target", "expected"), TARGETS)
def test_output_is_exactly_the_size_asked_for(
    size: tuple[int, int], target: dict[str, float | None], expected: tuple[int, int], factor: int
) -> None:
    up = upscaler(random_model(factor), **target)
    out = up.upscale(clip(3, *size))
    assert out.shape == (3, *expected, 3)
    assert out.dtype == torch.float32
    assert out.device.type == "cpu"
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1
    assert (up.geometry(*size).out_h, up.geometry(*size).out_w) == expected


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize(("size", "target", "expected"), TARGETS)
def test_a_model_that_does_nothing_gives_the_bicubic_image(
    size: tuple[int, int], target: dict[str, float | None], expected: tuple[int, int], factor: int
) -> None:
    frames = clip(6, *size)
    settings = {**target, "chunk_frames": 3, "chunk_overlap": 1, "tile": 24, "tile_overlap": 8}
    out = upscaler(identity_model(factor), **settings).upscale(frames)  # type: ignore[arg-type]
    # Pixels go to [-1, 1] and back: two roundings of 2^-24.
    torch.testing.assert_close(out, resize(frames, *expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize(("chunk", "overlap"), [(1, 0), (1, None), (4, 0), (5, 1), (9, 2), (9, None), (100, 2)])
def test_every_frame_comes_out_once_and_in_order(factor: int, chunk: int, overlap: int | None) -> None:
    up = upscaler(identity_model(factor), chunk_frames=chunk, chunk_overlap=overlap)
    for length in (1, 2, 4, 5, 6, 9, 12, 21):
        values = torch.linspace(0, 1, length)
        out = up.upscale(values[:, None, None, None].expand(length, 16, 16, 3))
        assert out.shape == (length, 16, 16, 3)
        torch.testing.assert_close(out.mean((1, 2, 3)), values, atol=1e-6, rtol=0)


# Streams.


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("length", [1, 4, 14])
def test_streamed_equals_whole(factor: int, length: int) -> None:
    up = upscaler(random_model(factor), UpscaleSettings(scale=1.5, chunk_frames=5, chunk_overlap=1))
    frames = clip(length)
    parts = list(up.stream(iter(frames)))
    assert all(len(part) for part in parts)
    assert torch.equal(torch.cat(parts), up.upscale(frames))


@pytest.mark.parametrize("factor", [1, 4])
def test_a_stream_reads_no_further_ahead_than_two_chunks(factor: int) -> None:
    read = 0

    def source() -> Iterator[Tensor]:
        nonlocal read
        for frame in clip(60, 16, 16):
            read += 1
            yield frame

    given = 0
    for part in upscaler(random_model(factor), chunk_frames=8, chunk_overlap=1).stream(source()):
        assert read - given <= 16 + 2 * factor
        given += len(part)
    assert (read, given) == (60, 60)


def test_a_last_group_that_is_not_full_repeats_its_last_frame() -> None:
    up = upscaler(random_model(4))
    frames = clip(7)
    filled = torch.cat([frames, frames[-1:], frames[-1:]])
    assert torch.equal(up.upscale(frames), up.upscale(filled)[:7])


# Chunks and tiles.


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


# What comes in.


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


# Hosts.


@pytest.mark.parametrize("factor", [1, 4])
def test_progress_counts_up_to_the_total(factor: int) -> None:
    up = upscaler(random_model(factor), chunk_frames=5, chunk_overlap=1)
    told: list[tuple[int, int | None]] = []
    up.upscale(clip(12), on_progress=lambda done, total: told.append((done, total)))
    counts = [done for done, _ in told]
    assert counts == sorted(set(counts))
    assert told[-1] == (12, 12)
    assert {total for _, total in told} == {12}
    told.clear()
    list(up.stream(clip(12), on_progress=lambda done, total: told.append((done, total))))
    assert told[-1] == (12, None)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 7])
def test_poll_s_exception_passes(stop_at: int) -> None:
    class StopNow(Exception):
        pass

    calls: list[int] = []

    def poll() -> None:
        calls.append(1)
        if len(calls) == stop_at:
            raise StopNow

    up = upscaler(random_model(depth=2), chunk_frames=2, chunk_overlap=0)
    with pytest.raises(StopNow):
        up.upscale(clip(6), poll=poll)
    assert len(calls) == stop_at
    calls.clear()
    stop_at = 0
    up.upscale(clip(6), poll=poll)
    assert len(calls) == 3 * 2 + 6  # blocks of three chunks, and six decoded groups


def test_an_error_of_the_source_passes() -> None:
    def source() -> Iterator[Tensor]:
        yield from clip(3)
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="the file ends here"):
        list(upscaler(random_model()).stream(source()))


def test_an_overlap_that_fills_the_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk overlap is 4 latent frames; a chunk of 4 frames holds 4"):
        upscaler(random_model(), chunk_frames=4, chunk_overlap=4)

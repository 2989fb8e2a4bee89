"""The network: sizes, the one-step rule, groups of frames, routing and interruption."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oasis_core.attention.reference import reference_attention
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.model.decoders.pixel import PixelDecoder, _channels_last
from oasis_core.routing import HeadPattern, RoutingSpec

BASE = OasisConfig(
    name="tiny",
    unshuffle=(4, 4, 4),
    latent_channels=4,
    patch=(1, 2, 2),
    dim=32,
    depth=3,
    heads=4,
    ffn_dim=24,
    freq_dim=8,
    sigma=0.6,
    decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=2, hr_blocks=1),
)
GLOBAL = RoutingSpec.uniform(3, 4, HeadPattern.GLOBAL)
MIXED = RoutingSpec(
    (
        (HeadPattern.WINDOW, HeadPattern.GLOBAL, HeadPattern.INTRA_FRAME, HeadPattern.WINDOW),
        (HeadPattern.INTRA_FRAME, HeadPattern.WINDOW, HeadPattern.GLOBAL, HeadPattern.GLOBAL),
        (HeadPattern.GLOBAL, HeadPattern.GLOBAL, HeadPattern.INTRA_FRAME, HeadPattern.WINDOW),
    ),
    (3, 3, 3),
)
CLOSE = 1e-5
"""fp32, order of sums only; the values are about 1."""


@pytest.fixture(autouse=True)
def _no_gradients_and_the_same_numbers_every_time() -> object:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def random_model(config: OasisConfig = BASE) -> OasisModel:
    """Every weight random: nothing is zero, so nothing passes by being absent."""
    model = OasisModel(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


def random_pixels(frames: int, height: int = 16, width: int = 24, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, frames, height, width) * 2 - 1


# One step.


def test_the_one_step_rule() -> None:
    model = random_model()
    z = torch.randn(2, 4, 3, 4, 6)
    velocity = model.dit(z, MIXED)
    assert velocity.shape == z.shape
    assert velocity.std() > 0.1
    torch.testing.assert_close(model.restore(z, MIXED), z - 0.6 * velocity)


def test_training_starts_from_the_low_quality_pixels_with_velocity_zero() -> None:
    model = random_model(replace(BASE, context_length=2))
    model.init_weights()
    z = torch.randn(1, 4, 2, 4, 6)
    assert torch.equal(model.restore(z, MIXED), z)
    pixels = random_pixels(5)
    assert torch.equal(model(pixels, MIXED), pixels)


def test_the_whole_is_its_parts() -> None:
    model = random_model()
    pixels = random_pixels(9, batch=2)
    out = model(pixels, MIXED)
    assert out.shape == pixels.shape
    assert torch.equal(out, model.decode(model.restore(model.encode(pixels), MIXED), pixels))
    alone = torch.cat([model(p, MIXED) for p in pixels.split(1)])  # clips of a batch do not see each other
    torch.testing.assert_close(alone, out, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("shape", [(1, 5, 1, 4, 6), (1, 4, 1, 4, 5)])
def test_latents_that_do_not_fit_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latent is \(1, .*expected 4 channels and sides that are multiples"):
        random_model().dit(torch.zeros(shape), GLOBAL)


def test_the_routing_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="routing is for another model"):
        random_model().dit(torch.zeros(1, 4, 1, 4, 6), RoutingSpec.uniform(2, 4, HeadPattern.GLOBAL))


# Groups of frames.


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("groups", [0, 1, 3])
def test_encoding_group_by_group_equals_the_whole(factor: int, groups: int) -> None:
    model = random_model(replace(BASE, unshuffle=(factor, 4, 4)))
    pixels = random_pixels(1 + factor * groups)
    whole = model.encode(pixels)
    assert whole.shape == (1, 4, 1 + groups, 4, 6)
    parts = [model.encode(pixels[:, :, :1])]
    parts += [model.encode(part, first=False) for part in pixels[:, :, 1:].split(factor, dim=2) if part.shape[2]]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=CLOSE, rtol=CLOSE)
    repeated = torch.cat([pixels[:, :, :1].repeat(1, 1, factor - 1, 1, 1), pixels], dim=2)
    assert torch.equal(model.encode(repeated, first=False), whole)


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("groups", [0, 1, 3])
def test_decoding_group_by_group_equals_the_whole(factor: int, groups: int) -> None:
    model = random_model(replace(BASE, unshuffle=(factor, 4, 4)))
    pixels, z = random_pixels(1 + factor * groups), torch.randn(1, 4, 1 + groups, 4, 6)
    whole = model.decode(z, pixels)
    assert whole.shape == pixels.shape
    assert (whole - pixels).abs().mean() > 0.01
    parts = [model.decode(z[:, :, :1], pixels[:, :, :1])]
    for i in range(groups):
        frames = pixels[:, :, 1 + factor * i : 1 + factor * (i + 1)]
        parts.append(model.decode(z[:, :, i + 1 : i + 2], frames, first=False))
        assert parts[-1].shape == frames.shape
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize(
    ("frames", "latents", "first"),
    [(4, 1, True), (2, 1, True), (5, 1, True), (8, 2, True), (1, 1, False), (5, 2, False)],
)
def test_frames_that_do_not_fit_the_latent_are_named(frames: int, latents: int, first: bool) -> None:
    with pytest.raises(
        ValueError, match=rf"^{frames} frames do not fit {latents} latent frames of 4 \(first={first}\)$"
    ):
        random_model().decode(torch.zeros(1, 4, latents, 4, 6), random_pixels(frames), first)


@pytest.mark.parametrize(("frames", "first"), [(2, True), (4, True), (3, False), (5, False)])
def test_frames_that_fill_no_group_are_not_encoded(frames: int, first: bool) -> None:
    with pytest.raises(ValueError, match="must be multiples of"):
        random_model().encode(random_pixels(frames), first)


# Routing.


def test_all_global_equals_plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    z = torch.randn(2, 4, 3, 4, 6)
    got = model.dit(z, GLOBAL)

    def plain(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
        scores = torch.einsum("bqnd,blnd->bnql", q, k) * q.shape[-1] ** -0.5
        return torch.einsum("bnql,blnd->bqnd", scores.softmax(-1), v)

    monkeypatch.setattr("oasis_core.model.dit.routed_attention", plain)
    torch.testing.assert_close(got, model.dit(z, GLOBAL), atol=CLOSE, rtol=CLOSE)


def test_mixed_routing_equals_the_reference_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    z = torch.randn(1, 4, 4, 14, 10)
    got = model.dit(z, MIXED)
    assert (got - model.dit(z, GLOBAL)).abs().max() > 1e-3  # the patterns matter

    def slow(
        q: Tensor, k: Tensor, v: Tensor, grid: object, patterns: tuple[HeadPattern, ...], window: object, _: object
    ) -> Tensor:
        outputs = []
        for n, pattern in enumerate(patterns):
            one = (x[:, :, n : n + 1] for x in (q, k, v))
            outputs.append(reference_attention(*one, grid, pattern, window)[0])  # type: ignore[arg-type]
        return torch.cat(outputs, dim=2)

    monkeypatch.setattr("oasis_core.model.dit.routed_attention", slow)
    torch.testing.assert_close(got, model.dit(z, MIXED), atol=CLOSE, rtol=CLOSE)


def test_patterns_agree_where_they_see_the_same() -> None:
    model = random_model()
    frame = torch.randn(1, 4, 1, 6, 6)  # one latent frame, 3 x 3 tokens, within a (3, 5, 5) window of every token
    assert torch.equal(model.dit(frame, GLOBAL), model.dit(frame, RoutingSpec.uniform(3, 4, HeadPattern.INTRA_FRAME)))
    wide = RoutingSpec.uniform(3, 4, HeadPattern.WINDOW, (1, 5, 5))
    torch.testing.assert_close(model.dit(frame, wide), model.dit(frame, GLOBAL), atol=CLOSE, rtol=CLOSE)


def test_intra_frame_attention_depends_on_position_in_time_alone_through_its_own_frame() -> None:
    model = random_model()
    routing = RoutingSpec.uniform(3, 4, HeadPattern.INTRA_FRAME)
    z = torch.randn(1, 4, 3, 4, 6)
    alone = torch.cat([model.dit(part, routing) for part in z.split(1, dim=2)], dim=2)  # RoPE is relative
    torch.testing.assert_close(model.dit(z, routing), alone, atol=CLOSE, rtol=CLOSE)


def test_reordered_heads_give_the_same_output() -> None:
    model, twin = random_model(), random_model()
    twin.load_state_dict(model.state_dict())
    layers = []
    for block, patterns in zip(twin.dit.blocks, MIXED.layers, strict=True):
        order = torch.randperm(4)
        layers.append(tuple(patterns[n] for n in order))
        rows = (order[:, None] * BASE.head_dim + torch.arange(BASE.head_dim)).flatten()
        attention = block.self_attn
        for part in (attention.q, attention.k, attention.v):
            part.weight.copy_(part.weight[rows].clone())
            part.bias.copy_(part.bias[rows].clone())
        for norm in (attention.norm_q, attention.norm_k):
            norm.weight.copy_(norm.weight[rows].clone())
        attention.o.weight.copy_(attention.o.weight[:, rows].clone())
    z = torch.randn(1, 4, 3, 4, 6)
    got = twin.dit(z, RoutingSpec(tuple(layers), MIXED.window))
    torch.testing.assert_close(got, model.dit(z, MIXED), atol=CLOSE, rtol=CLOSE)


# Hosts.


def test_poll_is_called_once_before_every_block_and_its_exception_passes() -> None:
    model = random_model()
    z = torch.randn(1, 4, 1, 4, 6)
    calls: list[int] = []
    blocks: list[int] = []
    for block in model.dit.blocks:
        attention = block.self_attn
        attention.norm_q.register_forward_hook(lambda *_: blocks.append(len(calls)))
    plain = model.restore(z, MIXED)
    blocks.clear()
    assert torch.equal(model.restore(z, MIXED, lambda: calls.append(1)), plain)
    assert len(calls) == BASE.depth
    assert blocks == [1, 2, 3]  # polls seen by each block

    class StopNow(Exception):
        pass

    def stop() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise StopNow

    calls.clear()
    blocks.clear()
    with pytest.raises(StopNow):
        model.restore(z, MIXED, stop)
    assert blocks == [1]  # the second block has not run


def test_observe_sees_every_layer_without_changing_the_output() -> None:
    model = random_model()
    z = torch.randn(1, 4, 2, 4, 6)
    seen: list[tuple[int, tuple[int, ...], int]] = []
    out = model.dit(z, MIXED, observe=lambda layer, q, k, grid: seen.append((layer, tuple(q.shape), grid.length)))
    assert seen == [(layer, (1, 12, 4, 8), 12) for layer in range(3)]
    assert torch.equal(out, model.dit(z, MIXED))


def test_half_precision_is_near_single() -> None:
    model = random_model(replace(BASE, context_length=3))
    z = torch.randn(1, 4, 2, 4, 6)
    expected = model.restore(z, MIXED)
    half = model.to(torch.bfloat16).restore(z.to(torch.bfloat16), MIXED)
    assert half.dtype == torch.bfloat16
    # bf16 keeps 8 bits (4e-3); three blocks of random weights amplify it.
    assert (half.float() - expected).abs().mean() < 0.05 * expected.std()


def test_a_single_images_channels_come_last_whatever_its_stride() -> None:
    """torch takes the layout of one image from a stride that says nothing, and convolutions then run in the slow one."""
    odd = torch.randn(1, 6, 5, 8).permute(0, 3, 1, 2).as_strided((1, 8, 6, 5), (8, 1, 40, 8))
    good = _channels_last(odd)
    assert torch.equal(good, odd)
    assert good.stride() == (240, 1, 40, 8)


def test_the_pixel_decoder_is_the_same_with_and_without_gradients() -> None:
    config = OasisConfig(
        "x", unshuffle=(1, 8, 8), latent_channels=8, dim=16, depth=1, heads=1, ffn_dim=16, freq_dim=8,
        decoder=PixelDecoderConfig(width=8, blocks=2, hr_width=8, residual=True),
    )  # fmt: skip
    torch.manual_seed(0)
    decoder = PixelDecoder(config)
    z, pixels = torch.randn(2, 8, 3, 4, 5), torch.randn(2, 3, 3, 32, 40)
    kept = decoder(z, pixels)
    with torch.inference_mode():
        torch.testing.assert_close(decoder(z, pixels), kept.detach(), atol=1e-5, rtol=1e-5)

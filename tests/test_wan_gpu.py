"""The full size's parts on a CUDA device: same numbers as on the CPU, and as much memory as is predicted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oasis_core.memory import wan_decoder_memory
from oasis_core.model import OasisConfig
from oasis_core.model.decoders import DecodePlan, DecoderState, WanDecoder
from oasis_core.model.decoders.wan_layers import Norm, fused
from oasis_core.model.decoders.wan_stream import streams
from oasis_core.model.dit import DiT
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.routing import RoutingSpec

pytestmark = pytest.mark.gpu
TOLERANCE = {"fp32": 2e-4, "tf32": 0.02, "fp16": 0.05, "bf16": 0.3}
"""Largest error as a share of the output's standard deviation. fp32: the CPU's own error against fp64 is 5e-6, and sums of
another order give as much again. TF32, torch's default for convolutions of fp32, has fp16's 10 bits: one H200 gave 4e-3."""
DTYPE = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def random_decoder(width: int) -> WanDecoder:
    torch.manual_seed(0)
    decoder = WanDecoder(WanDecoderConfig(width=width)).eval().requires_grad_(False)
    for name, p in decoder.named_parameters():
        p.normal_(std=(p.shape[0] / p.numel()) ** 0.5 if p.ndim > 1 else 0.2).add_(0.8 * name.endswith("gamma"))
    return decoder


@pytest.mark.parametrize("name", list(TOLERANCE))
@pytest.mark.parametrize("fold", [False, True])
@torch.inference_mode()
def test_decoder_equals_the_cpu(name: str, fold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", name == "tf32")
    dtype, tolerance = DTYPE[name], TOLERANCE[name]
    decoder, z = random_decoder(16), torch.randn(1, 16, 4, 10, 14)
    truth = decoder(z)
    if fold:
        decoder.fold()
    decoder = decoder.to("cuda", dtype)
    host = torch.device("cpu")
    for plan in (
        DecodePlan(), DecodePlan(64, frames=2, keep_on=host),
        DecodePlan(48, frames=4, keep_on=host, latents=2, turn=4, resident=1),
    ):  # fmt: skip
        decoder.plan, state = plan, DecoderState()
        got = torch.cat([decoder(part.cuda().to(dtype), state) for part in z.split((1, 2, 1), dim=2)], dim=2)
        error = (got.float().cpu() - truth).abs()
        assert error.max() < tolerance * truth.std()
        assert error.mean() < tolerance / 5 * truth.std()


@pytest.mark.parametrize("channels", [96, 192, 384])
@torch.inference_mode()
def test_norm_and_silu(channels: int) -> None:
    x = torch.randn(1, 2, 9, 13, channels, device="cuda", dtype=torch.bfloat16)
    norm = Norm(channels).cuda().bfloat16()
    norm.gamma.normal_()
    out = torch.empty_like(x)
    norm.silu_into(x, out)
    expected = torch.nn.functional.silu(torch.nn.functional.rms_norm(x.float(), (channels,), norm.gamma.float(), 1e-24))
    assert (out.float() - expected).abs().max() < 0.02 * expected.abs().max()
    assert not fused(x.cpu())


@torch.inference_mode()
def test_folded_transformer_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oasis_core.model.dit.DEVICE_TOKENS", 100)
    config = OasisConfig("x", dim=96, depth=2, heads=3, ffn_dim=64, freq_dim=16, context_length=4)
    torch.manual_seed(0)
    dit, routing = DiT(config).eval().requires_grad_(False), RoutingSpec.by_ratio(2, 3, 1 / 3, 1 / 3)
    for p in dit.parameters():
        p.normal_(std=0.3 if p.ndim == 1 else p[0].numel() ** -0.5)
    z = torch.randn(1, 16, 3, 20, 24)
    truth = dit(z, routing)
    dit.fold(routing)
    got = dit.cuda()(z.cuda(), routing).cpu()
    assert (got - truth).abs().max() < 10 * TOLERANCE["fp32"] * truth.std()


@pytest.mark.parametrize(
    "plan",
    [
        DecodePlan(), DecodePlan(latents=2), DecodePlan(frames=4, latents=2), DecodePlan(frames=1),
        DecodePlan(256, frames=1),
    ],
)  # fmt: skip
@torch.inference_mode()
def test_the_decoders_peak_is_near_the_prediction(plan: DecodePlan) -> None:
    decoder = random_decoder(96).cuda().bfloat16()
    decoder.fold()
    decoder.plan = replace(plan)
    z, state = torch.randn(1, 16, 3, 60, 104, device="cuda", dtype=torch.bfloat16), DecoderState()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for part in (z[:, :, :1], *z[:, :, 1:].split(plan.latents, dim=2)):
        decoder(part, state)
    peak = torch.cuda.max_memory_allocated() - before
    predicted = sum(wan_decoder_memory(decoder.config, 480, 832, plan.latents, plan, 2))
    assert 0.85 * predicted < peak < 1.15 * predicted


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("width", [16, 96])
@pytest.mark.parametrize("at_once", [1, 2, 3])
@torch.inference_mode()
def test_errors_are_no_larger_than_plain_bf16_has(
    fold: bool, width: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against fp32: squares, and each clip's maximum (the mean over clips is less a matter of chance than one)."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(1)
    z = torch.randn(8, 16, 7, 6, 10, device="cuda")
    truth = random_decoder(width).bfloat16().float().cuda()(z)  # the same numbers in every type

    def error(dtype: torch.dtype, plain: bool) -> torch.Tensor:
        monkeypatch.setattr("oasis_core.model.decoders.wan.streams", (lambda x: False) if plain else streams)
        decoder, state = random_decoder(width).bfloat16().to("cuda", dtype), DecoderState()
        if fold:
            decoder.fold()
        parts = (z[:, :, :1], *z[:, :, 1:].split(at_once, dim=2))
        return (torch.cat([decoder(part.to(dtype), state) for part in parts], dim=2).float() - truth).abs()

    before, bf16, fp16 = error(torch.bfloat16, True), error(torch.bfloat16, False), error(torch.float16, False)
    assert bf16.square().mean() < before.square().mean()
    most, most_before, most_fp16 = (x.flatten(1).amax(1).mean().item() for x in (bf16, before, fp16))
    print(f"{width}, {at_once} a call{', folded' * fold}: {most / most_before:.3f} of plain bf16's maximum")
    assert most <= most_before * (1 if width == 96 else 1.1)
    assert most_fp16 < most_before / 3

"""A clip in memory where the device's memory is short or runs out."""

from __future__ import annotations

import pytest
import torch

from oasis_core.color import ColorMethod
from oasis_core.jobs.clip import upscale_clip
from oasis_core.jobs.fit import RESERVE, WAN_PLANS
from oasis_core.memory import working_memory
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.model.decoders import WanDecoder
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import HeadPattern, RoutingSpec

CONFIG = OasisConfig(
    name="random", unshuffle=(1, 8, 8), latent_channels=4, dim=24, depth=1, heads=2, ffn_dim=24, freq_dim=8,
    decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
)  # fmt: skip


def test_a_clip_in_memory_is_upscaled_in_smaller_bites_where_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = OasisModel(CONFIG).requires_grad_(False)
    routing = RoutingSpec.by_ratio(1, 2, 0.5, 0.5)
    upscaler = Upscaler(model, routing, UpscaleSettings(scale=2.0, chunk_frames=8))
    frames = torch.rand(9, 20, 24, 3, generator=torch.Generator().manual_seed(0))
    real = OasisModel.restore

    def restore(self: OasisModel, z_l: torch.Tensor, *args: object) -> torch.Tensor:
        if z_l.shape[2] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, z_l, *args)

    smaller_chunks = Upscaler(model, routing, UpscaleSettings(scale=2.0, chunk_frames=4))
    expected = smaller_chunks.upscale(frames)
    monkeypatch.setattr(OasisModel, "restore", restore)
    assert torch.equal(upscale_clip(upscaler, frames), expected)
    lines = [r.getMessage() for r in caplog.records if "out of memory" in r.getMessage()]
    assert lines == ["out of memory with chunk 8, tile by size: again with chunk 4, tile by size"]
    monkeypatch.setattr(OasisModel, "restore", lambda *_: (_ for _ in ()).throw(ValueError("something else")))
    with pytest.raises(ValueError, match="something else"):
        upscale_clip(upscaler, frames)


def test_the_plan_that_fits_is_the_one_that_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A model of the full size's kind, of which a chunk of 9 frames fits and one of 17 does not, however it is decoded."""
    torch.manual_seed(0)
    config = OasisConfig(
        "small", dim=960, depth=1, heads=3, ffn_dim=16, freq_dim=8, context_length=3, decoder=WanDecoderConfig(width=4)
    )
    model = OasisModel(config).eval()
    model.attach_decoder(WanDecoder(WanDecoderConfig(width=4)))
    for name, p in model.requires_grad_(False).named_parameters():
        torch.nn.init.normal_(p, std=0.3 if p.ndim == 1 or "modulation" in name else p[0].numel() ** -0.5)
        p += 0.7 * ("norm" in name or name.endswith("gamma"))
    decoder = model.decoder
    assert isinstance(decoder, WanDecoder)
    routing, frames = RoutingSpec.uniform(1, 3, HeadPattern.GLOBAL), torch.rand(19, 24, 40, 3)

    def upscaler(chunk: int) -> Upscaler:
        return Upscaler(model, routing, UpscaleSettings(scale=2.0, chunk_frames=chunk, color=ColorMethod.NONE))

    def least(chunk: int) -> int:
        needs = []
        for decoder.plan in WAN_PLANS:
            needs.append(working_memory(upscaler(chunk), *frames.shape[:3]))
        return min(needs)

    assert least(17) > 1.2 * least(8)
    budget = int((least(8) + least(17)) / 2 / RESERVE)
    expected = upscaler(8).upscale(frames)
    assert (expected - upscaler(17).upscale(frames)).abs().max() > 1e-3  # the chunk shows
    monkeypatch.setattr("oasis_core.jobs.clip.device_budget", lambda device: budget)
    caplog.clear()
    assert torch.allclose(upscale_clip(upscaler(17), frames), expected, atol=1e-5)
    assert working_memory(upscaler(8), *frames.shape[:3]) <= RESERVE * budget  # with the decoder's plan that is left
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith("chunk 8, tile by size instead of chunk 17, tile by size: all that the 0.0 GiB free")
    caplog.clear()
    monkeypatch.setattr("oasis_core.jobs.clip.device_budget", lambda device: 2**40)
    assert torch.allclose(upscale_clip(upscaler(17), frames), upscaler(17).upscale(frames))
    assert caplog.records == []

"""A clip in memory where the device's memory runs out."""

from __future__ import annotations

import pytest
import torch

from oasis_core.jobs.shrink import upscale_clip
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import RoutingSpec

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

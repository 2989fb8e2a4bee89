"""What tests of jobs ask ``oasis upscale`` for: a tiny random model, small chunks and segments."""

from __future__ import annotations

from pathlib import Path

import torch

from oasis_core.checkpoints import save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.routing import RoutingSpec


def save_random_model(path: Path) -> Path:
    """One block of two heads, a global one and one within frames."""
    config = OasisConfig(
        name="random", unshuffle=(1, 8, 8), latent_channels=4, dim=24, depth=1, heads=2, ffn_dim=24, freq_dim=8,
        decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    network = OasisModel(config)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    save_checkpoint(path, network, Metadata(config, RoutingSpec.by_ratio(1, 2, 0.5, 0.5), "Apache-2.0"))
    return path


def options(model: Path, segment: int = 6, codec: str = "h264") -> list[str]:
    """Of ``oasis upscale``. Twice enlarged, a clip of 64x64 is 128x128: of 64x64 x264's macroblock-tree code in assembler makes
    other packets from run to run."""
    return [
        *("--model", str(model), "--device", "cpu", "--dtype", "fp32", "--scale", "2"),
        *("--chunk", "5", "--overlap", "1", "--segment", str(segment), "--codec", codec),
    ]

"""Models of true size with random weights: what a benchmark costs does not depend on them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from oasis_core.checkpoints import save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.model.dit import DiT
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.routing import HeadPattern, RoutingSpec
from oasis_core.training.config import load_config

FULL = OasisConfig("oasis-1.3b", context_length=512, decoder=WanDecoderConfig())
SMALL = load_config(Path(__file__).resolve().parent.parent / "configs" / "oasis-tiny.toml")
TINY = SMALL.model


def routings(config: OasisConfig) -> dict[str, RoutingSpec]:
    """By name: dense, routed (the small model as shipped, else a third of the heads each), window."""
    depth, heads = config.depth, config.heads
    routed = tiny_routing(config) if config.context_length == 0 else RoutingSpec.by_ratio(depth, heads, 1 / 3, 1 / 3)
    return {
        "dense": RoutingSpec.uniform(depth, heads, HeadPattern.GLOBAL),
        "routed": routed,
        "window": RoutingSpec.uniform(depth, heads, HeadPattern.WINDOW),
    }


def tiny_routing(config: OasisConfig) -> RoutingSpec:
    """The shares of configs/oasis-tiny.toml, one head of a layer after the other."""
    heads = config.heads * config.depth
    kinds = [HeadPattern.GLOBAL] * round(SMALL.routing.global_share * heads)
    kinds += [HeadPattern.INTRA_FRAME] * round(SMALL.routing.intra_frame_share * heads)
    kinds += [HeadPattern.WINDOW] * (heads - len(kinds))
    return RoutingSpec(
        tuple(tuple(kinds[layer :: config.depth]) for layer in range(config.depth)), SMALL.routing.window
    )


def fill(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Random weights, made on the device: what passes through keeps its size."""
    module = module.to_empty(device=device).to(dtype)
    torch.manual_seed(0)
    for name, p in module.named_parameters():
        spread = (p.shape[0] / p.numel()) ** 0.5 if p.ndim > 1 else 0.02
        p.data.normal_(std=spread)
        if p.ndim == 1 and ("norm" in name or name.endswith("gamma")):
            p.data.add_(0 if name.endswith("bias") else 1)
    return module.eval().requires_grad_(False)


def random_transformer(config: OasisConfig, device: torch.device, dtype: torch.dtype) -> DiT:
    with torch.device("meta"):
        dit = DiT(config)
    return fill(dit, device, dtype)  # type: ignore[return-value]


def random_tiny(device: torch.device, dtype: torch.dtype, config: OasisConfig = TINY) -> OasisModel:
    """The small model with its decoder."""
    torch.manual_seed(0)
    model = OasisModel(config)
    model.init_weights()
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.02)
    return model.to(device, dtype).eval().requires_grad_(False)


def save_full_shape(path: Path) -> None:
    """A checkpoint of 30 blocks of 1536, 12 heads, and a pixel decoder."""
    config = OasisConfig(
        name="full-shape", unshuffle=(4, 8, 8), latent_channels=16, dim=1536, depth=30, heads=12, ffn_dim=8960,
        freq_dim=256, decoder=PixelDecoderConfig(),
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # 1.4 billion random numbers
        model = OasisModel(config)
    model = model.to("cpu", torch.bfloat16)
    save_checkpoint(path, model, Metadata(config, RoutingSpec.by_ratio(30, 12, 0.25, 0.35), "Apache-2.0"))

"""The whole method with a model of a few hundred weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oasis_core.color import ColorMethod
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
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

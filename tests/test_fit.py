"""Plans for full-size models: what is predicted stays under the budget, the best plan that does is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oasis_core.jobs.fit import RESERVE, WAN_PLANS, device_budget, fit, told
from oasis_core.memory import tiny_decoder_memory, working_memory
from oasis_core.model import OasisConfig, OasisModel
from oasis_core.model.decoders import DecodePlan, TaehvDecoder, WanDecoder
from oasis_core.model.vae_config import TaehvConfig, WanDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import RoutingSpec

GIB = 2**30


CONFIG = OasisConfig("oasis-1.3b", context_length=512, decoder=WanDecoderConfig())
ROUTING = RoutingSpec.by_ratio(30, 12, 1 / 3, 1 / 3)


def full_size(tiny: bool = False, chunk: int = 33) -> Upscaler:
    """True size, on no device, in bf16."""
    with torch.device("meta"):
        model = OasisModel(CONFIG)
        model.attach_decoder(TaehvDecoder(TaehvConfig()) if tiny else WanDecoder(WanDecoderConfig()))
    return Upscaler(model.to(torch.bfloat16), ROUTING, UpscaleSettings(chunk_frames=chunk))


def weights(upscaler: Upscaler) -> int:
    return sum(p.numel() * p.element_size() for p in upscaler.model.parameters())


@pytest.mark.parametrize("limit", [8, 12, 16, 24, 80])
@pytest.mark.parametrize("size", [(180, 320), (272, 480)])
def test_720p_and_1080p_fit(limit: int, size: tuple[int, int]) -> None:
    upscaler = full_size()
    budget = limit * GIB - weights(upscaler)
    fitted = fit(upscaler, 33, *size, budget)
    assert working_memory(fitted, 33, *size) <= RESERVE * budget
    assert fitted.settings.chunk_frames >= 16 or limit == 8


def test_more_memory_gives_better_plans() -> None:
    upscaler, ranks = full_size(), []
    for limit in (7, 8, 12, 16, 24, 80):
        fitted = fit(upscaler, 33, 272, 480, limit * GIB)
        plan = fitted.model.decoder.plan
        assert isinstance(plan, DecodePlan)
        ranks.append((-fitted.settings.chunk_frames, WAN_PLANS.index(plan)))
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] == (-33, 0)


def test_too_little_is_told(caplog: pytest.LogCaptureFixture) -> None:
    fitted = fit(full_size(), 33, 272, 480, GIB // 4)
    assert "choose a smaller output size" in caplog.text
    assert fitted.settings.chunk_frames == 5


def test_the_tiny_decoder_needs_less() -> None:
    wan, tiny = (working_memory(full_size(kind), 33, 272, 480) for kind in (False, True))
    assert tiny < wan / 2
    assert tiny_decoder_memory(TaehvConfig(), 64, 64, 1, DecodePlan(frames=2), 2) < tiny_decoder_memory(
        TaehvConfig(), 64, 64, 1, DecodePlan(), 2
    )


def test_what_has_no_memory_or_no_budget_stays_as_it_is() -> None:
    upscaler = full_size()
    assert fit(upscaler, 33, 272, 480, None) is upscaler
    assert device_budget(torch.device("cpu")) is None


def test_in_words() -> None:
    assert told(DecodePlan()) == "whole frames"
    plan = replace(DecodePlan(512, frames=1), keep_on=torch.device("cpu"))
    assert told(plan) == "tiles of 512 pixels, 1 at a time, past kept in host memory"

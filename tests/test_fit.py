"""Plans for full-size models: what is predicted stays under the budget, the best plan that does is taken."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from oasis_core.color import ColorMethod
from oasis_core.jobs.fit import IN_TURNS, RESERVE, WAN_PLANS, device_budget, fit, planned, told
from oasis_core.jobs.manifest import Manifest, SegmentRecord
from oasis_core.memory import decoder_traffic, tiny_decoder_memory, working_memory
from oasis_core.model import OasisConfig, OasisModel
from oasis_core.model.decoders import DecodePlan, TaehvDecoder, WanDecoder
from oasis_core.model.vae_config import TaehvConfig, WanDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import RoutingSpec
from oasis_core.video_io import VideoInfo
from oasis_core.video_io.color_tags import ColorTags

GIB = 2**30


CONFIG = OasisConfig("oasis-1.3b", context_length=512, decoder=WanDecoderConfig())
ROUTING = RoutingSpec.by_ratio(30, 12, 1 / 3, 1 / 3)
ROUTING_TINY = RoutingSpec.by_ratio(2, 8, 0.1, 0.2)


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
        likely = IN_TURNS[0] if replace(plan, resident=0) in IN_TURNS else plan
        ranks.append((-fitted.settings.chunk_frames, WAN_PLANS.index(likely)))
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] == (-33, 0)


def test_a_job_keeps_its_plan() -> None:
    one = Fraction(1)
    info = VideoInfo(480, 272, 33, 25 * one, one / 25, 0, one, "yuv420p", 8, ColorTags(1, False), ())
    begun, manifest = planned(full_size(), Manifest({}), info, 8 * GIB)
    plan = begun.model.decoder.plan
    assert isinstance(plan, DecodePlan)
    assert plan != DecodePlan()
    assert manifest.decode_plan == plan
    for budget in (None, 80 * GIB):  # it goes on where there is more
        again, same = planned(full_size(), manifest, info, budget)
        assert (again.model.decoder.plan, again.settings, same) == (plan, begun.settings, manifest)
    small, shorter = planned(full_size(), Manifest({}), info, 3 * GIB // 2)
    assert small.settings.chunk_frames == shorter.chunk_frames
    assert shorter.chunk_frames is not None
    record = SegmentRecord("segment_0", 0, 8, 0, 0, 0, 0, "", 0.0)
    less, still = planned(full_size(), replace(manifest, segments=(record,)), info, GIB)  # ... or less
    assert (less.settings, still.chunk_frames) == (begun.settings, manifest.chunk_frames)
    assert still.decode_plan == WAN_PLANS[-1]
    untouched = full_size()
    assert planned(untouched, Manifest({}), info, None)[1] == Manifest({})


def tiny(tile: int | None = None) -> Upscaler:
    """About the shape of what ships, on no device, in bf16."""
    config = OasisConfig("x", (1, 8, 8), 64, dim=256, depth=2, heads=8, ffn_dim=768, freq_dim=8)
    with torch.device("meta"):
        model = OasisModel(config).to(torch.bfloat16)
    return Upscaler(model, ROUTING_TINY, UpscaleSettings(tile=tile))


def cut(upscaler: Upscaler, height: int, width: int) -> int:
    """Side of the tiles of a frame four times as large, in tokens; 0: whole."""
    geometry = upscaler.geometry(height, width)
    return upscaler.tiling(geometry.pad_h // 16, geometry.pad_w // 16)[0]


@pytest.mark.parametrize("limit", [8, 12, 24])
def test_4k_frames_stay_whole_on_common_cards(limit: int) -> None:
    """No tile, so no difference from the untiled output: heads that see everything make one of 1 to 1.8 code values."""
    budget = limit * GIB - GIB  # the system's and torch's own
    upscaler = tiny()
    fitted = fit(upscaler, 100, 540, 960, budget)
    assert cut(upscaler, 540, 960) == 80
    assert cut(fitted, 540, 960) == 0
    assert working_memory(fitted, 100, 540, 960) <= RESERVE * budget
    assert fitted.settings.chunk_frames == 16


def test_what_is_whole_and_what_is_not() -> None:
    assert cut(tiny(), 360, 640) == 0  # 2560x1440: wherever
    assert cut(fit(tiny(), 100, 540, 960, 2 * GIB), 540, 960) == 0  # a shorter chunk
    assert fit(tiny(), 100, 540, 960, 2 * GIB + GIB // 2).settings.chunk_frames == 8
    assert cut(fit(tiny(), 100, 540, 960, GIB), 540, 960) == 80  # too little: tiles, and the chunk stays
    assert fit(tiny(), 100, 540, 960, GIB).settings.chunk_frames == 16
    assert cut(fit(tiny(), 100, 1080, 1920, 500 * GIB), 1080, 1920) == 80  # 7680x4320: the time would not end
    assert cut(fit(tiny(512), 100, 540, 960, 24 * GIB), 540, 960) == 32  # asked for
    assert cut(fit(tiny(), 100, 540, 960, 24 * GIB, whole=False), 540, 960) == 80


def test_a_job_keeps_whole_frames_or_tiles() -> None:
    one = Fraction(1)
    info = VideoInfo(960, 540, 100, 25 * one, one / 25, 0, one, "yuv420p", 8, ColorTags(1, False), ())
    begun, manifest = planned(tiny(), Manifest({}), info, 2 * GIB + GIB // 2)
    assert (manifest.chunk_frames, manifest.tile, cut(begun, 540, 960)) == (8, 0, 0)
    for budget in (None, GIB, 80 * GIB):
        again, same = planned(tiny(), manifest, info, budget)
        assert (again.settings, same) == (begun.settings, manifest)
    record = SegmentRecord("segment_0", 0, 8, 0, 0, 0, 0, "", 0.0)
    tiled = Manifest({}, segments=(record,))  # begun in tiles, where nothing was known of memory
    still, same = planned(tiny(), tiled, info, 80 * GIB)
    assert (cut(still, 540, 960), same) == (80, tiled)


def test_a_plan_is_the_same_for_a_model_that_waits_on_the_cpu() -> None:
    """Ray's driver plans for its workers' GPUs."""
    there = tiny()
    here = Upscaler(there.model.to_empty(device="cpu"), RoutingSpec.by_ratio(2, 8, 0.1, 0.2), UpscaleSettings())
    for budget in (GIB, 2 * GIB, 2 * GIB + GIB // 2, 7 * GIB):
        assert fit(here, 100, 540, 960, budget).settings == fit(tiny(), 100, 540, 960, budget).settings


def test_full_size_frames_stay_whole_too() -> None:
    fitted = fit(full_size(chunk=17), 33, 540, 960, 76 * GIB)
    assert fitted.settings.tile == 0
    assert working_memory(fitted, 33, 540, 960) <= RESERVE * 76 * GIB
    assert fit(full_size(), 33, 540, 960, 5 * GIB).settings.tile is None


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


LAB = replace(UpscaleSettings(), color=ColorMethod.LAB)
"""Colours that take most memory."""


@pytest.mark.parametrize(("limit", "at_once"), [(2.0, None), (1.2, 4), (0.8, 2), (0.1, 1)])
def test_where_memory_is_short_fewer_frames_are_drawn_at_once(limit: float, at_once: int | None) -> None:
    """Before the chunk becomes shorter, which shows; 720p takes 8 frames at once."""
    upscaler, budget = Upscaler(tiny().model, ROUTING_TINY, LAB), int(limit * GIB)
    assert upscaler.latents(upscaler.geometry(180, 320)) == 8
    fitted = fit(upscaler, 100, 180, 320, budget)
    assert fitted.settings == replace(LAB, at_once=at_once)
    need = working_memory(fitted, 100, 180, 320)
    assert at_once == 1 or need <= RESERVE * budget
    upscaler.model.to_empty(device="cpu")  # where it waits, its plan is the same
    assert fit(upscaler, 100, 180, 320, budget).settings == fitted.settings


def test_a_job_goes_on_with_fewer_frames_at_once() -> None:
    """Nothing in the manifest says how many: the frames do not hang on it."""
    one = Fraction(1)
    info = VideoInfo(320, 180, 100, 25 * one, one / 25, 0, one, "yuv420p", 8, ColorTags(1, False), ())
    record = SegmentRecord("segment_0", 0, 8, 0, 0, 0, 0, "", 0.0)
    for manifest in (Manifest({}), Manifest({}, segments=(record,))):
        begun, same = planned(Upscaler(tiny().model, ROUTING_TINY, LAB), manifest, info, GIB)
        assert (begun.settings, same) == (replace(LAB, at_once=4), manifest)


def test_in_words() -> None:
    assert told(DecodePlan()) == "whole frames"
    assert told(DecodePlan(frames=4, latents=2)) == "whole frames, 4 at a time, 2 latent frames a call"
    plan = replace(DecodePlan(512, frames=1), keep_on=torch.device("cpu"))
    assert told(plan) == "tiles of 512 pixels, 1 at a time, past kept in host memory"
    assert told(replace(plan, turn=9, resident=2)) == (
        "tiles of 512 pixels, 1 at a time, each 9 latent frames in turn, past kept in host memory but for 2 tiles"
    )


@pytest.mark.parametrize(("limit", "size", "most"), [(8, (180, 320), 8), (8, (272, 480), 25), (12, (272, 480), 20)])
def test_where_the_past_waits_on_the_host_little_is_carried(limit: int, size: tuple[int, int], most: float) -> None:
    """GiB in a chunk of 33 frames. Once a call it was 75 GiB at 720p and 175 to 189 at 1080p."""
    upscaler = full_size()
    fitted = fit(upscaler, 33, *size, (limit * GIB - weights(upscaler)) - GIB // 2)
    plan, config = fitted.model.decoder.plan, WanDecoderConfig()
    assert isinstance(plan, DecodePlan)
    assert replace(plan, resident=0) in IN_TURNS
    carried = decoder_traffic(config, 4 * size[0], 4 * size[1], 9, plan, 2)
    print(
        f"{told(plan)}: {carried / GIB:.1f} GiB, {working_memory(fitted, 33, *size) / GIB:.2f} GiB beside the weights"
    )
    assert carried < most * GIB
    assert decoder_traffic(config, 4 * size[0], 4 * size[1], 9, replace(plan, turn=0, latents=1), 2) > 2 * carried


def test_plans_of_older_jobs_read_back() -> None:
    plan = DecodePlan(512, 24, 2, torch.device("cpu"))
    assert [DecodePlan.of_text(text) for text in ("512,24,2,cpu", "512,24,2,cpu,1")] == [plan, plan]
    assert DecodePlan.of_text("512,24,2,cpu,2") == replace(plan, latents=2)
    for bad in ("512,24,2,cpu,1,9,0,4", "512,24,2,cpu,1,-9,0", "512,24,2,cpu,1,9,-1", "512,24,2,cpu,1,,"):
        with pytest.raises(ValueError, match="plan is"):
            DecodePlan.of_text(bad)

"""Whatever share of a chunk its neighbours share: a stream that begins at any place where one can goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oasis_core.color import ColorMethod
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.patchify import frame_count
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import Position, plan_chunks, warm_up_start
from oasis_core.routing import HeadPattern, RoutingSpec

from .jobs.conftest import content, run, stop_after
from .test_cli import make_clip
from .tiny_job import save_random_model

SIZE = 6
"""Latent frames of a chunk."""


def upscaler(factor: int, overlap: int, color: ColorMethod) -> Upscaler:
    config = OasisConfig(
        name="random", unshuffle=(factor, 8, 8), patch=(1, 1, 1), latent_channels=4, dim=24, depth=1, heads=2, ffn_dim=24,
        freq_dim=8, decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    model = OasisModel(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    settings = UpscaleSettings(
        scale=1.0, color=color, chunk_frames=frame_count(SIZE, factor), chunk_overlap=overlap, scene_cuts=False
    )
    return Upscaler(model, RoutingSpec.uniform(1, 2, HeadPattern.GLOBAL), settings)


@pytest.mark.parametrize("overlap", range(SIZE))
@pytest.mark.parametrize(("factor", "color"), [(1, ColorMethod.NONE), (4, ColorMethod.NONE), (1, ColorMethod.ADAIN)])
def test_a_stream_from_anywhere_is_the_whole_one(factor: int, overlap: int, color: ColorMethod) -> None:
    up = upscaler(factor, overlap, color)
    frames = torch.rand(frame_count(20, factor), 16, 16, 3, generator=torch.Generator().manual_seed(1))
    for latents in range(13, 20):  # last chunks that are moved back by every number
        clip = frames[: frame_count(latents, factor)]
        parts = list(up.parts(iter(clip), Position()))
        whole = torch.cat([p.frames for p in parts])
        places = [p.position for p in parts if p.restartable]
        assert len(places) == len(plan_chunks(latents, SIZE, overlap))
        for place in places:
            again = torch.cat([p.frames for p in up.parts(iter(clip[up.first_needed(place) :]), place)])
            assert torch.equal(again, whole[place.frame :]), (latents, place)


def test_no_more_is_seen_than_is_needed() -> None:
    """One chunk less changes what comes out: the number of warm-up chunks is the least."""
    for overlap in range(1, SIZE):
        up = upscaler(1, overlap, ColorMethod.NONE)
        clip = torch.rand(30, 16, 16, 3, generator=torch.Generator().manual_seed(1))
        whole = torch.cat([p.frames for p in up.parts(iter(clip), Position())])
        stride = SIZE - overlap
        place = Position(stride * (12 // stride))
        needed = warm_up_start(place, SIZE, overlap, 1)
        assert needed == place.frame - stride * max(1, -(-overlap // stride))
        late = up.parts(iter(clip[needed + stride :]), Position(place.frame - needed - stride))
        assert not torch.equal(torch.cat([p.frames for p in late]), whole[place.frame :])


@pytest.mark.parametrize("overlap", ["3", "4"])
def test_a_job_whose_chunks_share_most_resumes(tmp_path: Path, overlap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clip = save_random_model(tmp_path / "random.safetensors"), make_clip(tmp_path / "in.mkv", 20, 64, 64)
    more = "--overlap", overlap, "--no-scene-cuts"
    assert run(clip, tmp_path / "whole.mkv", model, *more, codec="ffv1") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 17, KeyboardInterrupt())
        assert run(clip, tmp_path / "out.mkv", model, *more, codec="ffv1") == 130
    assert run(clip, tmp_path / "out.mkv", model, *more, "--resume", codec="ffv1") == 0
    assert content(tmp_path / "out.mkv") == content(tmp_path / "whole.mkv")

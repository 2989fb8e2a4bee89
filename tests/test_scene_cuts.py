"""Hard cuts are found, and cost nothing: each shot comes out as if it were alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Part, Upscaler, UpscaleSettings
from oasis_core.plan import Position
from oasis_core.routing import HeadPattern, RoutingSpec
from oasis_core.scene_cuts import GRID, SceneCutDetector, _small
from oasis_core.video_io import VideoReader

SAMPLE = Path(__file__).parents[1] / "assets" / "sample.mp4"
SETTINGS = UpscaleSettings(scale=1.0, chunk_frames=7, chunk_overlap=1)


def random_upscaler(factor: int = 1, settings: UpscaleSettings = SETTINGS) -> Upscaler:
    """Every weight random, every head global: each frame of a chunk shows in all others."""
    config = OasisConfig(
        name="tiny", unshuffle=(factor, 4, 4), latent_channels=4, patch=(1, 2, 2), dim=16, depth=1, heads=2, ffn_dim=16,
        freq_dim=8, decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=2, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    model = OasisModel(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return Upscaler(model.eval(), RoutingSpec.uniform(1, 2, HeadPattern.GLOBAL), settings)


def shot(seed: int, frames: int, height: int = 16, width: int = 24) -> Tensor:
    """A smooth random picture that brightens slowly."""
    rough = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    picture = torch.nn.functional.interpolate(rough, (height, width), mode="bilinear")[0].permute(1, 2, 0)
    return torch.stack([(0.8 * picture + 0.004 * t).clamp(0, 1) for t in range(frames)])


def found(frames: Tensor) -> list[int]:
    detector = SceneCutDetector()
    return [i for i, frame in enumerate(frames) if detector.begins_shot(frame)]


def test_hard_cuts_are_found_and_slow_change_is_not() -> None:
    assert found(torch.cat([shot(1, 9), shot(2, 5), shot(3, 12)])) == [0, 9, 14]
    assert found(torch.cat([shot(1, 9), shot(2, 5)]) * 0.05) == [0, 9]
    assert found(torch.cat([shot(1, 6), torch.zeros(4, 16, 24, 3), shot(1, 6)])) == [0, 6, 10]


def test_real_motion_is_no_cut() -> None:
    frames = torch.stack([f.rgb for f in VideoReader(SAMPLE)])
    assert found(frames) == found(frames[::4]) == [0]
    assert found(torch.cat([frames, frames.flip(2)])) == [0, 24]


def test_steady_commotion_is_not_cut_for_ever() -> None:
    noise = torch.rand(60, 16, 24, 3, generator=torch.Generator().manual_seed(0))
    assert len(found(noise)) < 5


@pytest.mark.parametrize("size", [(180, 320), (155, 300), (17, 33), (16, 24), (5, 7), (1, 1)])
def test_cells_are_those_of_pooling(size: tuple[int, int]) -> None:
    picture = torch.rand(*size, 3, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    shape = min(size[0], GRID[0]), min(size[1], GRID[1])
    expected = torch.nn.functional.adaptive_avg_pool2d(picture.clamp(0, 1).permute(2, 0, 1)[None], shape)[0]
    assert torch.allclose(_small(picture).cells, expected.permute(1, 2, 0).reshape(-1, 3), atol=1e-6)


def test_what_it_says_depends_on_few_frames() -> None:
    """A detector that starts in the middle says the same once it has been fed ``MEMORY`` frames."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.cat([shot(s, 1 + s % 7) for s in range(8)] + [torch.rand(12, 16, 24, 3, generator=generator)])
    whole = found(frames)
    for start in range(0, len(frames), 3):
        later = [start + i for i in found(frames[start:])]
        decided = start + SceneCutDetector.MEMORY
        assert [i for i in later if i >= decided] == [i for i in whole if i >= decided]


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("lengths", [(1, 1), (11, 9), (3, 30), (30, 1)])
def test_a_shot_after_a_cut_is_bit_for_bit_that_shot_alone(factor: int, lengths: tuple[int, int]) -> None:
    up = random_upscaler(factor)
    first, second = shot(1, lengths[0]), shot(2, lengths[1])
    out = up.upscale(torch.cat([first, second]))
    assert torch.equal(out, torch.cat([up.upscale(first), up.upscale(second)]))


def test_without_the_setting_shots_bleed() -> None:
    up = random_upscaler(settings=replace(SETTINGS, scene_cuts=False))
    first, second = shot(1, 5), shot(2, 5)
    assert not torch.equal(up.upscale(torch.cat([first, second]))[5:], up.upscale(second))


@pytest.mark.parametrize("factor", [1, 4])
def test_a_flash_of_one_frame_is_a_shot_of_its_own(factor: int) -> None:
    frames = shot(1, 20)
    frames[10] = 1.0
    assert found(frames) == [0, 10, 11]
    assert random_upscaler(factor).upscale(frames).shape == frames.shape


def parts(up: Upscaler, frames: Tensor, start: Position) -> list[Part]:
    return list(up.parts(iter(frames[up.first_needed(start) :]), start))


@pytest.mark.parametrize(("factor", "chunk", "overlap"), [(1, 1, 0), (1, 5, 0), (1, 8, 3), (4, 5, 0), (4, 9, 1)])
@pytest.mark.parametrize("clip", [lambda: shot(1, 31), lambda: torch.cat([shot(1, 21), shot(2, 2), shot(3, 12)])])
def test_a_stream_that_begins_at_any_restartable_part_goes_on_bit_for_bit(
    factor: int, chunk: int, overlap: int, clip: Callable[[], Tensor]
) -> None:
    up = random_upscaler(factor, UpscaleSettings(scale=1.0, chunk_frames=chunk, chunk_overlap=overlap))
    frames = clip()
    whole = parts(up, frames, Position())
    at = [p.position for p in whole if p.restartable]
    assert len(at) > 2
    expected = torch.cat([p.frames for p in whole])
    for start in at:
        again = parts(up, frames, start)
        assert again[0].position == start
        assert torch.equal(torch.cat([p.frames for p in again]), expected[start.frame :])
        assert [p.position for p in again if p.restartable] == [p for p in at if p.frame >= start.frame]


def test_a_stream_goes_on_with_smaller_chunks_too() -> None:
    up = random_upscaler()
    frames = shot(1, 40)
    smaller = Upscaler(up.model, up.routing, replace(up.settings, chunk_frames=3))
    for start in [p.position for p in parts(up, frames, Position()) if p.restartable]:
        again = parts(smaller, frames, start)
        assert sum(len(p.frames) for p in again) == 40 - start.frame

"""Looks: each changes what it should, keeps the mean colour, and is constant over still clips unless it walks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oasis_core.training import looks
from oasis_core.training.axis_filters import filter_axes, gaussian_matrix, rescale_matrix
from oasis_core.training.draw import Draw, Mode
from oasis_core.training.look_draws import LookConfig, give_looks

from .conftest import textured

NONE = LookConfig(interlace=0, grain=0, phone=0, halo=0, bleed=0, bands=0, rescale=0)
ALL_BUT_GRAIN = LookConfig(interlace=0, grain=0, phone=1, halo=1, bleed=1, bands=1, rescale=1)
STRONGEST: dict[str, Callable[[Tensor], Tensor]] = {
    "halo": lambda x: looks.halo(x, fill(x, 1.2), fill(x, 1.6)),
    "bleed": lambda x: looks.bleed(x, fill(x, 3.5), fill(x, 1.2)),
    "smear": lambda x: looks.smear(x, fill(x, 14 / 255), fill(x, 2.5)),
    "bands": lambda x: looks.bands(x, fill(x, 28)),
}


def fill(x: Tensor, value: float) -> Tensor:
    return torch.full((len(x),), float(value))


def pictures(count: int = 4, size: int = 64) -> Tensor:
    """``(count, 3, size, size)`` in [0, 1]."""
    found = [cv2.GaussianBlur(textured(size, size, k), (0, 0), 0.7) for k in range(count)]
    return torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in found]) / 255


def colour_differences(x: Tensor) -> Tensor:
    return x - looks.luma(x)


def detail(x: Tensor) -> Tensor:
    """Mean energy of neighbours' differences."""
    return (x.diff(dim=-1).square().mean() + x.diff(dim=-2).square().mean()) / 2


@pytest.mark.parametrize("name", STRONGEST)
def test_mean_colour_stays(name: str) -> None:
    x = pictures(8)
    flat = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 48, 48)
    for clean in (x, flat):
        after = STRONGEST[name](clean).clamp(0, 1)
        assert (after - clean).mean((2, 3)).abs().max() < 1 / 255
    assert (STRONGEST[name](x) - x).abs().mean() > 0.5 / 255


def test_halo_overshoots_at_edges_and_leaves_colour_and_flat_parts() -> None:
    step = torch.full((1, 3, 40, 40), 0.3)
    step[..., 20:] = 0.6
    sharp = looks.halo(step, fill(step, 1.0), fill(step, 1.2))
    assert sharp.min() < 0.27
    assert sharp.max() > 0.63
    torch.testing.assert_close(sharp[..., :10], step[..., :10], rtol=0, atol=1e-3)
    x = 0.25 + pictures() / 2  # room for the halo
    sharp = looks.halo(x, fill(x, 0.6), fill(x, 1.2))
    assert detail(looks.luma(sharp)) > 1.3 * detail(looks.luma(x))
    torch.testing.assert_close(colour_differences(sharp), colour_differences(x), rtol=0, atol=2e-3)


def test_bleeding_blurs_colour_alone() -> None:
    x = 0.25 + pictures() / 2
    bled = looks.bleed(x, fill(x, 2.5), fill(x, 0.5))
    torch.testing.assert_close(looks.luma(bled), looks.luma(x), rtol=0, atol=2e-3)
    before, after = colour_differences(x), colour_differences(bled)
    assert detail(after) < 0.5 * detail(before)
    across, down = (after.diff(dim=d).square().mean() / before.diff(dim=d).square().mean() for d in (3, 2))
    assert across < down


def test_smear_takes_texture_and_leaves_edges() -> None:
    x = torch.full((1, 3, 48, 48), 0.2)
    x[..., 24:] = 0.8
    x = x + 0.015 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    smeared = looks.smear(x, fill(x, 12 / 255), fill(x, 2))
    assert smeared[..., :18].std() < 0.35 * x[..., :18].std()
    assert (smeared[..., 24] - smeared[..., 23]).mean() > 0.5


def test_bands_have_few_levels_and_keep_colour() -> None:
    ramp = torch.linspace(0.1, 0.9, 512).expand(1, 3, 8, 512)
    banded = looks.bands(ramp, fill(ramp, 33))
    jumps = looks.luma(banded)[0, 0, 0].sort().values.diff()
    jumps = jumps[jumps > 1e-4]
    torch.testing.assert_close(jumps, torch.full((len(jumps),), 1 / 32), rtol=0, atol=1e-5)
    assert 24 <= len(jumps) <= 27  # 0.8 of the 32 steps
    assert (banded - ramp).abs().max() < 1 / 32
    x = 0.25 + pictures() / 2
    banded = looks.bands(x, fill(x, 40))
    torch.testing.assert_close(colour_differences(banded), colour_differences(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [0.4, 1.1])
def test_grain_follows_luminance_with_zero_mean(size: float) -> None:
    strength, generator = 8 / 255, torch.Generator().manual_seed(0)
    for value, share in ((0.0, 0.0), (0.1, 0.6), (0.5, 1.0), (0.9, 0.6), (1.0, 0.0)):
        flat = torch.full((16, 3, 48, 48), value)
        grain = looks.film_grain(flat, fill(flat, strength), fill(flat, size), fill(flat, 0) > 0, generator) - flat
        assert grain.std() == pytest.approx(share * strength, rel=0.05, abs=1e-6)
        assert abs(grain.mean()) < 0.2 / 255
        if share:
            assert (grain[0] - grain[1]).std() > share * strength  # new each frame
            assert grain[..., :2].std() == pytest.approx(share * strength, rel=0.1)  # the border is like the rest


def test_grain_size_and_colour() -> None:
    flat = torch.full((8, 3, 64, 64), 0.5)
    neighbours = []
    for size in (0.2, 0.6, 1.0):
        grey = torch.arange(8) < 4
        grain = (
            looks.film_grain(flat, fill(flat, 0.03), fill(flat, size), grey, torch.Generator().manual_seed(1)) - flat
        )
        neighbours.append(float((grain[..., 1:] * grain[..., :-1]).mean() / grain.square().mean()))
        torch.testing.assert_close(grain[:4, 0], grain[:4, 2])
        assert (grain[4:, 0] - grain[4:, 2]).std() > 0.03
    assert neighbours[0] < 0.05 < neighbours[1] < neighbours[2]


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("factor", [(0.5, 0.5), (0.61, 0.87), (0.93, 1.0), (1.0, 1.0)])
def test_rescaling_is_interpolate_twice(nearest: bool, factor: tuple[float, float]) -> None:
    x = pictures(3, 56)
    down, across = (fill(x, f) for f in factor)
    ours = looks.rescaled(x, down, across, fill(x, nearest) > 0)
    small = tuple(round(56 * f) for f in factor)
    mode = {"mode": "nearest-exact"} if nearest else {"mode": "bilinear", "align_corners": False}
    theirs = F.interpolate(F.interpolate(x, size=small, **mode), size=(56, 56), **mode)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_gaussian_matrix_is_opencvs_blur_and_keeps_the_mean() -> None:
    picture = textured(40, 52, 1)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    for sigma in (0.3, 1.0, 3.5):
        down, across = (gaussian_matrix(n, torch.tensor([sigma])) for n in (40, 52))
        torch.testing.assert_close(down.sum(1), torch.ones(1, 40))
        torch.testing.assert_close(down.sum(2), torch.ones(1, 40))
        ours = filter_axes(x, down, across)
        blurred = cv2.GaussianBlur(picture.astype(np.float32), (31, 31), sigma, borderType=cv2.BORDER_REFLECT)
        torch.testing.assert_close(ours[0], torch.from_numpy(blurred).permute(2, 0, 1), rtol=0, atol=0.01)


def test_each_frame_has_its_own_matrix() -> None:
    factor, nearest = torch.tensor([0.5, 0.7, 1.0]), torch.tensor([True, False, True])
    together = rescale_matrix(32, factor, nearest)
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1], rescale_matrix(32, factor[k : k + 1], nearest[k : k + 1]))
    torch.testing.assert_close(together.sum(2), torch.ones(3, 32))
    torch.testing.assert_close(together[2], torch.eye(32))


def drawn(x: Tensor, frames: int, mode: Mode, config: LookConfig, seed: int = 0) -> Tensor:
    draw = Draw(len(x) // frames, frames, mode, np.random.default_rng(seed), x.device)
    return give_looks(x, config, draw, torch.Generator().manual_seed(seed))


def test_still_clips_stay_still_unless_looks_walk() -> None:
    x = pictures(3).repeat_interleave(4, 0)  # three clips of four equal frames
    still = drawn(x, 4, "consistent", ALL_BUT_GRAIN).view(3, 4, 3, 64, 64)
    torch.testing.assert_close(still, still[:, :1].expand_as(still), rtol=0, atol=1e-6)
    for changed in (drawn(x, 4, "walk", ALL_BUT_GRAIN), drawn(x, 4, "consistent", replace(NONE, grain=1))):
        moves = changed.view(3, 4, 3, 64, 64).diff(dim=1).abs()
        assert (moves.amax((2, 3, 4)) > 1 / 255).all()


@pytest.mark.parametrize("mode", ["consistent", "walk"])
def test_looks_repeat_by_seed(mode: Mode) -> None:
    x, config = pictures(4).repeat_interleave(3, 0), replace(ALL_BUT_GRAIN, grain=1)
    first = drawn(x, 3, mode, config, seed=1)
    assert torch.equal(first, drawn(x, 3, mode, config, seed=1))
    assert not torch.equal(first, drawn(x, 3, mode, config, seed=2))


@pytest.mark.parametrize("name", ["grain", "phone", "halo", "bleed", "bands", "rescale"])
def test_a_look_comes_as_often_as_its_probability_says(name: str) -> None:
    clips, frames = 120, 2
    x = pictures(1, 24).expand(clips * frames, -1, -1, -1)
    changed = (drawn(x, frames, "consistent", replace(NONE, **{name: 0.3})) - x).abs().amax((1, 2, 3)) > 1e-5
    per_clip = changed.view(clips, frames)
    assert (per_clip[:, 0] == per_clip[:, 1]).all()
    assert per_clip[:, 0].float().mean() == pytest.approx(0.3, abs=0.13)  # 3 sigma
    torch.testing.assert_close(drawn(x, frames, "walk", NONE), x)


@pytest.mark.parametrize("change", [{"halo": 1.5}, {"levels": (1.0, 40.0)}, {"grain_size": (2.0, 1.0)}])
def test_bad_looks_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        replace(LookConfig(), **change)

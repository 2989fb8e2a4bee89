"""Degradations: kernels, JPEG and the pipeline; constant over a clip, or walking with the published steps."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oasis_core.training.blur_kernels import SIZE, filter_frames, gaussian_family, sinc
from oasis_core.training.degradations import DegradationConfig, Mode, Order, degrade
from oasis_core.training.draw import LOOK_STEPS, STEPS, Draw
from oasis_core.training.jpeg import jpeg
from oasis_core.training.look_draws import LookConfig

from .conftest import textured

PUBLISHED_STEPS = {0.02, 0.31416, 0.05, 0.1, 0.0628, 0.015, 0.005}  # RealBasicVSR; JPEG quality's 3 is ours
NO_NOISE = DegradationConfig(
    mild=0,
    first=replace(DegradationConfig().first, noise=0),
    second=replace(DegradationConfig().second, noise=0),
    looks=LookConfig(grain=0),
)
EVERY_LOOK = LookConfig(interlace=1, grain=1, phone=1, halo=1, bleed=1, bands=1, rescale=1)


def clips(batch: int, frames: int, size: int) -> Tensor:
    """Still clips ``(batch, 3, frames, size, size)``: every frame is the same."""
    pictures = torch.stack([torch.from_numpy(textured(size, size, k)).permute(2, 0, 1) for k in range(batch)]) / 255
    return pictures[:, :, None].expand(-1, -1, frames, -1, -1)


def run(hr: Tensor, low: int, mode: Mode, seed: int = 0, config: DegradationConfig | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return degrade(hr, (low, low), mode, np.random.default_rng(seed), generator, config or DegradationConfig())


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * float((a - b).square().mean().log10())


def parameters(count: int = 64) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    low, high = torch.tensor([[0.2, 0.2, -3.14, 0.5], [3.0, 3.0, 3.14, 4.0]])
    return list((low + (high - low) * torch.rand(count, 4, generator=rng)).unbind(1))


@pytest.mark.parametrize("plateau", [False, True])
def test_gaussian_family_sums_to_one_and_is_not_negative(plateau: bool) -> None:
    kernels = gaussian_family(*parameters(), torch.full((64,), plateau))
    assert kernels.shape == (64, SIZE, SIZE)
    assert kernels.min() >= 0
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(64))
    torch.testing.assert_close(kernels, kernels.flip(1, 2))  # centred


def test_plain_gaussian_is_opencvs() -> None:
    one = torch.ones(1)
    kernel = gaussian_family(1.5 * one, 1.5 * one, 0.7 * one, one, torch.tensor([False]))[0]
    line = torch.from_numpy(cv2.getGaussianKernel(SIZE, 1.5)).float()
    torch.testing.assert_close(kernel, line @ line.T)


def test_sinc_sums_to_one_and_rings() -> None:
    kernels = sinc(torch.linspace(torch.pi / 3, torch.pi, 16))
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(16))
    assert (kernels.amin((1, 2)) < 0).all()
    torch.testing.assert_close(kernels, kernels.transpose(1, 2))


@pytest.mark.parametrize("size", [(40, 56), (9, 12)])
def test_each_frame_meets_its_own_kernel(size: tuple[int, int]) -> None:
    frames = torch.rand(6, 3, *size, generator=torch.Generator().manual_seed(0))
    kernels = gaussian_family(*parameters(6), torch.tensor([False, True] * 3))
    mode = "reflect" if min(size) > SIZE // 2 else "replicate"
    padded = F.pad(frames, (SIZE // 2,) * 4, mode=mode)
    direct = torch.cat([F.conv2d(p[:, None], k[None, None])[None, :, 0] for p, k in zip(padded, kernels, strict=True)])
    torch.testing.assert_close(filter_frames(frames, kernels), direct, rtol=0, atol=2e-6)  # FFT against direct sums


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_jpeg_is_like_opencvs(quality: int) -> None:
    picture = textured(104, 120, 3)
    coded = cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    theirs, clean = (torch.from_numpy(x[..., ::-1].copy()).permute(2, 0, 1)[None] / 255 for x in (coded, picture))
    ours = jpeg(clean, torch.tensor([float(quality)]))
    assert psnr(ours, theirs) > 38  # measured 40 to 45 on photographs
    assert psnr(ours, theirs) > psnr(theirs, clean) + 4
    assert psnr(ours, clean) == pytest.approx(psnr(theirs, clean), abs=0.3)


def test_jpeg_quality_is_per_frame() -> None:
    frames = clips(1, 2, 48)[0].transpose(0, 1)
    low, high = jpeg(frames, torch.tensor([20.0, 95.0]))
    assert psnr(high, frames[0]) > psnr(low, frames[0]) + 4
    torch.testing.assert_close(low, jpeg(frames[:1], torch.tensor([20.0]))[0])


@pytest.mark.parametrize("mode", ["consistent", "walk"])
@pytest.mark.parametrize("low", [96, 48, 43, 24])
def test_size_range_and_quantisation(mode: Mode, low: int) -> None:
    lr = run(clips(4, 3, 96), low, mode)
    assert lr.shape == (4, 3, 3, low, low)
    assert lr.min() >= 0
    assert lr.max() <= 1
    torch.testing.assert_close(lr * 255, (lr * 255).round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["consistent", "walk"])
def test_same_seed_same_result(mode: Mode) -> None:
    hr = clips(4, 3, 64)
    first = run(hr, 16, mode, seed=1)
    torch.rand(3)  # the global generators have no say
    np.random.rand(3)
    assert torch.equal(first, run(hr, 16, mode, seed=1))
    assert not torch.equal(first, run(hr, 16, mode, seed=2))


def test_mild_clips_are_only_area_downscaled() -> None:
    hr = clips(3, 2, 64)
    expected = (F.avg_pool3d(hr, (1, 4, 4)) * 255).round() / 255
    torch.testing.assert_close(run(hr, 16, "walk", config=DegradationConfig(mild=1)), expected, rtol=0, atol=0.005)


def test_consistent_clips_are_constant_over_time_but_for_noise() -> None:
    for seed in range(4):
        still = run(clips(4, 4, 64), 16, "consistent", seed, NO_NOISE)
        torch.testing.assert_close(still, still[:, :, :1].expand_as(still), rtol=0, atol=1.01 / 255)
    noisy = run(clips(4, 4, 64), 16, "consistent", 0, DegradationConfig(mild=0))
    assert noisy.diff(dim=2).abs().mean() > 1 / 255


def test_walking_clips_are_not() -> None:
    moves = run(clips(4, 4, 64), 16, "walk", 0, NO_NOISE).diff(dim=2).abs()
    assert (moves.amax((0, 1, 3, 4)) > 3 / 255).all()


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, float, float, float]]:
    """Every parameter drawn from here on: values ``(clips, frames)``, its range, its step."""
    kept = []
    walk = Draw.walk

    def record(self: Draw, low: float, high: float, step: float) -> np.ndarray:
        kept.append((walk(self, low, high, step), low, high, step))
        return kept[-1][0]

    monkeypatch.setattr(Draw, "walk", record)
    return kept


def test_consistent_parameters_are_constant(traces: list[tuple[np.ndarray, float, float, float]]) -> None:
    run(clips(6, 5, 48), 16, "consistent")
    assert len(traces) > 12
    for values, low, high, _ in traces:
        assert (values == values[:, :1]).all()
        assert low <= values.min() <= values.max() <= high


def test_walk_takes_the_published_steps(traces: list[tuple[np.ndarray, float, float, float]]) -> None:
    run(clips(12, 7, 48), 16, "walk", config=DegradationConfig(mild=0, looks=EVERY_LOOK))
    assert {step for *_, step in traces} == PUBLISHED_STEPS | {3.0} | set(LOOK_STEPS.values())
    for values, low, high, step in traces:
        moves = np.abs(np.diff(values, axis=1))
        assert 0.6 * step < moves.max() <= step * (1 + 1e-9)
        assert low <= values.min() <= values.max() <= high
    by_name = {"sigma": 0.02, "rotate": 0.31416, "beta_gaussian": 0.05, "beta_plateau": 0.1, "omega": 0.0628}
    by_name |= {"resize": 0.015, "gaussian": 0.1, "poisson": 0.005, "quality": 3.0}
    assert by_name == STEPS


@pytest.mark.parametrize(
    ("change", "message"),
    [({"sigma": (2.0, 1.0)}, "sigma"), ({"quality": (30, 101)}, "quality"), ({"noise": 1.5}, "noise")],
)
def test_bad_strengths_are_refused(change: dict[str, object], message: str) -> None:
    order: Order = DegradationConfig().first
    with pytest.raises(ValueError, match=f"{message} is"):
        replace(order, **change)
    with pytest.raises(ValueError, match="mild is"):
        DegradationConfig(mild=-0.1)

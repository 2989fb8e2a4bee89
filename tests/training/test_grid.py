"""The loss that keeps the tokens' weave out of pictures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oasis_core.model import OasisConfig
from oasis_core.training.config import LossWeights, StageConfig, TrainConfig
from oasis_core.training.losses import grid

TOKEN = 16


def clips() -> Tensor:
    """Noise with a falling spectrum, as pictures have: ``(2, 3, 3, 128, 96)`` in [0, 1]."""
    noise = torch.randn(2, 3, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    soft = torch.nn.functional.avg_pool3d(noise, (1, 3, 3), 1, (0, 1, 1))
    return (0.5 + 0.2 * soft).clamp(0, 1)


def weave(period: int) -> Tensor:
    """Rows and columns of dots, of one code value of 255."""
    tile = torch.randn(period, period, generator=torch.Generator().manual_seed(1))
    return (tile - tile.mean()).repeat(-(-128 // period), -(-96 // period))[:128, :96] / 255


def test_a_weave_of_the_tokens_is_seen_and_no_other() -> None:
    hr = clips()
    assert grid(hr, hr, TOKEN) == 0
    ours, other = (grid(hr + weave(n), hr, TOKEN) for n in (TOKEN, TOKEN - 3))
    assert ours > 0.3
    assert other < 0.2 * ours


def test_too_little_counts_as_well() -> None:
    hr = clips() + weave(TOKEN)
    assert grid(clips(), hr, TOKEN) == pytest.approx(float(grid(hr, clips(), TOKEN)), rel=1e-5)


def test_its_gradient_takes_the_weave_away() -> None:
    hr = clips()
    added = weave(TOKEN).clone().requires_grad_()
    optimizer = torch.optim.Adam([added], lr=2e-4)
    began = float(grid(hr + added, hr, TOKEN).detach())
    for _ in range(40):
        optimizer.zero_grad()
        grid(hr + added, hr, TOKEN).backward()
        optimizer.step()
    assert grid(hr + added, hr, TOKEN) < 0.3 * began


def test_sides_need_not_fit() -> None:
    hr = clips()[..., :117, :90]
    assert torch.isfinite(grid(hr * 0.9, hr, TOKEN))


def test_crops_that_are_too_small_are_refused() -> None:
    stage = StageConfig("even", 1, size=48, loss=LossWeights(grid=0.02))
    with pytest.raises(ValueError, match="size is 48; the loss grid needs 64 pixels or more"):
        TrainConfig(OasisConfig("x", unshuffle=(1, 8, 8), patch=(1, 2, 2)), (stage,))

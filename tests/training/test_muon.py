"""Our Muon against torch's, which goes through the matrices one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from oasis_core.training.muon import Muon, orthogonalised

SHAPES = ((8, 8), (24, 8), (8, 24), (8, 8), (24, 8))


def matrices(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
def test_equals_torchs() -> None:
    ours, theirs = matrices(0), matrices(0)
    mine = Muon(ours, lr=1e-2, weight_decay=0.1)
    torchs = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = copy.deepcopy(ours)
    for seed in range(4):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        mine.step()
        torchs.step()
    moved = torch.cat([(a - b).flatten() for a, b in zip(ours, start, strict=True)]).norm()
    apart = torch.cat([(a - b).flatten() for a, b in zip(ours, theirs, strict=True)]).norm()
    assert apart < 0.01 * moved  # both orthogonalise in bf16


def test_singular_values_come_near_one() -> None:
    for shape in ((3, 16, 16), (2, 16, 48), (2, 48, 16)):
        values = torch.linalg.svdvals(
            orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(0))).float()
        )
        assert values.min() > 0.2
        assert values.max() < 1.5


def scaled_step(bad: float | None) -> tuple[list[Tensor], list[nn.Parameter]]:
    """Weights before and after one step under a scaler, ``bad`` standing in one gradient."""
    params = matrices(1)
    optimizer, scaler = Muon(params, lr=1e-2), torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))  # the scaler makes its tensors lazily
    before = [p.detach().clone() for p in params]
    give_gradients(params, 0)
    if bad is not None:
        assert params[2].grad is not None
        params[2].grad[0, 0] = bad
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    return before, params


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_moves_nothing(bad: float) -> None:
    before, params = scaled_step(bad)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_finite_gradients_move_everything_under_a_scaler() -> None:
    before, params = scaled_step(None)
    assert not any(torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_goes_on_exactly_from_a_saved_state() -> None:
    ours, again = matrices(2), matrices(2)
    first = Muon(ours, lr=1e-2)
    give_gradients(ours, 0)
    first.step()
    with torch.no_grad():
        for p, q in zip(again, ours, strict=True):
            p.copy_(q)
    second = Muon(again, lr=1e-2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, params in ((first, ours), (second, again)):
        give_gradients(params, 1)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, again, strict=True))


def test_only_matrices() -> None:
    with pytest.raises(ValueError, match="shape \\(3,\\)"):
        Muon([nn.Parameter(torch.zeros(3))])

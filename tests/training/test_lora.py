"""Adapters: nothing changes at first, only they move, and what is written is a plain model that does the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from oasis_core.checkpoints import load_checkpoint
from oasis_core.model import OasisModel
from oasis_core.routing.spec import HeadPattern, RoutingSpec
from oasis_core.training import loop
from oasis_core.training.config import LossWeights, StageConfig
from oasis_core.training.lora import LoRALinear, add_adapters, merged
from oasis_core.training.state import TrainState

from .test_loop import CPU, MODEL, config

DENSE = RoutingSpec.uniform(MODEL.depth, MODEL.heads, HeadPattern.GLOBAL, (3, 5, 5))
STAGE = StageConfig("fine", 3, batch=1, frames=3, size=64, lr=1e-2, lr_end=1e-2, loss=LossWeights(low=0.5))


def random_model() -> OasisModel:
    model = OasisModel(MODEL)
    model.init_weights()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def test_adapters_change_nothing_until_they_move() -> None:
    model, pixels = random_model(), torch.rand(1, 3, 2, 32, 32) * 2 - 1
    before = model(pixels, DENSE)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    add_adapters(model, 3)
    torch.testing.assert_close(model(pixels, DENSE), before)
    same = merged(model, model.state_dict())
    assert same.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(same[name], value), name


def test_merged_weights_do_what_the_adapters_do() -> None:
    model, pixels = random_model(), torch.rand(1, 3, 2, 32, 32) * 2 - 1
    add_adapters(model, 3)
    adapters = [m for m in model.modules() if isinstance(m, LoRALinear)]
    assert len(adapters) == 6 * MODEL.depth  # q, k, v, o and the feed-forward's two
    for adapter in adapters:
        torch.nn.init.normal_(adapter.lora_b, std=0.2)
    plain = OasisModel(MODEL)
    plain.load_state_dict(merged(model, model.state_dict()))
    torch.testing.assert_close(plain(pixels, DENSE), model(pixels, DENSE), atol=1e-4, rtol=1e-4)


def test_only_adapters_and_new_parts_are_trained(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = loop.train(config(data, tmp_path / "a"), CPU)
    run = config(data, tmp_path / "b", start_from=str(start), stages=(STAGE,), lora_rank=2, ema=0.0)
    states: list[TrainState] = []
    write = loop.write_weights
    monkeypatch.setattr(loop, "write_weights", lambda c, s, path: (states.append(s), write(c, s, path)))
    end = load_checkpoint(loop.train(run, CPU)).model.state_dict()
    begin, trained = load_checkpoint(start).model.state_dict(), states[0].model.state_dict()
    for name, value in begin.items():
        if name.startswith("dit.blocks"):
            assert torch.equal(trained[name], value), f"{name} is frozen, but moved"
    assert not torch.equal(end["dit.blocks.0.self_attn.q.weight"], begin["dit.blocks.0.self_attn.q.weight"])
    assert not torch.equal(end["project.weight"], begin["project.weight"])
    resumed = TrainState(run, OasisModel(MODEL), None, device=CPU)
    resumed.load(tmp_path / "b" / "state.pt", CPU)
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    model, pixels = random_model(), torch.rand(1, 3, 2, 32, 32) * 2 - 1
    gradients = []
    for checkpointed in (False, True):
        model.zero_grad()
        model.dit.checkpoint_blocks = checkpointed
        model(pixels, DENSE).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_negative_rank_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lora_rank is -1"):
        dataclasses.replace(config(data, tmp_path), lora_rank=-1)
    with pytest.raises(ValueError, match="rank is 0"):
        add_adapters(random_model(), 0)

"""Batches come in order, the same each time, wherever a run starts and however many workers make them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oasis_core.model import OasisConfig
from oasis_core.training.config import POOL, StageConfig, TrainConfig
from oasis_core.training.feed import Batch, Feed, turned

CPU = torch.device("cpu")
MODEL = OasisConfig("test", unshuffle=(1, 8, 8), dim=12, depth=1, heads=2, ffn_dim=8, freq_dim=8)
STAGES = (
    StageConfig("first", steps=3, batch=2, frames=3, size=64),
    StageConfig("second", steps=3, batch=3, frames=2, size=48, mode="walk", other_scales=1.0),
)


@pytest.fixture
def config(data: Path) -> TrainConfig:
    return TrainConfig(MODEL, STAGES, data=str(data), seed=7)


def batches(config: TrainConfig, start: int = 0, stop: int = 6, workers: int = 0) -> list[Batch]:
    with Feed(config, CPU, start=start, stop=stop, workers=workers) as feed:
        return list(feed)


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.lr, b.lr)
        assert torch.equal(a.hr, b.hr)


def test_shapes_follow_the_stages(config: TrainConfig) -> None:
    made = batches(config)
    assert [tuple(b.hr.shape) for b in made] == [(2, 3, 3, 64, 64)] * 3 + [(3, 3, 2, 48, 48)] * 3
    assert all(b.lr.shape == (2, 3, 3, 16, 16) for b in made[:3])
    assert {b.lr.shape[-1] for b in made[3:]} <= {16, 24, 32, 48}  # scale 3, 2, 1.5, 1
    for x in itertools.chain.from_iterable((b.lr, b.hr) for b in made):
        assert x.dtype == torch.float32
        assert x.min() >= 0
        assert x.max() <= 1


def test_low_quality_shows_the_same_scene(config: TrainConfig) -> None:
    for batch in batches(config):
        assert (batch.lr.mean((2, 3, 4)) - batch.hr.mean((2, 3, 4))).abs().max() < 0.05


def test_same_seed_same_batches(config: TrainConfig) -> None:
    first = batches(config)
    assert_same(first, batches(config))
    other = batches(replace(config, seed=8), stop=1)
    assert not torch.equal(first[0].hr, other[0].hr)
    assert not torch.equal(first[0].hr, first[1].hr)


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(config: TrainConfig) -> None:
    assert_same(batches(config)[2:], batches(config, start=2))


def test_workers_change_nothing(config: TrainConfig) -> None:
    assert_same(batches(config, start=1), batches(config, start=1, workers=2))


def test_batches_are_used_again_turned(config: TrainConfig) -> None:
    """Each batch comes ``reuse`` times, ``POOL`` steps apart, every time another way; also where a run resumes."""
    stages = (replace(STAGES[0], steps=2 * POOL + 3, reuse=2), replace(STAGES[1], steps=POOL + 2, reuse=2))
    again = replace(config, stages=stages)
    made = batches(again, stop=again.steps)
    for step in range(POOL):
        assert_same([turned(made[step], 1)], made[step + POOL : step + POOL + 1])
        assert not torch.equal(made[step].hr, made[step + POOL].hr)
    new = [0, *range(1, POOL), *range(2 * POOL, 2 * POOL + 3), *range(2 * POOL + 3, 3 * POOL + 3)]
    first_pixels = {made[step].hr.sum().item() for step in new}
    assert len(first_pixels) == len(new), "a batch that should be new is not"
    for start in (3, POOL + 2, 2 * POOL + 4):
        assert_same(made[start:], batches(again, start=start, stop=again.steps, workers=2 if start == 3 else 0))
    assert_same([turned(turned(made[0], 3), 1)], [turned(made[0], 2)])


def test_processes_see_batches_of_their_own(config: TrainConfig) -> None:
    with Feed(config, CPU, start=0, stop=1, workers=0, rank=1) as feed:
        assert not torch.equal(next(iter(feed)).hr, batches(config, stop=1)[0].hr)


def test_a_worker_that_fails_says_why(config: TrainConfig) -> None:
    nowhere = torch.device("meta")  # holds no values: the worker cannot sample from it
    with (
        Feed(config, nowhere, start=0, stop=2, workers=1) as feed,
        pytest.raises(RuntimeError, match="a data worker failed: NotImplementedError"),
    ):
        next(iter(feed))


def test_no_data_is_said_before_anything_starts(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no training data"):
        Feed(replace(config, data=str(tmp_path)), CPU, start=0, stop=2, workers=1)

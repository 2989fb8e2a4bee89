"""The training set: what is read, what is left out, what crops and camera moves look like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oasis_core.model import OasisConfig
from oasis_core.training.config import StageConfig, TrainConfig
from oasis_core.training.data import ClipStore, _camera_path, edge_map, recolored, textured_corner
from oasis_core.training.library import Library

from .conftest import CLIPS, LENGTH, STILLS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(data: Path) -> ClipStore:
    return ClipStore(Library.read(data), CPU)


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_reads_everything_as_uint8(store: ClipStore) -> None:
    assert [tuple(c.shape) for c in store.clips] == [(LENGTH, 96, 128, 3)] * CLIPS
    assert [tuple(s.shape) for s in store.stills] == [(120, 150, 3)] * STILLS
    assert all(x.dtype == torch.uint8 for x in [*store.clips, *store.stills])


def test_filters(data: Path) -> None:
    assert len(ClipStore(Library.read(data, drop=["pan_*"]), CPU).clips) == 0
    assert len(ClipStore(Library.read(data, licence="^(?!.*GPL)"), CPU).clips) == CLIPS - 1
    assert len(ClipStore(Library.read(data, limit=1), CPU).stills) == 1


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no training data"):
        ClipStore(Library.read(tmp_path), CPU)


@pytest.mark.parametrize(("frames", "size"), [(1, 32), (3, 64), (5, 96)])
def test_sample_shape_and_range(store: ClipStore, frames: int, size: int) -> None:
    x = store.sample(6, frames, size, seeded())
    assert x.shape == (6, 3, frames, size, size)
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() <= 1


def test_same_seed_same_batch(store: ClipStore) -> None:
    first, again, other = (store.sample(4, 3, 32, seeded(s)) for s in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_long_samples_of_short_clips_repeat_the_last_frame(data: Path) -> None:
    x = ClipStore(Library.read(data, drop=["still_*"]), CPU).sample(2, LENGTH + 3, 32, seeded())
    assert x.shape[2] == LENGTH + 3


def test_clip_crops_are_parts_of_the_clip(data: Path) -> None:
    store = ClipStore(Library.read(data, drop=["still_*", "pan_1*"]), CPU)
    x = store._from_clip(1, 96, seeded())  # as high as the clip: only the columns are free
    clip = store.clips[0].permute(0, 3, 1, 2) / 255
    assert min(float((clip[..., k : k + 96] - x).abs().amax((1, 2, 3)).min()) for k in range(33)) == 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_samples_come_from_the_kind_that_is_asked_for(
    data: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    store, made = ClipStore(Library.read(data), CPU, share), []
    for kind, name in ((0.0, "_from_clip"), (1.0, "_from_still")):
        monkeypatch.setattr(store, name, lambda *args, kind=kind: made.append(kind) or torch.zeros(3, 3, 32, 32))
    store.sample(20, 3, 32, seeded())
    assert made == [share] * 20


def test_a_share_of_stills_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="still_share is 1.5; it must be from 0"):
        TrainConfig(OasisConfig("x"), (StageConfig("a", 1, frames=1),), still_share=1.5)


def test_a_share_of_recoloured_samples_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="recolor_share is -0.1; it must be from 0"):
        TrainConfig(OasisConfig("x"), (StageConfig("a", 1, frames=1),), recolor_share=-0.1)


def test_recoloured_frames_keep_their_range_and_what_is_where() -> None:
    """All frames alike, and in each channel brighter pixels stay brighter than others."""
    ramp = torch.linspace(0, 1, 40).expand(2, 3, 4, 40)
    results = [recolored(ramp, np.random.default_rng(seed)) for seed in range(20)]
    for x in results:
        assert torch.equal(x[0], x[1])
        assert x.min() >= 0
        assert x.max() <= 1
        assert (x.diff(dim=3) > 0).all()
    assert max((x - ramp).abs().max().item() for x in results) > 0.1
    store = torch.stack([torch.full((4, 4), v) for v in (0.2, 0.5, 0.8)])[None]
    orders = {tuple(recolored(store, np.random.default_rng(seed))[0, :, 0, 0].argsort().tolist()) for seed in range(40)}
    assert len(orders) > 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_recoloured_samples_is_kept(share: float, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("oasis_core.training.data.recolored", lambda x, rng: calls.append(1) or x)
    ClipStore(Library.read(data), CPU, recolor_share=share).sample(6, 2, 32, seeded())
    assert len(calls) == 6 * share


def laplacian(x: Tensor) -> float:
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return float(torch.nn.functional.conv2d(x.mean(-3, keepdim=True), kernel).std())


def test_stills_move_smoothly_and_stay_sharp(data: Path) -> None:
    store = ClipStore(Library.read(data, drop=["pan_*"]), CPU)
    rng = seeded()
    moved = [store._from_still(5, 64, rng) for _ in range(12)]
    steps = torch.stack([x.diff(dim=0).abs().mean((1, 2, 3)) for x in moved])
    assert (steps > 0).all()
    assert (steps.amax(1) / steps.amin(1)).median() < 3  # no jumps; shake makes single clips uneven
    still = laplacian(store.stills[0].permute(2, 0, 1)[None] / 255)
    assert np.mean([laplacian(x) for x in moved]) > 0.6 * still


@pytest.mark.parametrize("seed", range(30))
def test_camera_stays_inside_the_patch(seed: int) -> None:
    path = _camera_path(7, extent=0.8, side=320, rng=seeded(seed))
    corners = torch.tensor([[-1.0, 1, -1, 1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    assert (path @ corners).abs().max() < 1.06  # zoom and rotation may look a little over the edge (it is reflected)


def test_crops_prefer_texture() -> None:
    image = torch.full((256, 512, 3), 100, dtype=torch.uint8)
    image[:, 256:] = torch.randint(0, 255, (256, 256, 3), generator=torch.Generator().manual_seed(0)).byte()
    rng, edges = seeded(), edge_map(image)
    left = [textured_corner(edges, 256, 512, 64, rng)[1] for _ in range(400)]
    flat = np.mean([x + 64 <= 256 for x in left])
    assert 0.1 < flat < 0.25  # .43 of uniform crops are flat: .7 * .43 ** 3 + .3 * .43 = .18 of these

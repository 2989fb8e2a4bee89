"""Interlacing: combs in moving clips, nothing in static ones, and every frame keeps its own field."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from oasis_core.training.draw import Draw
from oasis_core.training.interlace import KINDS, interlaced, weave

from .conftest import textured


def moving(batch: int, frames: int = 5, size: int = 48, speed: int = 2) -> Tensor:
    """``(batch, frames, 3, size, size)``: textures that move ``speed`` pixels a frame to the left."""
    wide = [textured(size, size + speed * frames, k) for k in range(batch)]
    clips = [[w[:, speed * t : speed * t + size] for t in range(frames)] for w in wide]
    return torch.from_numpy(np.array(clips)).permute(0, 1, 4, 2, 3).float() / 255


def combing(clips: Tensor) -> Tensor:
    """Energy of what alternates from line to line."""
    lines = clips[..., :-2, :] - 2 * clips[..., 1:-1, :] + clips[..., 2:, :]
    return lines.square().mean((1, 2, 3, 4))


def woven(clips: Tensor, kind: str, odd: bool = False, later: bool = True) -> Tensor:
    flags = [torch.full((len(clips),), f) for f in (odd, later)]
    return weave(clips, *flags, torch.full((len(clips),), KINDS.index(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_static_clips_are_left_alone(kind: str) -> None:
    clips = moving(2, speed=0)
    assert torch.equal(woven(clips, kind), clips)
    single = moving(2, frames=1)
    assert torch.equal(woven(single, kind), single)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_weaving_takes_the_other_lines_from_a_neighbour(odd: bool, later: bool) -> None:
    clips = moving(3)
    result = woven(clips, "woven", odd, later)
    own, other = (int(odd), 1 - int(odd))
    assert torch.equal(result[..., own::2, :], clips[..., own::2, :])
    neighbour = [1, 2, 3, 4, 3] if later else [1, 0, 1, 2, 3]
    assert torch.equal(result[..., other::2, :], clips[:, neighbour][..., other::2, :])
    assert (combing(result) > 1.3 * combing(clips)).all()


@pytest.mark.parametrize("kind", ["bobbed", "doubled"])
@pytest.mark.parametrize("odd", [False, True])
def test_line_doublers_use_one_field_of_their_frame(kind: str, odd: bool) -> None:
    clips = moving(2)
    result = woven(clips, kind, odd)
    assert torch.equal(result[..., int(odd) :: 2, :], clips[..., int(odd) :: 2, :])
    blanked = clips.clone()
    blanked[..., 1 - int(odd) :: 2, :] = torch.rand(1)
    assert torch.equal(result, woven(blanked, kind, odd))
    if kind == "doubled":
        pairs = result[..., 1:-1, :] if odd else result
        even, odds = pairs[..., 0::2, :], pairs[..., 1::2, :]
        assert torch.equal(even, odds) or torch.equal(result[..., 0::2, :], result[..., 1::2, :])


def test_blending_removes_the_combs() -> None:
    clips = moving(3)
    assert (combing(woven(clips, "blended")) < 0.5 * combing(woven(clips, "woven"))).all()


def test_only_the_moving_clips_of_a_batch_change() -> None:
    clips = torch.cat([moving(1), moving(1, speed=0), moving(1)])
    changed = (woven(clips, "woven") - clips).abs().amax((1, 2, 3, 4)) > 0
    assert changed.tolist() == [True, False, True]


def test_draws_repeat_by_seed_and_meet_every_kind() -> None:
    clips = moving(40, frames=3, size=24)
    flat = clips.flatten(0, 1)

    def drawn(seed: int) -> Tensor:
        return interlaced(flat, Draw(40, 3, "walk", np.random.default_rng(seed), flat.device)).view_as(clips)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    result, met = drawn(1), set()
    for kind in KINDS:
        for odd in (False, True):
            for later in (False, True):
                if (result == woven(clips, kind, odd, later)).flatten(1).all(1).any():
                    met.add(kind)
    assert met == set(KINDS)

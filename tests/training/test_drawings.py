"""Drawn pictures for training: repeatable, of the promised size, and full of edges."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from oasis_core.training import drawings


def made(seed: int, photos: list[Path]) -> np.ndarray:
    return np.asarray(drawings.picture(photos, np.random.default_rng(seed))).astype(np.float32)


def test_pictures_repeat_by_seed_and_hold_more_edges_than_what_they_are_drawn_on(tmp_path: Path) -> None:
    photo = tmp_path / "soft.jpg"
    ramp = np.linspace(0, 255, drawings.WIDTH, dtype=np.uint8)[None].repeat(drawings.HEIGHT, 0)
    Image.fromarray(np.stack([ramp] * 3, -1)).save(photo)
    one, again, other = made(1, [photo]), made(1, [photo]), made(2, [photo])
    assert one.shape == (drawings.HEIGHT, drawings.WIDTH, 3)
    assert (one == again).all()
    assert (one != other).mean() > 0.5
    soft = np.asarray(Image.open(photo)).astype(np.float32)
    assert np.abs(np.diff(one, axis=0)).mean() > 10 * np.abs(np.diff(soft, axis=0)).mean() + 0.5


@pytest.mark.parametrize("thing", sorted({t.__name__ for t in drawings.THINGS_DRAWN}))
def test_each_thing_is_drawn(thing: str) -> None:
    """Two values and more where nothing was."""
    layer = Image.new("RGBA", (600, 480), (0, 0, 0, 0))
    getattr(drawings, thing)(ImageDraw.Draw(layer), 600, 480, np.random.default_rng(0))
    assert len(np.unique(np.asarray(layer).reshape(-1, 4), axis=0)) >= 2


def test_the_command_writes_as_many_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "WIDTH", 160)
    monkeypatch.setattr(drawings, "HEIGHT", 96)
    monkeypatch.setattr(sys, "argv", ["drawings", str(tmp_path / "out"), "--count", "2"])
    drawings.main()
    files = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in files] == ["drawn_0000.jpg", "drawn_0001.jpg"]
    assert Image.open(files[0]).size == (160, 96)

"""The time that ``--plan`` expects: what the model's parts take is counted up rightly, interrupted or not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from oasis_core.cli import main
from oasis_core.jobs import pace
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.model.dit import DiT
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import HeadPattern, RoutingSpec

from .test_cli import make_clip
from .tiny_job import options, save_random_model

DEPTH = 8
BLOCK, DECODE, ENCODE = 3.0, 0.5, 0.25
"""Seconds for a block, and for a latent frame."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time stands still but for what the model's parts are said to take."""
    now = [100.0]

    def taking(cls: type, name: str, seconds: float) -> None:
        real = getattr(cls, name)

        def work(self: object, x: torch.Tensor, *args: object, **named: object) -> object:
            now[0] += seconds * (1 if name == "_block" else x.shape[2])
            return real(self, x, *args, **named)

        monkeypatch.setattr(cls, name, work)

    taking(DiT, "_block", BLOCK)
    taking(OasisModel, "encode", ENCODE)
    taking(OasisModel, "decode", DECODE)
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def upscaler(**changes: object) -> Upscaler:
    torch.manual_seed(0)
    config = OasisConfig(
        name="random", unshuffle=(1, 8, 8), patch=(1, 1, 1), latent_channels=4, dim=24, depth=DEPTH, heads=2, ffn_dim=24,
        freq_dim=8, decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    settings = UpscaleSettings(scale=1.0, chunk_frames=5, chunk_overlap=2, **changes)  # type: ignore[arg-type]
    return Upscaler(OasisModel(config), RoutingSpec.uniform(DEPTH, 2, HeadPattern.GLOBAL), settings)


@pytest.mark.parametrize(("enough", "tile", "tiles"), [(1e9, 0, 1), (8.0, 0, 1), (8.0, 16, 2), (1e9, 16, 2)])
def test_a_chunk_that_is_interrupted_is_counted_up_to_a_whole_one(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, enough: float, tile: int, tiles: int
) -> None:
    monkeypatch.setattr(pace, "ENOUGH", enough)
    up = upscaler(tile=tile, tile_overlap=0)
    found = pace.measure(up, 100, 16, 32)
    assert found.chunk == pytest.approx(5 * ENCODE + tiles * DEPTH * BLOCK)
    assert found.frame == pytest.approx(DECODE)
    whole = tiles * DEPTH * BLOCK
    took = 5 * ENCODE + whole + 5 * DECODE if enough > 8 else 5 * ENCODE + 3 * BLOCK + ENCODE + whole + DECODE
    assert clock[0] - 100 == pytest.approx(took)  # interrupted after 3 blocks, then one frame to be decoded
    # Chunks of 5 latent frames, 3 on from each other: 0, 3, 6, 9 and the last one, moved back.
    assert found.seconds(up, 15) == pytest.approx(5 * found.chunk + 15 * DECODE)


def test_a_clip_shorter_than_a_chunk_is_measured_as_it_is(clock: list[float]) -> None:
    assert pace.measure(upscaler(), 2, 16, 16).chunk == pytest.approx(2 * ENCODE + DEPTH * BLOCK)


def test_what_is_quick_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """First calls may compile."""
    real, takes = pace._Run.go, iter([7.0, 1.0, 0.5])

    def go(self: pace._Run, frames: list[torch.Tensor], enough: float | None) -> None:
        real(self, frames, enough)
        self._polls = [0.0] * DEPTH + [next(takes)]
        self._begun, self._ended = 0.0, 1.0

    monkeypatch.setattr(pace._Run, "go", go)
    assert pace.measure(upscaler(), 100, 16, 16).chunk == 0.5


def test_the_plan_tells_it_once_for_clips_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    films, model = tmp_path / "films", save_random_model(tmp_path / "random.safetensors")
    films.mkdir()
    for name in ("a.mkv", "b.mkv"):
        make_clip(films / name, 12, 64, 64)
    make_clip(films / "c.mkv", 12, 64, 48)
    sizes, real = [], pace.measure

    def measure(up: Upscaler, frames: int | None, height: int, width: int) -> pace.Pace:
        sizes.append((width, height))
        return real(up, frames, height, width)

    monkeypatch.setattr("oasis_core.jobs.estimate.measure", measure)
    assert main(["upscale", str(films), str(tmp_path / "out"), *options(model), "--batch", "--plan"]) == 0
    assert sorted(sizes) == [(64, 48), (64, 64)]
    told = re.findall(r"^time: .*", capsys.readouterr().out, re.MULTILINE)
    assert len(told) == 3
    assert not (tmp_path / "out").exists()
    assert all("frames per second (measured now" in line for line in told)


def test_a_lack_of_memory_while_measuring_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def restore(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    clip, model = make_clip(tmp_path / "a.mkv"), save_random_model(tmp_path / "random.safetensors")
    monkeypatch.setattr(OasisModel, "restore", restore)
    assert main(["upscale", str(clip), str(tmp_path / "out.mkv"), *options(model, codec="ffv1"), "--plan"]) == 0
    assert re.search(r"^time: +unknown: memory ran out", capsys.readouterr().out, re.MULTILINE)

"""A job on a local Ray: the result of one worker, and one line for what cannot be."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from oasis_core.cli import main
from oasis_core.engines import cluster
from oasis_core.engines.cluster import room
from oasis_core.engines.worker import SegmentWorker
from oasis_core.jobs.folder import job_path

from .conftest import content, options
from .ray_runs import needs_ray, on_ray


@needs_ray
def test_two_workers_make_what_one_makes(
    tmp_path: Path, clip: Path, model: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mkv"
    assert main(["upscale", str(clip), str(out), *options(model), "--engine", "ray", "--workers", "2"]) == 0
    assert "out.mkv: 60 frames, 128x128" in capfd.readouterr().out
    assert content(out) == content(whole)
    assert not job_path(out).exists()


def test_without_ray_one_line_says_how_to_get_it(
    tmp_path: Path, clip: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    assert main(["upscale", str(clip), str(tmp_path / "out.mkv"), *options(model), "--engine", "ray"]) == 2
    error = capsys.readouterr().err
    assert error == 'oasis: engine ray needs Ray, which is not installed: pip install "ray>=2.40"\n'
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--engine", "dask"), "engine is 'dask'; allowed: this, ray"),
        (("--workers", "2"), "--address and --workers are for --engine ray"),
        (("--address", "auto"), "--address and --workers are for --engine ray"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, clip: Path, model: Path, more: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", str(clip), str(tmp_path / "out.mkv"), *options(model), *more]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


@needs_ray
@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "no Ray at 127.0.0.1:1"),
        ("nowhere", "address is 'nowhere'"),
        ("ray://:x", "address is 'ray://:x'"),
    ],
)
def test_an_address_where_nobody_listens_is_told_at_once(
    tmp_path: Path, clip: Path, model: Path, address: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--engine", "ray", "--address", address)
    began = time.monotonic()
    assert main(["upscale", str(clip), str(tmp_path / "out.mkv"), *options(model), *more]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1
    assert time.monotonic() - began < 30


def test_room_for_workers() -> None:
    two = {"GPU": 2.0, "CPU": 16.0}
    assert (room(two, None, "auto").workers, room(two, None, "auto").gpus) == (2, 1)
    assert (room(two, None, "cpu").workers, room(two, None, "cpu").cpus, room(two, None, "cpu").gpus) == (4, 4, 0)
    assert room({"CPU": 2.0}, 2, "auto").cpus == 1
    for resources, workers, device, told in (
        (two, 3, "auto", "Ray has 2 GPUs"),
        (two, 0, "auto", "workers is 0"),
        ({"CPU": 2.0}, 3, "cpu", "Ray has 2 CPU cores"),
        ({"CPU": 2.0}, None, "cuda", "sees no GPU"),
        (two, None, "cuda:1", "a GPU of its own"),
    ):
        with pytest.raises(ValueError, match=told):
            room(resources, workers, device)


@needs_ray
def test_workers_are_told_how_long_to_spin(
    address: str, tmp_path: Path, clip: Path, model: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process says, also where Ray was started by one that said otherwise."""
    monkeypatch.setenv("GOMP_SPINCOUNT", "12345")

    class Telling(SegmentWorker):
        def __init__(self, *given: Any) -> None:
            (tmp_path / f"told-{os.getpid()}").write_text(os.environ["GOMP_SPINCOUNT"])
            super().__init__(*given)

    [result] = on_ray(address, [clip], tmp_path / "out.mkv", model, Telling)
    assert result.error is None
    assert {file.read_text() for file in tmp_path.glob("told-*")} == {"12345"}
    assert result.done is not None
    assert result.times is not None  # where the time went
    assert result.times.loading > 0
    assert result.times.making + result.times.joining == pytest.approx(result.done.seconds)
    assert len(result.times.segments) >= 8
    assert all(spent.model > 0 for spent in result.times.segments)
    assert content(tmp_path / "out.mkv") == content(whole)

"""Outputs that exist already are not replaced unasked: one file, a batch, any engine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oasis_core.cli import main
from oasis_core.jobs.folder import job_path

from .jobs.conftest import stop_after
from .test_cli import make_clip, refused
from .tiny_job import options, save_random_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model") / "random.safetensors")


def upscale(source: Path, target: Path, model: Path, *more: str) -> int:
    return main(["upscale", str(source), str(target), *options(model, codec="ffv1"), *more])


@pytest.mark.parametrize("engine", ["this", "ray"])
def test_a_finished_output_is_replaced_only_where_that_is_asked_for(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    clip, out = make_clip(tmp_path / "in.mp4"), tmp_path / "out.mkv"
    out.write_bytes(b"a year's work")
    told = refused(capsys, "upscale", clip, out, *options(model, codec="ffv1"), "--engine", engine)
    assert f"{out} exists already: --overwrite replaces" in told
    assert "--resume" in told
    assert out.read_bytes() == b"a year's work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mkv"]
    if engine == "this":
        assert upscale(clip, out, model, "--overwrite") == 0
        assert out.read_bytes() != b"a year's work"


def test_both_at_once_are_refused(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = make_clip(tmp_path / "in.mp4")
    more = "--overwrite", "--resume"
    told = refused(capsys, "upscale", clip, tmp_path / "out.mkv", *options(model, codec="ffv1"), *more)
    assert "give one of them" in told


def test_a_plan_is_told_of_an_output_that_exists(tmp_path: Path, model: Path) -> None:
    clip, out = make_clip(tmp_path / "in.mp4"), tmp_path / "out.mkv"
    out.write_bytes(b"x")
    assert upscale(clip, out, model, "--plan") == 0
    assert out.read_bytes() == b"x"


def test_an_interrupted_replacement_goes_on_and_keeps_the_old_file_until_then(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = make_clip(tmp_path / "in.mp4", 30), tmp_path / "out.mkv"
    out.write_bytes(b"old")
    with monkeypatch.context() as patch:
        stop_after(patch, 20, KeyboardInterrupt())
        assert upscale(clip, out, model, "--overwrite") == 130
    assert out.read_bytes() == b"old"
    assert job_path(out).exists()
    capsys.readouterr()
    for more in ((), ("--overwrite",)):  # neither loses the finished segments
        assert "an unfinished job" in refused(capsys, "upscale", clip, out, *options(model, codec="ffv1"), *more)
    assert upscale(clip, out, model, "--resume") == 0
    assert out.read_bytes() != b"old"


def test_a_batch_with_outputs_is_refused_whole(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    out.mkdir()
    for name in "abc":
        make_clip(films / f"{name}.mkv", 3)
    (out / "b.mkv").write_bytes(b"old")
    told = refused(capsys, "upscale", films, out, *options(model, codec="ffv1"), "--batch")
    assert f"1 of 3 outputs exist already, such as {out / 'b.mkv'}: --overwrite" in told
    assert [p.name for p in out.iterdir()] == ["b.mkv"]
    os.utime(out / "b.mkv", (1, 1))
    caplog.set_level("INFO")
    assert upscale(films, out, model, "--batch", "--resume") == 0
    assert f"{out / 'b.mkv'} is older than its input: it is made again" in caplog.text
    assert (out / "b.mkv").read_bytes() != b"old"
    (out / "c.mkv").write_bytes(b"old")
    assert upscale(films, out, model, "--batch", "--overwrite") == 0
    assert (out / "c.mkv").read_bytes() != b"old"

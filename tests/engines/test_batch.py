"""Many inputs at once: which ones, under which names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oasis_core.cli import main
from oasis_core.cli.batch import pairs

from .conftest import content, make_clip, options


def test_a_folder_s_videos_and_a_list_s_files(tmp_path: Path) -> None:
    for name in ("b.MOV", "a.mkv", "notes.txt", "c.webm", "._a.mkv"):
        (tmp_path / name).touch()
    (tmp_path / "d.mp4").mkdir()
    out = tmp_path / "out"
    found = pairs(tmp_path, out, "h264", False)
    assert [(a.name, b) for a, b in found] == [
        ("a.mkv", out / "a.mkv"), ("b.MOV", out / "b.mov"), ("c.webm", out / "c.mp4"),
    ]  # fmt: skip
    (tmp_path / "list.txt").write_text("\ufeff# films\nb.MOV\n\n  a.mkv\n", encoding="utf-8")
    assert [a for a, _ in pairs(tmp_path / "list.txt", out, "png", False)] == [tmp_path / "b.MOV", tmp_path / "a.mkv"]
    assert [b.name for _, b in pairs(tmp_path / "list.txt", out, "png", False)] == ["b", "a"]


@pytest.mark.parametrize(
    ("codec", "told"),
    [("h263", "codec is 'h263'"), ("h264", "two inputs would become"), ("png", "two inputs would become")],
)
def test_what_cannot_be_told_apart_is_refused(tmp_path: Path, codec: str, told: str) -> None:
    (tmp_path / "a.webm").touch()
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ValueError, match=told):
        pairs(tmp_path, tmp_path / "out", codec, False)
    with pytest.raises(ValueError, match="has no videos"):
        (tmp_path / "empty").mkdir()
        pairs(tmp_path / "empty", tmp_path / "out", "h264", False)


def test_a_batch_here_goes_on_after_a_bad_file(
    tmp_path: Path, clip: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    (films / "a.mkv").write_text("no video")
    make_clip(films / "b.mkv", 5, 20)
    batch = ["upscale", str(films), str(out), *options(model), "--batch"]
    assert main(batch) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["upscale", str(films / "b.mkv"), str(tmp_path / "b.mkv"), *options(model)]) == 0
    assert content(out / "b.mkv") == content(tmp_path / "b.mkv")
    (films / "a.mkv").unlink()
    stamp = (out / "b.mkv").stat().st_mtime_ns
    assert main([*batch, "--resume"]) == 0  # nothing is left to do
    assert (out / "b.mkv").stat().st_mtime_ns == stamp
    capsys.readouterr()
    assert main(["upscale", str(films / "b.mkv"), str(out / "b.mkv"), *options(model), "--resume"]) == 0
    assert "is done already" in capsys.readouterr().out
    assert (out / "b.mkv").stat().st_mtime_ns == stamp
    os.utime(films / "b.mkv", (2**32, 2**32))
    assert main([*batch, "--resume"]) == 0  # a newer input
    assert (out / "b.mkv").stat().st_mtime_ns > stamp

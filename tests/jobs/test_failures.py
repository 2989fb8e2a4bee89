"""Jobs that find segments or manifests damaged, a full disk, an input that is gone: one line, and the rest is kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oasis_core.jobs import segment_files
from oasis_core.jobs.folder import job_path
from oasis_core.video_io import VideoReader

from ..tiny_job import options
from .conftest import FRAMES, content, fails_once, run, stop_after


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_a_damaged_segment_is_made_again(
    tmp_path: Path, model: Path, clip: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    assert run(clip, whole, model) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 30, KeyboardInterrupt())
        run(clip, out, model)
    segment = sorted(job_path(out).glob("segment_*.nut"))[1]
    if damage == "remove":
        segment.unlink()
    else:
        segment.write_bytes(segment.read_bytes()[:-100] + bytes(100))
    assert run(clip, out, model, "--resume") == 0
    assert content(out) == content(whole)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 1}', "\xff", '{"format": 3, "asked": 5}', "[" * 99999]
)
def test_a_damaged_manifest_is_told_in_one_line(
    tmp_path: Path, model: Path, clip: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = job_path(tmp_path / "out.mp4")
    place.mkdir()
    (place / "manifest.json").write_text(text, encoding="latin-1")
    assert run(clip, tmp_path / "out.mp4", model, "--resume") == 2
    error = capsys.readouterr().err
    assert "damaged" in error
    assert len(error.strip().splitlines()) == 1


def test_a_folder_s_foreign_files_are_left_alone(tmp_path: Path, model: Path, clip: Path) -> None:
    place = job_path(tmp_path / "out.mp4")
    place.mkdir()
    (place / "mine.txt").write_text("x")
    assert run(clip, tmp_path / "out.mp4", model, "--resume") == 0
    assert [p.name for p in place.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [(segment_files.VideoWriter, "add", 20), (segment_files.VideoWriter, "_finish", 3),
     (segment_files.VideoWriter, "copy", 30), (segment_files.JobFolder, "update", 4)],
)  # fmt: skip
def test_a_full_disk_is_one_error_and_keeps_the_segments(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    module: object, name: str, calls: int,
) -> None:  # fmt: skip
    whole, out = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    assert run(clip, whole, model) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        fails_once(patch, module, name, calls, OSError(28, "No space left on device"))
        assert run(clip, out, model) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "No space left" in error
    assert "finished frames are kept" in error
    assert not out.exists()
    assert run(clip, out, model, "--resume") == 0
    assert content(out) == content(whole)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_real_write_error_is_told(tmp_path: Path, model: Path, clip: Path) -> None:
    """No file may grow past 20,000 bytes: lossless segments fail, for real, inside FFmpeg."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from oasis_core.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    argv = ["upscale", str(clip), str(tmp_path / "out.mkv"), *options(model, codec="ffv1")]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_vanishes_is_no_short_film(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    source.write_bytes(clip.read_bytes())
    real = VideoReader.frames

    def frames(self: VideoReader, *args: object) -> Iterator[object]:
        for number, frame in enumerate(real(self, *args)):  # type: ignore[arg-type]
            if number == 30:
                source.unlink()
                return
            yield frame

    with monkeypatch.context() as patch:
        patch.setattr(VideoReader, "frames", frames)
        assert run(source, out, model) == 2
    error = capsys.readouterr().err
    assert "vanished" in error
    assert "finished frames are kept" in error
    source.write_bytes(clip.read_bytes())
    assert run(source, out, model, "--resume") == 0
    assert len(content(out)[0]) == FRAMES

"""Jobs that are interrupted and resumed: nothing shows, nothing finished is lost."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from oasis_core.checkpoints import load_checkpoint, save_checkpoint
from oasis_core.jobs import folder, segment_files
from oasis_core.jobs.folder import job_path
from oasis_core.jobs.manifest import Manifest
from oasis_core.jobs.segments import plan_segments
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import Position
from oasis_core.routing import RoutingSpec
from oasis_core.video_io import VideoReader, WriterSettings
from oasis_core.video_job import JobSettings, upscale_video

from ..tiny_job import options
from .conftest import CUT, FRAMES, content, fails_once, run, stop_after


def test_segments_cover_each_frame_once_and_begin_where_a_stream_can() -> None:
    generator = random.Random(0)
    for _ in range(300):
        length, factor, size = generator.randint(1, 90), generator.choice([1, 4]), generator.randint(1, 6)
        cuts, full = generator.sample(range(90), 4), generator.randint(1, 30)
        overlap = generator.randrange(size)
        segments = plan_segments(length, cuts, size, overlap, factor, full)
        assert (segments[0].start, segments[-1].stop) == (Position(), length)
        assert all(a.stop == b.start.frame for a, b in pairwise(segments))
        stride = factor * (size - overlap)
        for segment in segments:
            assert segment.stop - segment.start.frame < full + max(stride, 2) + factor * size
            assert segment.start.shot in {0, *cuts}
            reaching = max(1, -(-overlap // (size - overlap)))  # chunks before
            assert 0 <= segment.start.frame - segment.needed <= reaching * stride


def test_a_job_makes_the_planned_segments(tmp_path: Path, model: Path, clip: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, FRAMES, KeyboardInterrupt())
        assert run(clip, tmp_path / "out.mp4", model) == 130
    manifest = Manifest.from_json((job_path(tmp_path / "out.mp4") / "manifest.json").read_text())
    planned = plan_segments(FRAMES, [CUT], 5, 1, 1, 6)
    made = [(s.start, s.stop) for s in manifest.segments]
    assert made == [(s.start.frame, s.stop) for s in planned][: len(made)]
    assert len(made) == len(planned) - 1
    assert CUT in {s.start for s in manifest.segments}


@pytest.mark.parametrize(
    ("codec", "name"),
    [("h264", "out.mp4"), ("h264", "out.mkv"), ("h265", "out.mp4"), ("av1", "out.mp4"), ("prores", "out.mov"),
     ("ffv1", "out.mkv"), ("png", "out")],
)  # fmt: skip
def test_segments_and_resuming_do_not_show(
    tmp_path: Path, model: Path, clip: Path, codec: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tmp_path / name.replace("out", "whole"), tmp_path / name
    assert run(clip, whole, model, codec=codec) == 0
    for at in (17, 9, 2):
        with monkeypatch.context() as patch:
            stop_after(patch, at, KeyboardInterrupt())
            assert run(clip, resumed, model, "--resume", codec=codec) == 130
    assert run(clip, resumed, model, "--resume", codec=codec) == 0
    assert content(resumed) == content(whole)
    frames, seconds, sound = content(whole)
    assert len(frames) == FRAMES
    if codec != "png":
        unit = Fraction(1, 1000) if name.endswith("mkv") else Fraction(1, 10**6)
        expected = content(clip)
        late = seconds[0] - expected[1][0]  # Matroska has no time before 0, where the sound's encoder delay lies
        assert all(abs(a - late - b) <= unit for a, b in zip(seconds, expected[1], strict=True))
        assert abs(sound[0][0] - late - expected[2][0][0]) <= unit
        assert [p for _, p in sound] == [p for _, p in expected[2]]
    assert not job_path(resumed).exists()


@pytest.mark.parametrize("codec", ["ffv1", "png"])
def test_many_segments_are_bit_for_bit_one(tmp_path: Path, model: Path, clip: Path, codec: str) -> None:
    names = ("a", "b") if codec == "png" else ("a.mkv", "b.mkv")
    for name, segment in zip(names, (5, 10**6), strict=True):
        assert run(clip, tmp_path / name, model, segment=segment, codec=codec) == 0
    one, other = (content(tmp_path / name) for name in names)
    assert one == other


def kill_and_resume(tmp_path: Path, model: Path, clip: Path, kills: int, seed: int) -> None:
    whole, out = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    if not whole.exists():
        assert run(clip, whole, model, segment=3) == 0
    argv = [sys.executable, "-m", "oasis_core", "upscale", str(clip), str(out), *options(model, 3), "--resume"]
    generator, killed = random.Random(seed), 0
    for _ in range(kills):
        manifest = job_path(out) / "manifest.json"
        before = manifest.stat().st_mtime_ns if manifest.exists() else 0
        child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and not (manifest.exists() and manifest.stat().st_mtime_ns > before):
            time.sleep(0.005)  # until it has finished another segment, or made the folder
        time.sleep(generator.random() * 0.3)
        child.kill()
        killed += child.wait() != 0
    assert killed
    assert run(clip, out, model, "--resume", segment=3) == 0
    assert content(out) == content(whole)
    assert not job_path(out).exists()


def test_a_killed_job_resumes(tmp_path: Path, model: Path, clip: Path) -> None:
    kill_and_resume(tmp_path, model, clip, 3, 0)


@pytest.mark.slow
def test_a_job_killed_at_many_moments_resumes(tmp_path: Path, model: Path, clip: Path) -> None:
    for seed in range(10):
        kill_and_resume(tmp_path, model, clip, 5, seed)
        (tmp_path / "out.mp4").unlink()


def test_an_interruption_tells_what_is_kept(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    with monkeypatch.context() as patch:
        stop_after(patch, 20, KeyboardInterrupt())
        assert run(clip, out, model) == 130
    assert "16 finished frames are kept" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4.oasis"]
    assert run(clip, out, model) == 2
    error = capsys.readouterr().err
    assert "--resume" in error
    assert "delete" in error
    assert len(error.strip().splitlines()) == 1
    assert run(clip, out, model, "--resume") == 0
    assert "16 of them kept from before" in capsys.readouterr().out


def test_what_changed_is_refused_by_name(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    with monkeypatch.context() as patch:
        stop_after(patch, 20, KeyboardInterrupt())
        run(clip, out, model)
    state = (job_path(out) / "manifest.json").read_bytes()
    longer = tmp_path / "longer.mp4"
    longer.write_bytes(clip.read_bytes() + b"\0")
    checkpoint = load_checkpoint(model)
    checkpoint.model.project.weight[0, 0] += 1
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, checkpoint.model, checkpoint.metadata)
    routing = tmp_path / "routing.json"
    routing.write_text(RoutingSpec.by_ratio(1, 2, 1, 0).to_json())
    capsys.readouterr()
    for argv, words in (
        ((longer, out, model, "--resume"), "input.bytes was"),
        ((clip, out, other, "--resume"), "model was"),
        ((clip, out, model, "--resume", "--routing", str(routing)), "routing was"),
        ((clip, out, model, "--resume", "--scale", "1"), "setting.scale was 2.0, is 1.0"),
        ((clip, out, model, "--resume", "--crf", "30"), "output.crf was None, is 30"),
        ((clip, out, model, "--resume", "--segment", "7"), "segment_frames was 6, is 7"),
        ((clip, out, model, "--resume", "--dtype", "bf16"), "model was"),
    ):
        assert run(*argv) == 2  # type: ignore[arg-type]
        error = capsys.readouterr().err
        assert words in error
        assert len(error.strip().splitlines()) == 1
    assert (job_path(out) / "manifest.json").read_bytes() == state
    moved = tmp_path / "moved.mp4"
    moved.write_bytes(clip.read_bytes())
    assert run(moved, out, model, "--resume") == 0  # the same bytes elsewhere are the same input


SEGMENTS = len(plan_segments(FRAMES, [CUT], 5, 1, 1, 6))


@pytest.mark.parametrize(("codec", "name"), [("h264", "out.mp4"), ("png", "out")])
@pytest.mark.parametrize(
    ("module", "function", "calls"),
    [(folder.JobFolder, "update", SEGMENTS + 2), (folder.JobFolder, "update", SEGMENTS + 3), (folder, "_delete", 1),
     (folder, "_delete", 4), (folder.Path, "rmdir", 1), (segment_files.os, "replace", 60)],
)  # fmt: skip
def test_an_interruption_while_segments_are_joined_or_removed_costs_nothing(
    tmp_path: Path, model: Path, clip: Path, codec: str, name: str, module: object, function: str, calls: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Before and after the target is in its place, and while the folder is removed."""
    whole, out = tmp_path / name.replace("out", "whole"), tmp_path / name
    assert run(clip, whole, model, codec=codec) == 0
    with monkeypatch.context() as patch:
        fails_once(patch, module, function, calls, KeyboardInterrupt())
        run(clip, out, model, codec=codec)
    finished = not (job_path(out) / "manifest.json").exists()  # then nothing is left to do
    assert run(clip, out, model, "--resume", codec=codec) == 0
    assert content(out) == content(whole)
    assert finished or not job_path(out).exists()


def test_other_errors_of_the_model_pass(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 20, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        run(clip, tmp_path / "out.mp4", model)
    assert (job_path(tmp_path / "out.mp4") / "manifest.json").exists()


def test_a_job_waits_for_nobody_when_it_is_told_to_stop(tmp_path: Path, model: Path, clip: Path) -> None:
    """A host's own interruption passes as it is; finished segments are kept."""

    class HostStops(Exception):
        pass

    calls = []

    def poll() -> None:
        calls.append(1)
        if len(calls) == 40:
            raise HostStops

    checkpoint = load_checkpoint(model)
    settings = UpscaleSettings(scale=1.0, chunk_frames=5, chunk_overlap=1)
    up, out = Upscaler(checkpoint.model, checkpoint.routing, settings), tmp_path / "out.mp4"
    keep = JobSettings(segment_frames=6)
    with pytest.raises(HostStops):
        upscale_video(VideoReader(clip), out, up, WriterSettings(), poll=poll, job=keep)
    done = upscale_video(VideoReader(clip), out, up, WriterSettings(), job=replace(keep, resume=True))
    assert done.kept > 0
    assert done.frames == FRAMES

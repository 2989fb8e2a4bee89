"""Several processes and one job, resuming in the middle of the input, and plans that are remembered."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.cli import main
from oasis_core.jobs import remembered
from oasis_core.jobs.folder import job_path
from oasis_core.jobs.lock import JobLock
from oasis_core.model import OasisModel
from oasis_core.video_io.decoding import Decoding

from .tiny_job import save_random_model

FRAMES = 60
HOLDER = """
import sys
from pathlib import Path
from oasis_core.jobs.lock import JobLock
lock = JobLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model") / "random.safetensors")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moving noise with B-frames, a key frame every 10 frames, and uneven time stamps."""
    path = tmp_path_factory.mktemp("clip") / "in.mkv"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "10", "bf": "2", "x264-params": "scenecut=0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, i, 0), format="rgb24")
            frame.pts, frame.time_base = 40 * i + 7 * (i % 3), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def run(clip: Path, out: Path, model: Path, *more: str) -> int:
    return main([
        "upscale", str(clip), str(out), "--model", str(model), "--device", "cpu", "--scale", "1", "--chunk", "5",
        "--overlap", "1", "--segment", "6", "--codec", "ffv1", "--no-scene-cuts", *more,
    ])  # fmt: skip


def content(path: Path) -> list[tuple[bytes, object]]:
    with av.open(str(path)) as container:
        return [(f.to_ndarray(format="rgb24").tobytes(), f.time) for f in container.decode(video=0)]


def stop_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    real, count = OasisModel.decode, 0

    def decode(self: OasisModel, *args: object, **named: object) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == calls:
            raise KeyboardInterrupt
        return real(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(OasisModel, "decode", decode)


# The lock.


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the job folder of out.mkv."""
    place = job_path(tmp_path / "out.mkv")
    place.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_a_second_process_is_refused_and_a_dead_one_s_lock_is_no_obstacle(
    tmp_path: Path, model: Path, clip: Path, holder: subprocess.Popen[str], more: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out.mkv"
    assert run(clip, out, model, *more) == 2
    error = capsys.readouterr().err
    assert "another process is at work" in error
    assert len(error.strip().splitlines()) == 1
    holder.kill()
    holder.wait()
    assert (job_path(out) / "lock").exists()
    assert run(clip, out, model, "--resume") == 0
    assert not job_path(out).exists()


def test_of_processes_that_start_at_once_one_works_at_a_time(tmp_path: Path, model: Path, clip: Path) -> None:
    out, whole = tmp_path / "out.mkv", tmp_path / "whole.mkv"
    assert run(clip, whole, model) == 0
    argv = ["upscale", str(clip), str(out), "--model", str(model), "--device", "cpu", "--scale", "1", "--chunk", "5"]
    argv += ["--overlap", "1", "--segment", "6", "--codec", "ffv1", "--no-scene-cuts", "--resume"]
    children = [
        subprocess.Popen([sys.executable, "-m", "oasis_core", *argv], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    told = [child.communicate()[1] for child in children]
    codes = [child.returncode for child in children]
    assert 0 in codes
    assert all(code == 0 or "another process" in text for code, text in zip(codes, told, strict=True))
    assert content(out) == content(whole)
    assert not job_path(out).exists()


def test_a_lock_is_let_go_whatever_happens(tmp_path: Path, model: Path, clip: Path) -> None:
    out = tmp_path / "out.mkv"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 20)
        assert run(clip, out, model) == 130
    assert run(clip, out, model) == 2  # refused: an unfinished job
    assert run(clip, out, model, "--resume", "--crf", "1") == 2  # refused: ffv1 has no such scale
    assert run(clip, out, model, "--resume", "--scale", "2") == 2  # refused: of another job
    lock = JobLock(job_path(out))
    lock.release()
    lock.release()
    assert run(clip, out, model, "--resume") == 0


# In the middle of the input.


@pytest.mark.parametrize("at", [20, 45])
def test_resuming_decodes_only_what_it_needs(
    tmp_path: Path, model: Path, clip: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    assert run(clip, whole, model) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, at)
        assert run(clip, out, model) == 130
    kept = json.loads((job_path(out) / "manifest.json").read_text())["segments"][-1]["stop"]
    real, packets = Decoding._decode, []

    def count(self: Decoding, packet: av.Packet | None) -> object:
        packets.append(1)
        return real(self, packet)

    with monkeypatch.context() as patch:
        patch.setattr(Decoding, "_decode", count)
        assert run(clip, out, model, "--resume") == 0
    # At most: a chunk of warm-up (4), a segment (10), a group of pictures (10), reordered and flushing packets.
    assert FRAMES - kept <= len(packets) <= FRAMES - kept + 4 + 10 + 10 + 4
    assert content(out) == content(whole)


def test_a_damaged_input_is_decoded_from_the_start(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames are missing, so that numbers cannot be told from times; the result is the uninterrupted one's all the same."""
    source, whole, out = tmp_path / "in.mkv", tmp_path / "whole.mkv", tmp_path / "out.mkv"
    data = bytearray(clip.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 3000] = bytes(3000)
    source.write_bytes(data)
    assert run(source, whole, model) == 2  # made as far as it goes
    with monkeypatch.context() as patch:
        stop_after(patch, 45)
        assert run(source, out, model) == 130
    assert json.loads((job_path(out) / "manifest.json").read_text())["exact"] is False
    assert run(source, out, model, "--resume") == 2
    assert content(out) == content(whole)


# Plans.


def limited(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """The device holds chunks of ``most`` latent frames; gets the size of each that is tried."""
    real, sizes = OasisModel.restore, []

    def restore(self: OasisModel, z_l: torch.Tensor, *args: object) -> torch.Tensor:
        sizes.append(z_l.shape[2])
        if z_l.shape[2] > most:
            raise torch.OutOfMemoryError
        return real(self, z_l, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(OasisModel, "restore", restore)
    return sizes


def test_the_plan_that_worked_is_where_the_next_job_starts(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sizes = limited(monkeypatch, 2)
    assert run(clip, tmp_path / "a.mkv", model) == 0
    assert max(sizes) == 5
    sizes.clear()
    caplog.set_level(logging.INFO)
    assert run(clip, tmp_path / "b.mkv", model) == 0
    assert max(sizes) == 2
    assert "starting with chunk 2, tile by size: more ran out of memory on this device before" in caplog.text
    assert content(tmp_path / "b.mkv") == content(tmp_path / "a.mkv")
    capsys.readouterr()
    assert run(clip, tmp_path / "c.mkv", model, "--plan") == 0
    assert "2 frames" in capsys.readouterr().out
    sizes.clear()
    assert run(clip, tmp_path / "d.mkv", model, "--scale", "2") == 0  # another size: found out anew
    assert max(sizes) == 5


def test_a_remembered_plan_survives_an_interruption(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = limited(monkeypatch, 2)
    assert run(clip, tmp_path / "a.mkv", model) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 30)
        assert run(clip, tmp_path / "b.mkv", model) == 130
    sizes.clear()
    assert run(clip, tmp_path / "b.mkv", model, "--resume") == 0
    assert max(sizes) == 2
    assert content(tmp_path / "b.mkv") == content(tmp_path / "a.mkv")


def test_with_more_memory_free_the_plan_is_tried_anew(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran out beside another program may fit without it."""
    sizes = limited(monkeypatch, 2)
    for free, begins in ((1000, 5), (1050, 2), (1200, 5), (1200, 2)):
        monkeypatch.setattr("oasis_core.jobs.remembered.free_memory_mib", lambda _, free=free: free)
        monkeypatch.setattr("oasis_core.video_job.free_memory_mib", lambda _, free=free: free)
        sizes.clear()
        assert run(clip, tmp_path / "out.mkv", model) == 0
        (tmp_path / "out.mkv").unlink()
        assert max(sizes) == begins


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format": 2, "plans": {}}', '{"format": 1, "plans": {"a": 5}}', "[" * 99999, "\xff",
     '{"format": 1, "plans": {"a": {"chunk_frames": 0, "tile": null, "free": null}}}',
     '{"format": 1, "plans": {"a": {"chunk_frames": true, "tile": 1.5, "free": -1}}}'],
)  # fmt: skip
def test_a_damaged_file_of_plans_is_ignored_with_a_line(
    tmp_path: Path,
    model: Path,
    clip: Path,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = remembered.cache_folder() / "plans.json"
    file.write_text(text, encoding="latin-1")
    limited(monkeypatch, 2)
    assert run(clip, tmp_path / "out.mkv", model) == 0
    assert "ignored" in caplog.text
    assert len(json.loads(file.read_text())["plans"]) == 1


def test_a_cache_that_cannot_be_written_costs_nothing(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("OASIS_CACHE", str(tmp_path / "file"))
    limited(monkeypatch, 2)
    assert run(clip, tmp_path / "out.mkv", model) == 0
    assert "could not be remembered" in caplog.text

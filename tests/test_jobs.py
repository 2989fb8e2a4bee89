"""Jobs that are interrupted, run out of memory or disk, or find something changed: nothing finished is lost or wrong."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.checkpoints import load_checkpoint, save_checkpoint
from oasis_core.cli import main
from oasis_core.jobs import folder, segment_files
from oasis_core.jobs.folder import job_path
from oasis_core.jobs.manifest import Manifest
from oasis_core.jobs.segments import plan_segments
from oasis_core.jobs.shrink import smaller
from oasis_core.model import OasisModel
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import Position
from oasis_core.routing import RoutingSpec
from oasis_core.video_io import VideoReader, WriterSettings
from oasis_core.video_job import JobSettings, upscale_video

from .tiny_job import options, save_random_model

FRAMES = 40
CUT = 23


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model") / "random.safetensors")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shots of moving stripes with sound, uneven time stamps in a base of 1/30000 s, and a clock that starts late."""
    path = tmp_path_factory.mktemp("clip") / "in.mp4"
    base = Fraction(1, 30000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30000, 1001), options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = base
        sound = container.add_stream("aac", rate=48000, layout="mono")
        y, x = np.mgrid[:64, :64]
        for i in range(FRAMES):
            wave = np.sin((x + 2 * i) / 5) if i < CUT else np.cos((y - 3 * i) / 9)
            picture = np.stack([wave, wave * (x / 64), -wave], -1) * 100 + 128
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = 1001 * i + 300 * (i % 3), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for start in range(0, FRAMES * 1600, 1024):
            tone = (np.sin(np.arange(start, start + 1024) / 20) * 8000).astype(np.int16)[None]
            piece = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
            container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
    return path


def content(path: Path) -> tuple[list[bytes], list[Fraction], list[tuple[Fraction, bytes]]]:
    """Decoded frames, their seconds, and the sound's packets."""
    if path.is_dir():
        files = sorted(path.iterdir())
        return [f.read_bytes() for f in files], [Fraction(int(f.stem.split("_")[1])) for f in files], []
    with av.open(str(path)) as container:
        frames = [(f.to_ndarray(format="rgb24").tobytes(), f.pts * f.time_base) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = [
            ((p.pts or 0) * p.time_base, bytes(p))
            for s in container.streams.audio
            for p in container.demux(s)
            if p.size
        ]
    return [f for f, _ in frames], [t for _, t in frames], sound


def run(clip: Path, out: Path, model: Path, *more: str, segment: int = 6, codec: str = "h264") -> int:
    return main(["upscale", str(clip), str(out), *options(model, segment, codec), *more])


def stop_after(monkeypatch: pytest.MonkeyPatch, calls: int, error: BaseException) -> None:
    """The model's nth decoding raises ``error``."""
    real, count = OasisModel.decode, 0

    def decode(self: OasisModel, *args: object, **named: object) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == calls:
            raise error
        return real(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(OasisModel, "decode", decode)


# The plan.


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


# Interrupted and resumed.


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


# What breaks on the way.


def fails_once(monkeypatch: pytest.MonkeyPatch, module: object, name: str, calls: int, error: BaseException) -> None:
    real, count = getattr(module, name), 0

    def act(*args: object, **named: object) -> object:
        nonlocal count
        count += 1
        if count == calls:
            raise error
        return real(*args, **named)

    monkeypatch.setattr(module, name, act)


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


# Memory.


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("MPS backend out of memory (...)")])
def test_out_of_memory_goes_on_with_half_the_chunk(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:  # fmt: skip
    real, sizes = OasisModel.restore, []

    def restore(self: OasisModel, z_l: torch.Tensor, *args: object) -> torch.Tensor:
        sizes.append(z_l.shape[2])
        if z_l.shape[2] > 2 and len(sizes) > 3:
            raise error
        return real(self, z_l, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(OasisModel, "restore", restore)
    assert run(clip, tmp_path / "out.mp4", model) == 0
    assert len(content(tmp_path / "out.mp4")[0]) == FRAMES
    lines = [r.getMessage() for r in caplog.records if "out of memory" in r.getMessage()]
    assert lines == ["out of memory with chunk 5, tile by size: going on from frame 8 with chunk 2, tile by size"]
    assert max(sizes[4:]) == 2


def test_a_smaller_plan_survives_an_interruption(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same frames whether or not the job is also interrupted, before or after its chunks were halved."""

    def limited(patch: pytest.MonkeyPatch) -> None:
        real, calls = OasisModel.restore, []

        def restore(self: OasisModel, z_l: torch.Tensor, *args: object) -> torch.Tensor:
            calls.append(1)
            if z_l.shape[2] > 2 and len(calls) > 3:
                raise torch.OutOfMemoryError
            return real(self, z_l, *args)  # type: ignore[arg-type]

        patch.setattr(OasisModel, "restore", restore)

    whole, out = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    with monkeypatch.context() as patch:
        limited(patch)
        assert run(clip, whole, model, codec="ffv1") == 0
    monkeypatch.setenv("OASIS_CACHE", str(tmp_path / "cache"))  # else it would begin with the first job's plan
    with monkeypatch.context() as patch:
        limited(patch)
        stop_after(patch, 25, KeyboardInterrupt())
        assert run(clip, out, model, codec="ffv1") == 130
    assert run(clip, out, model, "--resume", codec="ffv1") == 0
    assert content(out) == content(whole)


def test_where_nothing_fits_the_error_names_what_to_lower(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def restore(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(OasisModel, "restore", restore)
    assert run(clip, tmp_path / "out.mp4", model, "--scale", "4") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "even with chunk 1, tile 128: lower the output size (scale, or width and height)" in error[-1]
    assert list(tmp_path.iterdir()) == []


def test_plans_shrink_to_the_end(model: Path) -> None:
    checkpoint = load_checkpoint(model)
    up: Upscaler | None = Upscaler(
        checkpoint.model, checkpoint.routing, UpscaleSettings(chunk_frames=16, chunk_overlap=5, tile_overlap=208)
    )
    seen = []
    while up is not None:
        seen.append((up.settings.chunk_frames, up.settings.tile))
        up = smaller(up, 540, 960)
    assert seen == [(16, None), (8, None), (4, None), (2, None), (1, None), (1, 640), (1, 320), (1, 160), (1, 128)]


def test_tiles_shrink_in_whole_tokens(model: Path) -> None:
    """Half of 656 pixels, 41 tokens of 16, is none."""
    checkpoint = load_checkpoint(model)
    up: Upscaler | None = Upscaler(
        checkpoint.model, checkpoint.routing, UpscaleSettings(chunk_frames=1, tile=656, tile_overlap=240)
    )
    seen = []
    while up is not None:
        seen.append((up.settings.tile, up.settings.tile_overlap))
        up = smaller(up, 540, 960)
    assert seen == [(656, 240), (320, 160), (160, 80), (128, 64)]


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


# Plans, and jobs that are long.


def test_a_plan_is_told_and_nothing_is_done(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    assert run(clip, out, model, "--plan") == 0
    told = capsys.readouterr().out
    names = [line.split(":")[0] for line in told.splitlines()]
    assert names == ["output", "chunk", "tile", "segments", "memory", "disk", "time"]
    assert "128x128, 40 frames" in told
    assert "5 frames, 1 latent frames shared" in told
    assert "frames per second (measured now" in told
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        stop_after(patch, 20, KeyboardInterrupt())
        run(clip, out, model)
    state = (job_path(out) / "manifest.json").read_bytes()
    capsys.readouterr()
    assert run(clip, out, model, "--plan") == 0
    assert "for the 24 frames left" in capsys.readouterr().out
    assert (job_path(out) / "manifest.json").read_bytes() == state


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_stays_flat_over_thousands_of_frames(tmp_path: Path, model: Path) -> None:
    """20,000 frames with a cut every 500: the last quarter takes no more than 3 % over the second."""
    frames, size = 20_000, 32
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        y, x = np.mgrid[:size, :size]
        for i in range(frames):
            wave = np.sin((x * (i // 500 % 3) + y + i) / 4) * 100 + 128
            picture = np.repeat(wave[..., None], 3, -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    pages: list[int] = []

    def note(done: int, total: int | None) -> None:
        if done % 100 == 0:
            pages.append(int(Path("/proc/self/statm").read_text().split()[1]))

    checkpoint = load_checkpoint(model)
    up = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(scale=1.0, chunk_frames=8))
    done = upscale_video(VideoReader(path), tmp_path / "out.mkv", up, WriterSettings(), note)
    assert done.frames == frames
    quarter = len(pages) // 4
    early, late = np.mean(pages[quarter : 2 * quarter]), np.mean(pages[3 * quarter :])
    print(f"resident: {early * 4 / 1024:.1f} MiB in the second quarter, {late * 4 / 1024:.1f} MiB in the last; {done}")
    assert late / early < 1.03

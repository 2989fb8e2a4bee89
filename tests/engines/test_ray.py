"""A job on a local Ray: the result of one worker, whatever happens to the workers, and nothing left running."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from oasis_core.cli import main
from oasis_core.engines import cluster
from oasis_core.engines.cluster import room
from oasis_core.engines.film import FilmRequest
from oasis_core.engines.orders import Order, Outcome, Source, WorkerSettings
from oasis_core.engines.ray_job import upscale_on_ray
from oasis_core.engines.told import RaySettings, Result, WorkerState
from oasis_core.engines.worker import SegmentWorker
from oasis_core.jobs.folder import job_path, read_manifest
from oasis_core.pipeline import UpscaleSettings
from oasis_core.video_io import WriterSettings
from oasis_core.video_job import JobSettings

from .conftest import FRAMES, content, make_clip, options

needs_ray = pytest.mark.skipif(cluster.why_not() is not None, reason=f"RAY NOT TESTED: {cluster.PIP}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, clip: Path, model: Path) -> Path:
    """What one worker makes."""
    path = tmp_path_factory.mktemp("whole") / "whole.mkv"
    assert main(["upscale", str(clip), str(path), *options(model)]) == 0
    return path


def on_ray(
    address: str, clips: list[Path], out: Path, model: Path, worker: type[SegmentWorker] = SegmentWorker,
    resume: bool = False, states: list[list[WorkerState]] | None = None, streamed: bool = False, codec: str = "ffv1",
) -> list[Result]:  # fmt: skip
    """The command's options, with workers that may misbehave."""
    settings = UpscaleSettings(scale=2.0, chunk_frames=5, chunk_overlap=1)
    loaded = WorkerSettings(str(model), None, settings, "cpu", "fp32", "auto", False)
    requests = [FilmRequest(Source(c), out if len(clips) == 1 else out / c.name) for c in clips]
    return upscale_on_ray(
        requests, loaded, WriterSettings(codec), JobSettings(resume, 6), RaySettings(address, 2, streamed),
        watch=None if states is None else lambda now: states.append(list(now)), worker=worker,
    )  # fmt: skip


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


# Workers that fail. Classes within functions: Ray carries those to its workers by value.


def marked(path: Path) -> bool:
    """True for the first caller, among all processes."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_s_segment_goes_to_another(
    address: str, tmp_path: Path, clip: Path, model: Path, whole: Path
) -> None:
    mark, out = tmp_path / "killed", tmp_path / "out.mkv"

    class Mortal(SegmentWorker):
        def make(self, order: Order) -> Outcome:
            outcome = super().make(order)  # its file is complete, the news of it never comes
            if order.task.start.frame > 10 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), 9)
            return outcome

    results = on_ray(address, [clip], out, model, Mortal)
    assert mark.exists()
    assert [r.error for r in results] == [None]
    assert content(out) == content(whole)


@needs_ray
@pytest.mark.slow
def test_a_segment_that_kills_its_workers_is_given_up_and_the_rest_is_made(
    address: str, tmp_path: Path, clip: Path, model: Path, whole: Path
) -> None:
    out = tmp_path / "out.mkv"

    class Poisoned(SegmentWorker):
        def make(self, order: Order) -> Outcome:
            if order.task.start.frame == 8:
                os.kill(os.getpid(), 9)
            return super().make(order)

    [result] = on_ray(address, [clip], out, model, Poisoned)
    assert result.error is not None
    assert "in.mkv: frames 8 to 15 (its worker died); 52 finished frames are kept" in result.error
    assert not out.exists()
    assert on_ray(address, [clip], out, model, resume=True)[0].error is None
    assert content(out) == content(whole)


@needs_ray
@pytest.mark.slow
def test_a_segment_that_raises_is_tried_smaller_then_told(
    address: str, tmp_path: Path, clip: Path, model: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, tries = tmp_path / "out.mkv", tmp_path / "tries"
    tries.mkdir()

    class Raising(SegmentWorker):
        def __init__(self, *given: Any) -> None:
            os.environ["OASIS_CACHE"] = str(tmp_path / "cache")  # what it remembers is not for other tests
            super().__init__(*given)

        def _make(self, order: Order) -> Outcome:
            if order.task.start.frame == 8:
                (tries / f"{order.attempt}-{order.smaller}").touch()
                raise RuntimeError("corrupt\nframes")
            if order.task.start.frame == 31 and not order.smaller:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return super()._make(order)

    [result] = on_ray(address, [clip], out, model, Raising)
    assert result.error is not None
    assert "in.mkv: frames 8 to 15 (RuntimeError: corrupt frames); 52 finished frames are kept" in result.error
    assert sorted(int(t.name.split("-")[1]) for t in tries.iterdir()) == [0, 0, 1]
    assert "frames 31 to 38 was made with chunk 2, tile by size: not exactly what the plan gives" in caplog.text
    manifest = read_manifest(job_path(out))
    assert manifest is not None
    assert manifest.finished == FRAMES - 8
    # Here and there: one process goes on where two have stopped.
    assert main(["upscale", str(clip), str(out), *options(model), "--resume"]) == 0
    frames = content(out)[0]
    assert len(frames) == FRAMES
    assert [f for i, f in enumerate(frames) if not 31 <= i < 39] == [
        f for i, f in enumerate(content(whole)[0]) if not 31 <= i < 39
    ]


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


@needs_ray
@pytest.mark.slow
def test_a_slow_worker_delays_nothing(address: str, tmp_path: Path, clip: Path, model: Path, whole: Path) -> None:
    mark, tries, out, states = tmp_path / "slow", tmp_path / "tries", tmp_path / "out.mkv", list[list[WorkerState]]()
    tries.mkdir()

    class Slow(SegmentWorker):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self._slow = marked(mark)

        def _make(self, order: Order) -> Outcome:
            (tries / f"{order.task.start.frame}-{self._slow}").touch()
            for _ in range(1200 if self._slow else 18):  # half a second for a segment, or two minutes
                time.sleep(0.1 if self._slow else 0.03)
                self._poll(order.attempt)
            return super()._make(order)

    began = time.monotonic()
    [result] = on_ray(address, [clip], out, model, Slow, states=states)
    assert result.error is None
    assert time.monotonic() - began < 100  # the slow one's first segment alone takes 120 s
    assert content(out) == content(whole)
    slow, quick = ({t.name.split("-")[0] for t in tries.glob(f"*-{kind}")} for kind in (True, False))
    assert slow
    assert slow <= quick  # another made what the slow one was at
    tasks = {state.task for now in states for state in now if state.task}
    assert tasks
    assert all(task.startswith("frames ") for task in tasks)


# Without shared storage.


@needs_ray
@pytest.mark.slow
def test_files_go_through_the_object_store(address: str, tmp_path: Path, clip: Path, model: Path, whole: Path) -> None:
    """Workers that see neither input nor job folder; blocks so small that every file takes many."""
    far, seen, out = tmp_path / "far", tmp_path / "seen", tmp_path / "out.mkv"
    far.mkdir()
    seen.mkdir()

    class Far(SegmentWorker):
        def __init__(self, *given: Any) -> None:
            import tempfile

            from oasis_core.engines import far_files

            tempfile.tempdir, far_files.BLOCK = str(far), 5000
            super().__init__(*given)

        def _open(self, source: Source) -> Any:
            (seen / str(source.path).replace("/", "_")).touch()
            return super()._open(source)

    [result] = on_ray(address, [clip], out, model, Far, streamed=True)
    assert result.error is None
    assert content(out) == content(whole)
    assert len(list(seen.iterdir())) == 1  # one copy for both workers
    assert all("far_oasis_" in place.name for place in seen.iterdir())
    assert [place.name for place in far.iterdir()] == []


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "frame_%05d.png"])
def test_images_go_through_the_object_store(address: str, tmp_path: Path, clip: Path, model: Path, name: str) -> None:
    """A folder or a pattern in, a folder out."""
    images, whole, out = tmp_path / "images", tmp_path / "whole", tmp_path / "out"
    assert main(["upscale", str(clip), str(images), *options(model, "png")]) == 0
    assert main(["upscale", str(images / name), str(whole), *options(model, "png")]) == 0
    far = tmp_path / "far"
    far.mkdir()

    class Far(SegmentWorker):
        def __init__(self, *given: Any) -> None:
            import tempfile

            tempfile.tempdir = str(far)
            super().__init__(*given)

    [result] = on_ray(address, [images / name], out, model, Far, streamed=True, codec="png")
    assert result.error is None
    assert [p.name for p in sorted(out.iterdir())] == [p.name for p in sorted(whole.iterdir())]
    assert all((out / p.name).read_bytes() == p.read_bytes() for p in whole.iterdir())
    assert list(far.iterdir()) == []


# Many files.


@needs_ray
@pytest.mark.slow
def test_a_batch_keeps_workers_busy_across_files(
    address: str, tmp_path: Path, clip: Path, model: Path, whole: Path
) -> None:
    """The first film's last segment ends only when one of another film has begun, by another worker."""
    films, out = [clip, *(make_clip(tmp_path / f"{seed}.mkv", seed, 40) for seed in (3, 4))], tmp_path / "out"
    (tmp_path / "bad.mkv").write_text("no video")
    out.mkdir()
    begun = tmp_path / "begun"
    begun.mkdir()

    class Meeting(SegmentWorker):
        def _make(self, order: Order) -> Outcome:
            me, last = str(os.getpid()), order.source.path.stem == "in" and order.task.stop == FRAMES
            (begun / (f"last-{me}" if last else f"{order.source.path.stem}-{me}")).touch()
            until = time.monotonic() + 60
            while last and not any(not p.name.endswith(f"-{me}") for p in begun.glob("[34]-*")):
                if time.monotonic() > until:
                    raise RuntimeError("no other worker began another film")
                time.sleep(0.02)
            return super()._make(order)

    results = on_ray(address, [*films[:2], tmp_path / "bad.mkv", films[2]], out, model, Meeting)
    assert list(begun.glob("last-*"))
    assert [r.error is None for r in results] == [True, True, False, True]
    assert results[2].error is not None
    assert results[2].error.startswith("bad.mkv: ")
    assert content(out / "in.mkv") == content(whole)
    for film in films[1:]:
        alone = tmp_path / f"alone_{film.name}"
        assert main(["upscale", str(film), str(alone), *options(model)]) == 0
        assert content(out / film.name) == content(alone)
    assert sorted(p.name for p in out.iterdir()) == sorted(f.name for f in films)

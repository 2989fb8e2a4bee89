"""Routing that is decided while a job runs, by several workers: decided once for each shot, and the frames of one process."""

# ruff: noqa: F401, F811 - path is a fixture

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from oasis_core.checkpoints import load_checkpoint
from oasis_core.cli import main
from oasis_core.engines import cluster
from oasis_core.engines.deciding import PATIENCE, held
from oasis_core.engines.film import FilmRequest
from oasis_core.engines.orders import Order, Outcome, Source, WorkerSettings
from oasis_core.engines.ray_job import upscale_on_ray
from oasis_core.engines.schedule import Failure, Key, Schedule
from oasis_core.engines.told import RaySettings, Result
from oasis_core.engines.worker import SegmentWorker
from oasis_core.jobs.folder import JobFolder, job_path, read_manifest
from oasis_core.jobs.manifest import Manifest
from oasis_core.jobs.scan import SegmentTask
from oasis_core.jobs.segments import plan_segments
from oasis_core.pipeline import UpscaleSettings
from oasis_core.plan import Position
from oasis_core.ready import routing_of
from oasis_core.routing import RoutingSpec
from oasis_core.routing.auto import Deciding
from oasis_core.video_io import WriterSettings
from oasis_core.video_job import JobSettings

from ..test_auto_routing import CUT, FRAMES, path, pictures, run, save_clip
from .ray_runs import needs_ray

AUTO = "auto:threshold=2.7"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "in.mkv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, clip: Path, path: Path) -> tuple[Path, Manifest]:
    """What one process makes, and its manifest."""
    out, last = tmp_path_factory.mktemp("whole") / "whole.mkv", list[Manifest]()
    with pytest.MonkeyPatch.context() as patch:
        keep_last(patch, last)
        assert run(clip, out, path, "--routing", AUTO) == 0
    assert set(last[0].routings) == {0, CUT}
    assert last[0].routings[0] != last[0].routings[CUT]
    return out, last[0]


def keep_last(patch: pytest.MonkeyPatch, manifests: list[Manifest]) -> None:
    """Of folders that are removed."""
    remove = JobFolder.remove
    patch.setattr(JobFolder, "remove", lambda self: (manifests.append(self.manifest), remove(self)))


def on_ray(
    address: str, clip: Path, out: Path, model: Path, worker: type[SegmentWorker], routing: str = AUTO,
    resume: bool = False,
) -> Result:  # fmt: skip
    """``run``'s settings."""
    settings = UpscaleSettings(scale=2.0, chunk_frames=5, chunk_overlap=1)
    loaded = WorkerSettings(str(model), routing, settings, "cpu", "auto", "auto", False)
    [result] = upscale_on_ray(
        [FilmRequest(Source(clip), out)], loaded, WriterSettings("ffv1"), JobSettings(resume, 4), RaySettings(address, 2),
        worker=worker,
    )  # fmt: skip
    return result


def notes(folder: Path, kind: str) -> list[str]:
    return sorted(file.name.partition("-")[2] for file in folder.glob(f"{kind}-*"))


@needs_ray
@pytest.mark.slow
def test_a_worker_that_dies_after_deciding_leaves_its_decision(
    address: str,
    tmp_path: Path,
    clip: Path,
    path: Path,
    whole: tuple[Path, Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, said, manifests = tmp_path / "out.mkv", tmp_path / "said", list[Manifest]()
    said.mkdir()

    class Mortal(SegmentWorker):
        def _keep(self, attempt: int, shot: int, routing: RoutingSpec) -> None:
            super()._keep(attempt, shot, routing)
            (said / f"decided-{shot}").touch(exist_ok=False)

        def make(self, order: Order) -> Outcome:
            start = order.task.start
            if start.frame > start.shot:
                (said / f"inside-{start.frame}-{start.shot in order.routings}").touch()
            outcome = super().make(order)
            if start.frame == 0 and not (said / "killed").exists():
                (said / "killed").touch()
                time.sleep(2)  # the driver asks for news several times
                os.kill(os.getpid(), 9)
            return outcome

    keep_last(monkeypatch, manifests)
    assert on_ray(address, clip, out, path, Mortal).error is None
    assert (said / "killed").exists()
    assert pictures(out) == pictures(whole[0])
    assert manifests[-1].routings == whole[1].routings
    assert notes(said, "decided") == ["0", str(CUT)]
    assert len(notes(said, "inside")) >= 3
    assert all(note.endswith("True") for note in notes(said, "inside"))


@needs_ray
@pytest.mark.slow
def test_a_shot_whose_first_segment_cannot_be_made_is_decided_by_the_next(
    address: str,
    tmp_path: Path,
    clip: Path,
    path: Path,
    whole: tuple[Path, Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the job goes on elsewhere with the decisions that are there."""
    out = tmp_path / "out.mkv"

    class Poisoned(SegmentWorker):
        def _make(self, order: Order) -> Outcome:
            if order.task.start.frame == 0:
                raise RuntimeError("no")
            return super()._make(order)

    error = on_ray(address, clip, out, path, Poisoned).error
    assert error is not None
    assert "in.mkv: frames 0 to" in error
    manifest = read_manifest(job_path(out))
    assert manifest is not None
    assert manifest.routings == whole[1].routings
    first = manifest.ahead[0].start
    assert manifest.finished == FRAMES - first
    made: list[int] = []
    call = Deciding.__call__
    monkeypatch.setattr(Deciding, "__call__", lambda self, layer, *rest: made.append(layer) or call(self, layer, *rest))
    more = "--resume", "--routing", AUTO
    assert run(clip, out, path, *more) == 0
    assert not made
    assert pictures(out) == pictures(whole[0])


@needs_ray
@pytest.mark.slow
def test_an_interrupted_job_goes_on_with_ray(
    address: str,
    tmp_path: Path,
    clip: Path,
    path: Path,
    whole: tuple[Path, Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a process has decided is what workers use; a worker that decides otherwise is not believed."""
    out, said = tmp_path / "out.mkv", tmp_path / "said"
    said.mkdir()
    add, count = JobFolder.add, 0

    def stop(self: JobFolder, *given: Any) -> None:
        nonlocal count
        add(self, *given)
        count += 1
        if count == 2:
            raise OSError("the end")

    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "add", stop)
        assert run(clip, out, path, "--routing", AUTO) == 2
    manifest = read_manifest(job_path(out))
    assert manifest is not None
    assert {0} <= set(manifest.routings) <= {0, CUT}  # how far ahead the model was

    class Contrary(SegmentWorker):
        def _tried(self, order: Order) -> Outcome:
            outcome = super()._tried(order)
            if order.task.start.frame < CUT and not (said / "lied").exists():
                (said / "lied").touch()
                self._keep(order.attempt, 0, RoutingSpec.uniform(3, 4, self._upscaler.routing.auto.patterns[0]))  # type: ignore[union-attr]
            return outcome

        def _keep(self, attempt: int, shot: int, routing: RoutingSpec) -> None:
            super()._keep(attempt, shot, routing)
            (said / f"decided-{shot}").touch()

    as_json = routing_of(AUTO, load_checkpoint(path)).to_json()  # as ComfyUI's node gives it
    assert on_ray(address, clip, out, path, Contrary, as_json, resume=True).error is None
    assert (said / "lied").exists()
    assert pictures(out) == pictures(whole[0])


@needs_ray
@pytest.mark.slow
def test_the_command_line_says_it(
    address: str, tmp_path: Path, clip: Path, path: Path, whole: tuple[Path, Manifest],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ray = ("--engine", "ray", "--address", address, "--workers", "2")
    assert run(clip, tmp_path / "out.mkv", path, "--routing", AUTO, *ray) == 0
    assert pictures(tmp_path / "out.mkv") == pictures(whole[0])
    tiny = ["upscale", str(clip), str(tmp_path / "tiny.mkv"), "--device", "cpu", "--routing", "auto", *ray]
    capsys.readouterr()
    assert main(tiny) == 2
    assert "oasis-tiny cannot be calibrated" in capsys.readouterr().err


# Who waits for whom; no Ray.


class Clock:
    """A film as ``held`` sees it: which shots are decided."""

    def __init__(self) -> None:
        self.known: set[int] = set()

    def undecided(self, shot: int) -> bool:
        return shot not in self.known


def tasks_of(length: int, cuts: list[int], full: int) -> dict[Key, SegmentTask]:
    starts = sorted({0, *cuts})
    found = {}
    for s in plan_segments(length, cuts, 4, 1, 1, full):
        shot = max(c for c in starts if c <= min(s.stop, length - 1))
        found[0, s.start.frame] = SegmentTask(s.start, s.stop, shot, 0, 0, ())
    return found


@pytest.mark.parametrize("seed", range(30))
def test_nobody_waits_for_ever_and_no_shot_is_decided_twice(seed: int) -> None:
    """Random jobs with segments that fail for good; time goes on as attempts end."""
    r = random.Random(seed)
    length = r.randint(20, 90)
    tasks = tasks_of(length, sorted(r.sample(range(1, length), 4)), r.randint(3, 12))
    hopeless = set(r.sample(sorted(tasks), min(3, len(tasks))))
    film, schedule, now = Clock(), Schedule(), 0.0
    for key, task in tasks.items():
        schedule.add(key, task.frames)
    schedule.close()
    running: dict[int, Any] = {}
    deciders: dict[int, set[Key]] = {}
    rounds = 0
    while not schedule.over:
        rounds += 1
        assert rounds < 2000
        now += 1.0
        wait = held(schedule, tasks, {0: film}, now)  # type: ignore[dict-item]
        for worker in (0, 1, 2):
            if worker in running or (attempt := schedule.give(worker, now, True, wait)) is None:
                continue
            task = tasks[attempt.key]
            running[worker] = attempt
            if task.begins_inside and film.undecided(task.start.shot) and attempt.key not in hopeless:
                deciders.setdefault(task.start.shot, set()).add(attempt.key)
        for worker, attempt in list(running.items()):
            task = tasks[attempt.key]
            if attempt.key in hopeless:
                del running[worker]
                schedule.failed(attempt, Failure.ERROR)
            elif r.random() < 0.3:
                shots = {task.start.shot, *(s for s in range(task.start.frame, task.stop) if s in starts_of(tasks))}
                film.known |= shots
                if r.random() < 0.5:
                    del running[worker]
                    schedule.done(attempt, now)
    made_first = {t.start.shot for k, t in tasks.items() if k in hopeless} | {
        t.next_shot for k, t in tasks.items() if k in hopeless
    }
    assert set(deciders) <= made_first  # inside a shot only where its beginning could not be made
    assert all(len(keys) == 1 for keys in deciders.values())


def starts_of(tasks: dict[Key, SegmentTask]) -> set[int]:
    return {t.start.shot for t in tasks.values()} | {t.next_shot for t in tasks.values()}


def test_patience_has_an_end() -> None:
    tasks = {(0, 0): SegmentTask(Position(0, 0), 8, 0, 0, 0, ()), (0, 8): SegmentTask(Position(8, 0), 16, 0, 0, 0, ())}
    schedule, film = Schedule(), Clock()
    for key, task in tasks.items():
        schedule.add(key, task.frames)
    films: Any = {0: film}
    assert held(schedule, tasks, films, 0.0) == {(0, 8)}
    assert schedule.give(0, 5.0, True, {(0, 8)}) is not None
    assert held(schedule, tasks, films, 4.9 + PATIENCE) == {(0, 8)}
    assert held(schedule, tasks, films, 5.0 + PATIENCE) == set()
    film.known.add(0)
    assert held(schedule, tasks, films, 6.0) == set()

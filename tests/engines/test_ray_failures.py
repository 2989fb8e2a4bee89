"""Workers that die, raise or dawdle: the result of one worker all the same, or one line that says what is missing.

Classes within functions: Ray carries those to its workers by value.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from oasis_core.cli import main
from oasis_core.engines.orders import Order, Outcome
from oasis_core.engines.told import WorkerState
from oasis_core.engines.worker import SegmentWorker
from oasis_core.jobs.folder import job_path, read_manifest

from .conftest import FRAMES, content, options
from .ray_runs import marked, needs_ray, on_ray


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

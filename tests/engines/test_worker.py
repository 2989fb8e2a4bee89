"""One worker without Ray: two orders at a time, one thread for its model, a rehearsal that leaves no trace."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from oasis_core import heap
from oasis_core.engines.far_files import Shared
from oasis_core.engines.orders import Order, Source, WorkerSettings
from oasis_core.engines.schedule import Failure
from oasis_core.engines.warming import Rehearsal, rehearse
from oasis_core.engines.worker import SegmentWorker
from oasis_core.jobs.scan import SegmentTask
from oasis_core.jobs.segment_files import SegmentFile
from oasis_core.jobs.segments import plan_segments
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import Position
from oasis_core.routing import RoutingSpec
from oasis_core.video_io import WriterSettings

from .test_any_order import Parts

WRITER = WriterSettings("ffv1")
PATIENCE = 60.0
"""Seconds until a test that waits for a thread gives up."""


class Job:
    """Orders for a worker, as a driver gives them."""

    def __init__(self, folder: Path, clip: Path, model: Path) -> None:
        self.parts = Parts(clip, folder / "out.mkv", model)
        self.tasks = self.parts.plan()
        self.info = self.parts.reader.info
        probe = self.parts.folder.path / "segment_probe.txt"
        probe.write_text("probe")
        self._shared = Shared("0", probe, "probe", self.parts.folder.manifest.asked, None)

    def order(self, number: int, task: SegmentTask) -> Order:
        file = self.parts.folder.path / f"segment_{task.start.frame:07d}-{number}"
        return Order(
            number, Source(self.parts.reader.path), task, file, WRITER, None, None, None, 0, self._shared
        )  # fmt: skip


@pytest.fixture
def job(tmp_path: Path, clip: Path, model: Path) -> Iterator[Job]:
    made = Job(tmp_path, clip, model)
    with made.parts.folder:
        yield made


def settings(model: Path) -> WorkerSettings:
    asked = UpscaleSettings(scale=2.0, chunk_frames=5, chunk_overlap=1)
    return WorkerSettings(str(model), None, asked, "cpu", "fp32", "auto", False)


def test_the_model_makes_the_next_segment_while_the_encoder_finishes_one(
    job: Job, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, begun = SegmentWorker(settings(model)), threading.Event()
    alone = [worker.make(job.order(number, job.tasks[number])) for number in (0, 1)]
    finish = SegmentFile.finish

    def waiting(self: SegmentFile, end: Position) -> Any:
        if end.frame == job.tasks[0].stop:
            assert begun.wait(PATIENCE), "the model waits for the encoder"
        return finish(self, end)

    def advance(self: SegmentWorker, attempt: int, done: float, total: int | None) -> None:
        if attempt == 3 and done == total:
            begun.set()

    monkeypatch.setattr(SegmentFile, "finish", waiting)
    monkeypatch.setattr(SegmentWorker, "_advance", advance)
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(worker.make, [job.order(2 + n, job.tasks[n]) for n in (0, 1)]))
    assert [o.error for o in both] == ["", ""]
    hashes = [[o.record.sha256 for o in some if o.record is not None] for some in (alone, both)]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 2
    assert all(o.spent.model > 0 and o.spent.after > 0 for o in both)
    assert alone[0].spent.idle is None  # there was none before
    assert alone[1].spent.idle is not None


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept_until_the_encoder_has_finished(
    job: Job, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that segments which overlap leave no moment in which it goes back (``heap.reused`` counts them)."""
    if not heap.trim_heap():
        pytest.skip("another C library")
    happened = list[str]()
    finish = SegmentFile.finish

    def finished(self: SegmentFile, end: Position) -> Any:
        record = finish(self, end)
        happened.append("finished")
        return record

    monkeypatch.setattr(heap, "_keepers", 0)
    monkeypatch.setattr(heap, "trim_heap", lambda: happened.append("given back"))
    monkeypatch.setattr(SegmentFile, "finish", finished)
    assert SegmentWorker(settings(model)).make(job.order(0, job.tasks[0])).error == ""
    assert happened == ["finished", "given back"]


def test_all_that_runs_the_model_runs_in_one_thread(job: Job, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks: what torch keeps for a thread is not made again."""
    seen: set[int] = set()
    decode = OasisModel.decode

    def noted(self: OasisModel, *given: Any, **more: Any) -> Any:
        seen.add(threading.get_ident())
        return decode(self, *given, **more)

    monkeypatch.setattr(OasisModel, "decode", noted)
    monkeypatch.setattr(SegmentWorker, "_warms", True)
    worker = SegmentWorker(settings(model))
    worker.warm(Rehearsal(job.info, WRITER, None, None, None))
    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(worker.make, [job.order(number, task) for number, task in enumerate(job.tasks)]))
    assert {outcome.error for outcome in outcomes} == {""}
    assert len(seen) == 1
    assert threading.get_ident() not in seen


def test_an_order_that_waits_can_be_stopped(job: Job, model: Path) -> None:
    worker = SegmentWorker(settings(model))
    worker.stop(7)  # the news may come before the order
    outcome = worker.make(job.order(7, job.tasks[0]))
    assert (outcome.record, outcome.how, outcome.error) == (None, Failure.ERROR, "stopped")
    assert not list(job.parts.folder.path.glob("segment_0*"))
    assert worker.progress() == ()
    assert worker.make(job.order(8, job.tasks[0])).record is not None


def test_a_rehearsal_leaves_no_trace(job: Job, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SegmentWorker, "_warms", True)
    plain, warmed = (SegmentWorker(settings(model)) for _ in range(2))
    torch.manual_seed(3)
    before, files = torch.get_rng_state(), sorted(job.parts.folder.path.iterdir())
    assert warmed.warm(Rehearsal(job.info, WRITER, None, None, None)) > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(job.parts.folder.path.iterdir()) == files
    assert warmed.progress() == ()
    made = [w.make(job.order(n, job.tasks[2])).record for n, w in enumerate((plain, warmed))]
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].sha256 == made[1].sha256


def test_cpus_do_not_rehearse(job: Job, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oasis_core.engines.worker.rehearse", lambda *given: pytest.fail("it did"))
    SegmentWorker(settings(model)).warm(Rehearsal(job.info, WRITER, None, None, None))


def test_a_rehearsal_that_runs_out_of_memory_is_none(job: Job, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*given: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SegmentWorker, "_warms", True)
    monkeypatch.setattr("oasis_core.engines.worker.rehearse", out_of_memory)
    worker = SegmentWorker(settings(model))
    worker.warm(Rehearsal(job.info, WRITER, None, None, None))
    assert worker.make(job.order(0, job.tasks[0])).record is not None


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
def test_segments_do_what_was_rehearsed(job: Job, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shape that the model sees in segments which end inside their shot, it has seen."""
    seen: set[tuple[object, ...]] = set()
    for owner, name in ((OasisModel, "encode"), (OasisModel, "decode"), (Upscaler, "_one_step")):
        monkeypatch.setattr(owner, name, noting(getattr(owner, name), name, seen))
    config = OasisConfig(
        name="random", unshuffle=(4, 8, 8), latent_channels=4, dim=24, depth=1, heads=2, ffn_dim=24, freq_dim=8,
        decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    routing, asked = RoutingSpec.by_ratio(1, 2, 0.5, 0.5), UpscaleSettings(scale=1.0, at_once=at_once)
    upscaler = Upscaler(OasisModel(config), routing, asked)
    rehearse(upscaler, job.info, WRITER)
    rehearsed = set(seen)
    seen.clear()
    picture = torch.rand(job.info.height, job.info.width, 3)
    segments = plan_segments(100, [], upscaler.chunk, upscaler.chunk_overlap, 4, 24)
    for segment in segments[:-1]:
        made, frames = segment.start.frame, [picture] * (100 - upscaler.first_needed(segment.start))
        for part in upscaler.parts(frames, segment.start):
            made += len(part.frames)
            if made >= segment.stop:
                break
    assert len(segments) > 3
    assert len(seen) >= 5
    assert seen <= rehearsed


def noting(method: Any, name: str, seen: set[tuple[object, ...]]) -> Any:
    def noted(self: Any, *given: Any, **more: Any) -> Any:
        seen.add((name, *(tuple(x.shape) for x in given if isinstance(x, torch.Tensor)), more.get("first")))
        return method(self, *given, **more)

    return noted

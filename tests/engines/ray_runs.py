"""Jobs on a local Ray with workers that may misbehave."""

from __future__ import annotations

from pathlib import Path

import pytest

from oasis_core.engines import cluster
from oasis_core.engines.film import FilmRequest
from oasis_core.engines.orders import Source, WorkerSettings
from oasis_core.engines.ray_job import upscale_on_ray
from oasis_core.engines.told import RaySettings, Result, WorkerState
from oasis_core.engines.worker import SegmentWorker
from oasis_core.pipeline import UpscaleSettings
from oasis_core.video_io import WriterSettings
from oasis_core.video_job import JobSettings

needs_ray = pytest.mark.skipif(cluster.why_not() is not None, reason=f"RAY NOT TESTED: {cluster.PIP}")


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


def marked(path: Path) -> bool:
    """True for the first caller, among all processes."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

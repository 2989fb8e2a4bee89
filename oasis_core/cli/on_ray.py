"""``oasis upscale --engine ray``: the same job on many GPUs and many machines."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..engines.film import FilmRequest
from ..engines.orders import Source, WorkerSettings
from ..engines.ray_job import upscale_on_ray
from ..engines.told import RaySettings, Result, WorkerState
from .job import INCOMPLETE, Job, routing_text, tell
from .shown import shown

ENGINE = "ray"
ENGINES = ("this", ENGINE)
"""this: this process, on one device."""


def check(engine: str, address: str | None, workers: int | None) -> None:
    """Raises ValueError for what does not go together."""
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; allowed: {', '.join(ENGINES)}")
    if engine != ENGINE and (address is not None or workers is not None):
        raise ValueError("--address and --workers are for --engine ray; add it, or leave them out")


def run(jobs: Sequence[Job], address: str | None, workers: int | None) -> int:
    """Do the jobs, which differ in input and output alone; prints one line for each. Returns the exit code."""
    job = jobs[0]
    decoder = None if job.decoder is None else str(job.decoder.absolute())
    settings = WorkerSettings(
        job.model, routing_text(job.routing), job.settings, job.device, job.dtype, job.attention, job.compile, decoder,
        job.allow_untrained,
    )  # fmt: skip
    requests = [FilmRequest(Source(j.source, j.fps, j.deinterlace), j.target) for j in jobs]
    if len(requests) == 1:
        requests[0].source.open().check_progressive()  # before Ray is started
    with shown(None) as progress:

        def watch(states: Sequence[WorkerState]) -> None:
            progress.note(told(states))

        results = upscale_on_ray(
            requests, settings, job.writer, job.keep, RaySettings(address, workers), progress.advance, watch
        )
    return max(tell_result(result) for result in results)


def told(states: Sequence[WorkerState]) -> str:
    """What each worker does, short."""
    return " ".join(f"{s.number}:{s.done / s.frames:.0%}" if s.frames else f"{s.number}:-" for s in states)


def tell_result(result: Result) -> int:
    """Print what became of one input; returns the exit code."""
    if result.done is None:
        print(f"oasis: {result.error}", file=sys.stderr)
        return INCOMPLETE
    return tell(result.request.target, result.done)

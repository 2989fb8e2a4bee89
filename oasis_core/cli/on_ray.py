"""``oasis upscale --engine ray``: the same job on many GPUs and many machines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from ..engines.film import FilmRequest
from ..engines.ray_job import RaySettings, Result, WorkerState, upscale_on_ray
from ..engines.worker import Source, WorkerSettings
from .job import INCOMPLETE, Job

ENGINE = "ray"
ENGINES = ("this", ENGINE)
"""this: this process, on one device."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--engine", default="this", help="this: one device (default); ray: many GPUs, docs/ray.md")
    parser.add_argument(
        "--address", help="of a Ray that runs: auto, HOST:PORT or ray://HOST:PORT (default: one of our own)"
    )
    parser.add_argument("--workers", type=int, help="with --engine ray (default: one for each GPU)")


def check(engine: str, address: str | None, workers: int | None) -> None:
    """Raises ValueError for what does not go together."""
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; allowed: {', '.join(ENGINES)}")
    if engine != ENGINE and (address is not None or workers is not None):
        raise ValueError("--address and --workers are for --engine ray; add it, or leave them out")


def run(job: Job, address: str | None, workers: int | None) -> int:
    """Do the job; prints one line. Returns the exit code."""
    routing = None if job.routing is None else job.routing.read_text(encoding="utf-8")
    settings = WorkerSettings(
        job.model, routing, job.settings, job.device, job.dtype, job.attention, job.compile
    )  # fmt: skip
    request = FilmRequest(Source(job.source, job.fps, job.deinterlace), job.target)
    request.source.open().check_progressive()  # before Ray is started
    with tqdm(unit="frame", disable=None) as bar:

        def advance(done: float, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        def watch(states: Sequence[WorkerState]) -> None:
            bar.set_postfix_str(told(states), refresh=False)

        results = upscale_on_ray(
            [request], settings, job.writer, job.keep, RaySettings(address, workers), advance, watch
        )
    return max(tell(result) for result in results)


def told(states: Sequence[WorkerState]) -> str:
    """What each worker does, short."""
    return " ".join(f"{s.number}:{s.done / s.frames:.0%}" if s.frames else f"{s.number}:-" for s in states)


def tell(result: Result) -> int:
    """Print what became of one input; returns the exit code."""
    if result.done is None:
        print(f"oasis: {result.error}", file=sys.stderr)
        return INCOMPLETE
    print(f"{result.request.target}: {result.done}")
    if result.done.problem:
        print(f"oasis: {result.done.problem}", file=sys.stderr)
        return INCOMPLETE
    return 0

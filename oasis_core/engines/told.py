"""What a job on Ray is told, and what it tells of its workers and its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from ..video_job import Done
from .film import Film, FilmRequest
from .times import Times


@dataclass(frozen=True)
class RaySettings:
    """Where the workers are."""

    address: str | None = None
    """Of a Ray that runs; None: one of our own, on this machine's loopback."""
    workers: int | None = None
    """None: one for each GPU."""
    streamed: bool = False
    """Send files through Ray's object store even where storage is shared: for tests."""


@dataclass(frozen=True)
class Result:
    """What became of one input."""

    request: FilmRequest
    done: Done | None
    """Its seconds begin with the first order to a worker that is ready."""
    error: str | None
    """One line; None: all is well."""
    times: Times | None = None
    """Where the time went, if it is done."""

    @classmethod
    def of(cls, film: Film, joined: Future[Done], started: float) -> Result:
        """Once its segments are joined, or could not be; ``started``: as ``Film.times`` takes it."""
        request = film.request
        try:
            done = joined.result()
        except (OSError, ValueError) as e:
            return cls(request, None, f"{request.source.path.name}: {one_line(e)}")
        return cls(request, done, None, film.times(started, done))


@dataclass(frozen=True)
class WorkerState:
    """For whoever watches."""

    number: int
    file: str
    task: str
    """Empty: idle, or not there yet."""
    done: float
    """Frames of the task."""
    frames: int


Watch = Callable[[Sequence[WorkerState]], None]


def one_line(error: BaseException) -> str:
    """What an error says, or its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__

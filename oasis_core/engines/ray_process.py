"""A Ray job in a process of its own, for programs that must not have Ray inside: signals, logs and GPU memory stay apart.

The two talk in lines of JSON: the job on the child's standard input, progress and result on its standard output. When its
standard input closes, because the parent says so or has died, the child ends the job; finished segments stay.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from ..color import ColorMethod
from ..jobs.overlap import PATIENCE
from ..openmp import spinning
from ..pipeline import Poll, UpscaleSettings
from ..progress import Progress
from ..video_io import Deinterlace, WriterSettings
from ..video_job import Done, JobSettings
from .cluster import why_not
from .film import FilmRequest
from .orders import Source, WorkerSettings
from .ray_job import upscale_on_ray
from .told import RaySettings

ROOT = Path(__file__).resolve().parents[2]
"""Where the package lies: the child and its workers import the same."""
END = 60.0
"""Seconds that a child which was told to end may take."""


@dataclass(frozen=True)
class RayRequest:
    """One video for a Ray job; plain values."""

    source: Path
    target: Path
    deinterlace: Deinterlace | None
    notes: Mapping[str, str]
    worker: WorkerSettings
    writer: WriterSettings
    job: JobSettings
    ray: RaySettings

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> RayRequest:
        """Raises ValueError or KeyError for anything that ``to_json`` did not write."""
        data: dict[str, Any] = json.loads(text)
        worker, fields_of = data["worker"], data["deinterlace"]
        settings = {**worker["settings"], "color": ColorMethod.of(worker["settings"]["color"])}
        return cls(
            Path(data["source"]), Path(data["target"]), None if fields_of is None else Deinterlace.of(fields_of),
            data["notes"], WorkerSettings(**{**worker, "settings": UpscaleSettings(**settings)}),
            WriterSettings(**data["writer"]), JobSettings(**data["job"]), RaySettings(**data["ray"]),
        )  # fmt: skip


def upscale_in_process(request: RayRequest, on_progress: Progress | None = None, poll: Poll | None = None) -> Done:
    """Do the job in a child.

    Args:
        poll: called about ten times a second; what it raises ends the child and then goes on to the caller.

    Raises:
        ModuleNotFoundError: no Ray; it says how to get it. OSError: whatever the job says, one line.
    """
    if reason := why_not():
        raise ModuleNotFoundError(reason)
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    child = subprocess.Popen(
        [sys.executable, "-m", "oasis_core.engines.ray_process"], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
        env={**os.environ, **spinning(), "PYTHONPATH": path},
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    listener = threading.Thread(target=_listen, args=(child.stdout, lines), name="oasis-ray", daemon=True)
    try:
        listener.start()
        child.stdin.write(request.to_json() + "\n")
        child.stdin.flush()
        while True:
            if poll is not None:
                poll()
            try:
                line = lines.get(timeout=PATIENCE)
            except queue.Empty:
                continue
            if line is None:
                raise OSError(f"the Ray job ended with code {child.wait()}: its own lines are in the log")
            said = json.loads(line)
            if "error" in said:
                raise OSError(said["error"])
            if "frames" in said:
                return Done(**said)
            if on_progress is not None:
                on_progress(said["done"], said["total"])
    finally:
        _end(child)
        listener.join()


def _end(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    with contextlib.suppress(OSError):  # the child may be gone already
        child.stdin.close()
    try:
        child.wait(END)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _listen(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            if line.startswith("{"):
                lines.put(line)
    lines.put(None)


def _serve(given: IO[str], out: IO[str]) -> int:
    """The child: one job, then an end."""
    request = RayRequest.from_json(given.readline())
    closed = threading.Event()

    def wait_for_end() -> None:
        given.read()
        closed.set()

    threading.Thread(target=wait_for_end, daemon=True).start()

    def poll() -> None:
        if closed.is_set():
            raise KeyboardInterrupt

    def say(**words: object) -> None:
        out.write(json.dumps(words) + "\n")
        out.flush()

    def advance(done: float, total: int | None) -> None:
        say(done=done, total=total)

    film = FilmRequest(Source(request.source, None, request.deinterlace), request.target, request.notes)
    try:
        [result] = upscale_on_ray(
            [film], request.worker, request.writer, request.job, request.ray, advance, poll=poll
        )  # fmt: skip
    except (ValueError, OSError, MemoryError, ModuleNotFoundError) as e:
        say(error=" ".join(str(e).split()))
        return 2
    except KeyboardInterrupt:
        return 130
    if result.done is None:
        say(error=result.error)
        return 2
    say(**{f.name: getattr(result.done, f.name) for f in fields(result.done)})
    return 0


if __name__ == "__main__":
    sys.exit(_serve(sys.stdin, sys.stdout))

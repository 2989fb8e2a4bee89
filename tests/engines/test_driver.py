"""The process that runs a Ray job, killed or interrupted: nothing is left running, nothing is lost, nobody else could listen."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oasis_core.cli import main
from oasis_core.engines import cluster
from oasis_core.jobs.folder import job_path, read_manifest

from .conftest import content, make_clip, options

FRAMES = 300
"""Enough to be caught at work."""
AGENTS = 120
"""Seconds for Ray's own helpers: after a SIGKILL they look for their parent for about a minute."""
needs_ray = pytest.mark.skipif(cluster.why_not() is not None, reason=f"RAY NOT TESTED: {cluster.PIP}")


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("long") / "long.mkv", 2, FRAMES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, long_clip: Path, model: Path) -> Path:
    """What one process makes."""
    path = tmp_path_factory.mktemp("whole") / "whole.mkv"
    assert main(["upscale", str(long_clip), str(path), *options(model)]) == 0
    return path


@pytest.fixture(scope="session")
def ended() -> Iterator[set[int]]:
    """Processes that must have gone when all tests are over: other tests run while these take their time."""
    numbers: set[int] = set()
    yield numbers
    until = time.monotonic() + AGENTS
    while ray_processes() & numbers and time.monotonic() < until:
        time.sleep(0.5)
    assert not ray_processes() & numbers


def ray_processes() -> set[int]:
    """Numbers of Ray's processes (Linux)."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "ray::" in line or "site-packages/ray/" in line:
            found.add(int(place.name))
    return found


def start(clip: Path, out: Path, model: Path, *more: str) -> subprocess.Popen[str]:
    argv = ["upscale", str(clip), str(out), *options(model), "--engine", "ray", "--workers", "2", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "oasis_core", *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for_segments(out: Path, child: subprocess.Popen[str], count: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        manifest = read_manifest(job_path(out)) if job_path(out).exists() else None
        if manifest is not None and len(manifest.segments) + len(manifest.ahead) >= count:
            return
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.02)
    raise AssertionError("no segments came")


def listening(processes: set[int]) -> list[str]:
    """Addresses (hexadecimal, as in /proc/net) on which these processes listen."""
    sockets = set()
    for number in processes:
        for handle in Path(f"/proc/{number}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(handle).removeprefix("socket:[").removesuffix("]"))
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [line[1].split(":")[0] for line in lines if line[3] == "0A" and line[9] in sockets]


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes and sockets in /proc")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_driver_that_ends_leaves_nothing_running_and_its_job_goes_on(
    tmp_path: Path, long_clip: Path, model: Path, whole: Path, how: str, ended: set[int]
) -> None:
    """And while it runs, its Ray listens on loopback alone."""
    out, before = tmp_path / "out.mkv", ray_processes()
    child = start(long_clip, out, model)
    wait_for_segments(out, child, 5)
    started = ray_processes() - before
    addresses = listening(started | {child.pid})
    child.send_signal(getattr(signal, how))
    told = child.communicate(timeout=60)[0]
    assert len(started) >= 4
    assert len(addresses) >= 5
    assert set(addresses) <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    if how == "SIGINT":
        assert child.returncode == 130
        assert told.strip().splitlines()[-1].startswith("oasis: interrupted; ")
        assert "finished frames are kept" in told
        assert "Traceback" not in told
    ended |= started | (ray_processes() - before)
    manifest = read_manifest(job_path(out))
    assert manifest is not None
    assert 0 < manifest.finished < FRAMES
    again = start(long_clip, out, model, "--resume")
    assert "frames kept" in again.communicate(timeout=120)[0] or again.returncode == 0
    assert again.returncode == 0
    assert content(out) == content(whole)
    assert not job_path(out).exists()

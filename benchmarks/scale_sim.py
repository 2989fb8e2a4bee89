"""How long a job takes on 1 to 1000 GPUs, and what it waits for: python benchmarks/scale_sim.py --pace 0.45

A simulation in events: the plan of segments, retries and second attempts at the tail are the code that runs (``jobs.segments``,
``engines.schedule``); only durations are drawn. ``--measure`` measures here what the driver does (start of Ray, scan, manifest,
join); ``--manifest film.oasis/manifest.json`` takes the segments' times of a real job instead of ``--pace``. Writes
``results/scale_sim.json``.
"""

from __future__ import annotations

import argparse
import datetime
import heapq
import json
import os
import platform
import random
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from oasis_core.engines.cluster import connected
from oasis_core.engines.schedule import Attempt, Failure, Key, Schedule
from oasis_core.jobs.folder import JobFolder
from oasis_core.jobs.lock import JobLock
from oasis_core.jobs.manifest import Manifest, SegmentRecord
from oasis_core.jobs.segments import Segment, plan_segments
from oasis_core.scene_cuts import SceneCutDetector
from oasis_core.video_io import VideoReader

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
CHUNK, OVERLAP, FACTOR = 5, 2, 4
"""Latent frames of a chunk of 16 frames, those shared, frames to a latent one."""
RATE = 24
STOP = 1.0
"""Seconds until a beaten attempt has ended."""


@dataclass(frozen=True)
class Setup:
    """Of a cluster and a job; seconds and bytes."""

    pace: float = 0.45
    """Seconds for a frame on one GPU."""
    spread: float = 0.05
    """Standard deviation of a segment's time, of its mean."""
    slow: float = 0.0
    """Share of the workers that are ``slowness`` times slower."""
    slowness: float = 10.0
    fixed: float = 1.0
    """For each segment: input opened and found, encoder begun, file closed and hashed."""
    start: float = 5.0
    """Until Ray and its actors are there."""
    load: float = 10.0
    """Of the model on one worker, read from its own disk."""
    model: float = 2.8e9
    """Bytes that every worker reads from shared storage."""
    scan: float = 24.0
    """Frames a second that the driver looks through for cuts."""
    storage: float = 1.0e9
    """Bytes a second that shared storage (without it: the driver's network) gives or takes in all."""
    written: float = 1.0e6
    """Bytes of a finished frame."""
    read: float = 2.0e5
    """Bytes of an input frame."""
    record: float = 2.0e-6
    """To note a finished segment, for each segment that the manifest holds..."""
    note: float = 0.004
    """...and for each one."""
    segment: int = 120
    """Frames at which one ends as soon as it can."""
    shot: float = 5.0
    """Seconds of a shot, mean."""


@dataclass(frozen=True)
class Outcome:
    """Of one simulated job, in seconds."""

    seconds: float
    """Until the file is there."""
    segments: float
    """Until the last segment is."""
    idle: float
    """Share of the workers' time, until then, without work."""
    scanned: float
    join: float
    again: int
    """Segments that were begun a second time."""


def plan(setup: Setup, frames: int, seed: int = 0) -> tuple[Segment, ...]:
    """Segments of a film whose cuts are drawn."""
    draw, cuts, at = random.Random(seed), [], 0.0
    while at < frames:
        at += max(1.0, draw.expovariate(1 / (setup.shot * RATE)))
        cuts.append(int(at))
    return plan_segments(frames, cuts, CHUNK, OVERLAP, FACTOR, setup.segment)


def simulate(
    setup: Setup, segments: tuple[Segment, ...], workers: int, seed: int = 0, measured: list[float] | None = None
) -> Outcome:
    """``measured``: seconds for a frame, to draw from instead of ``pace`` and ``spread``."""
    draw = random.Random(seed)
    schedule, tasks = Schedule(), {(0, s.start.frame): s for s in segments}
    ready = setup.start + setup.load + workers * setup.model / setup.storage
    slow = set(draw.sample(range(workers), round(setup.slow * workers)))
    idle, busy = list(range(workers)), 0.0
    events: list[tuple[float, int, str, Key | Attempt | int | None]] = []
    count = 0

    def at(when: float, what: str, about: Key | Attempt | int | None = None) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (when, count, what, about))

    for segment in segments:
        at(ready + segment.stop / setup.scan, "found", (0, segment.start.frame))
    scanned = ready + segments[-1].stop / setup.scan
    at(scanned, "end")
    began: dict[Attempt, float] = {}
    storage = driver = now = ready
    kept, attempts, ticking = 0, 0, False
    while not schedule.over:
        now, _, what, about = heapq.heappop(events)
        if what == "found":
            assert isinstance(about, tuple)
            schedule.add(about, tasks[about].stop - tasks[about].start.frame)
        elif what == "end":
            schedule.close()
        elif what == "tick":
            ticking = False
        elif what == "free":
            assert isinstance(about, int)
            idle.append(about)
        elif what == "made":  # its bytes go out: one storage for all
            assert isinstance(about, Attempt)
            segment = tasks[about.key]
            frames, seen = segment.stop - segment.start.frame, segment.stop - segment.needed
            storage = max(storage, began[about]) + (frames * setup.written + seen * setup.read) / setup.storage
            driver = max(driver, now, storage) + setup.note + setup.record * kept
            at(driver, "noted", about)
        elif what == "noted" and isinstance(about, Attempt) and about in began:
            busy += now - began.pop(about)
            idle.append(about.worker)
            if schedule.done(about, now):
                kept += 1
                for rival in schedule.rivals(about.key):
                    schedule.failed(rival, Failure.ERROR)  # told to end
                    busy += now - began.pop(rival)
                    at(now + STOP, "free", rival.worker)
        for worker in list(idle):
            attempt = schedule.give(worker, now, workers > 1)
            if attempt is None:
                break
            idle.remove(worker)
            began[attempt] = now
            attempts += 1
            segment = tasks[attempt.key]
            pace = draw.choice(measured) if measured else setup.pace * max(0.5, draw.gauss(1, setup.spread))
            pace *= setup.slowness if worker in slow else 1
            at(now + setup.fixed + pace * (segment.stop - segment.needed), "made", attempt)
        if idle and began and not ticking:
            ticking = True
            at(now + max(1.0, setup.pace * setup.segment / 10), "tick")
    bytes_out = segments[-1].stop * setup.written
    join = 2 * bytes_out / setup.storage
    return Outcome(now + join, now, 1 - busy / (workers * (now - ready)), scanned, join, attempts - len(segments))


def limit(setup: Setup, outcome: Outcome, workers: int) -> str:
    """What keeps the job from being faster with more workers."""
    if outcome.idle < 0.1:
        return "work"
    start = setup.start + setup.load + workers * setup.model / setup.storage
    parts = {"scan": outcome.scanned - start, "join": outcome.join, "start": start}
    return max(parts, key=lambda name: parts[name])


def measure(folder: Path) -> dict[str, float]:
    """What the driver does, on this machine."""
    began = time.monotonic()
    with connected(None, 1):
        start = time.monotonic() - began
    clip = folder / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (150, 260, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE), options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for i in range(96):
            frame = np.ascontiguousarray(noise[i : i + 1080, i : i + 1920])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    detector, count, spent = SceneCutDetector(), 0, time.process_time()  # of a core, however busy the machine is
    for read in VideoReader(clip):
        detector.begins_shot(read.rgb)
        count += read.checksum >= 0
    scan = count / (time.process_time() - spent)
    times = {}
    for many in (1, 4000):
        done = tuple(SegmentRecord(f"segment_{i:07d}.nut", i, i + 1, 0, i, 0, 0, "0" * 64, 1.0) for i in range(many))
        place = folder / str(many)
        place.mkdir()
        with JobFolder(place, Manifest({}, done), JobLock(place)) as job:
            began = time.monotonic()
            for _ in range(5):
                job.update(job.manifest)
            times[many] = (time.monotonic() - began) / 5
    return {
        "start": round(start, 2), "scan": round(scan, 1), "note": round(times[1], 5),
        "record": round(max(0.0, times[4000] - times[1]) / 4000, 9),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("pace", "slow", "slowness", "load", "model", "scan", "storage", "written", "read", "segment"):
        kind = int if name == "segment" else float
        parser.add_argument(f"--{name}", type=kind, help=f"default {getattr(Setup, name)}")
    parser.add_argument("--manifest", type=Path, help="of a job that runs or was interrupted: its segments' times")
    parser.add_argument("--measure", action="store_true", help="measure start, scan, note and record here")
    parser.add_argument(
        "--hours", type=float, nargs="+", default=[1 / 6, 2, 10], help="of film (default 1/6, 2 and 10)"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scale_sim.json")
    args = parser.parse_args()
    given = {n: v for n, v in vars(args).items() if n in Setup.__dataclass_fields__ and v is not None}
    found: dict[str, float] = {}
    if args.measure:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder))
    setup, paces = replace(Setup(), **{**found, **given}), None
    if args.manifest:
        manifest = Manifest.from_json(args.manifest.read_text(encoding="utf-8"))
        paces = [s.seconds / (s.stop - s.start) for s in (*manifest.segments, *manifest.ahead)]
        setup = replace(setup, pace=sum(paces) / len(paces))
    table: dict[str, dict[str, dict[str, float | str]]] = {}
    for hours in args.hours:
        segments = plan(setup, round(hours * 3600 * RATE))
        rows = table[f"{hours:.2f} h"] = {}
        print(f"{hours:.2f} hours of film, {len(segments)} segments, {setup.pace} s a frame")
        print("  GPUs    hours  speed-up  idle  limit")
        one = simulate(setup, segments, 1, measured=paces).seconds
        for workers in WORKERS:
            outcome = simulate(setup, segments, workers, measured=paces)
            why = limit(setup, outcome, workers)
            print(f"{workers:6} {outcome.seconds / 3600:8.2f} {one / outcome.seconds:9.1f} {outcome.idle:5.0%}  {why}")
            rows[str(workers)] = {"seconds": round(outcome.seconds, 1), "idle": round(outcome.idle, 3), "limit": why}
    text = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "measured": found, "given": given, "setup": asdict(setup), "results": table,
    }  # fmt: skip
    args.out.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

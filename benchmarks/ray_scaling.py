"""Frames per second of ``oasis upscale --engine ray`` on 1, 2... GPUs: python benchmarks/ray_scaling.py [WORKERS ...]

A clip of 4000 frames (320x180, x4) with the model that ships, or ``--model FILE``; each number of workers makes the whole of it.
Frames per second are those from the first order to a worker that is ready until the film is joined; what came before (Ray,
models, their rehearsal) is told as ``loading``, the whole call as ``in_all``. Of the 40 segments it is told how long the model
was idle before each, how long its turn was and how long the encoder took after that, as means.
The output of every run is compared with the first's, packet by packet. ``--full`` takes random weights in the shape of the full
model (Wan2.1-1.3B's): speed does not depend on them. ``--cpu`` runs on CPU workers. Writes ``results/ray_scaling.json``.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import subprocess
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from random_models import save_full_shape

from oasis_core.checkpoints import EMBEDDED
from oasis_core.engines.film import FilmRequest
from oasis_core.engines.orders import Source, WorkerSettings
from oasis_core.engines.ray_job import upscale_on_ray
from oasis_core.engines.told import RaySettings
from oasis_core.pipeline import UpscaleSettings
from oasis_core.video_io import WriterSettings
from oasis_core.video_io.encoders import PRESET
from oasis_core.video_job import JobSettings


def make_clip(path: Path, frames: int, width: int, height: int) -> None:
    """Moving squares, a cut every 200 frames."""
    draw = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(24))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        picture = np.zeros((1, 1, 3), np.uint8)
        for i in range(frames):
            if i % 200 == 0:
                small = draw.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
                picture = small.repeat(16, 0).repeat(16, 1)
            moved = np.ascontiguousarray(np.roll(picture, i, 1)[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode(None))


def packets(path: Path) -> str:
    digest = hashlib.sha256()
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            digest.update(f"{packet.pts} ".encode() + bytes(packet))
    return digest.hexdigest()


def cores() -> int | None:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--size", type=int, nargs=2, default=[320, 180], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--segment", type=int, default=JobSettings().segment_frames, help="frames at which one ends")
    parser.add_argument("--preset", help="of x264 (default: ours, medium)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ray_scaling.json")
    args = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clip, model = folder / "clip.mp4", args.model
        make_clip(clip, args.frames, *args.size)
        if args.full:
            model = str(folder / "full.safetensors")
            save_full_shape(Path(model))
        settings = WorkerSettings(
            model, None, UpscaleSettings(scale=args.scale), "cpu" if args.cpu else "cuda", "auto", "auto", False
        )
        first, job = None, JobSettings(segment_frames=args.segment)
        for workers in args.workers:
            out, began = folder / f"{workers}.mp4", time.monotonic()
            [result] = upscale_on_ray(
                [FilmRequest(Source(clip), out)],
                settings,
                WriterSettings(preset=args.preset),
                job,
                RaySettings(None, workers),
            )
            in_all = time.monotonic() - began
            if result.done is None or result.times is None:
                raise SystemExit(result.error)
            first = first or packets(out)
            same, rate = packets(out) == first, result.done.frames / result.done.seconds
            times, one = result.times, result.times.of_a_segment()
            results[str(workers)] = {
                "frames_per_second": round(rate, 2), "seconds": round(result.done.seconds, 1),
                "loading": round(times.loading, 1), "making": round(times.making, 1), "joining": round(times.joining, 2),
                "in_all": round(in_all, 1), "segments": len(times.segments), "of_a_segment": one,
            }  # fmt: skip
            base = next(iter(results.values()))["frames_per_second"]
            print(f"{workers} workers: {rate:.2f} frames per second, {rate / base:.2f} x, same packets: {same}")
            print(f"  {times.loading:.1f} s loading, {times.making:.1f} s making, {times.joining:.2f} s joining")
            print(
                f"  {len(times.segments)} segments: " + ", ".join(f"{name} {s:.3f} s" for name, s in one.items()),
                flush=True,
            )
            if not same:
                raise SystemExit("the results differ")
    device = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    text = {
        "date": datetime.date.today().isoformat(), "commit": commit, "device": "cpu" if args.cpu else device,
        "torch": torch.__version__, "model": "full shape, random" if args.full else args.model,
        "frames": args.frames, "size": args.size, "scale": args.scale, "segment": args.segment,
        "cores": cores(), "preset": args.preset or PRESET,
        "same_packets": True, "results": results,
    }  # fmt: skip
    args.out.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Frames per second of the shipped model, beside Real-ESRGAN x4plus's network, in one run on one device.

    python benchmarks/speed.py --json benchmarks/results/speed.json

180x320 -> 720x1280, chunks as shipped, through the whole pipeline but files (upsampling, transformer, decoder, colour,
copy to the host). The other network is RRDBNet as published (23 blocks, 64 and 32 channels,
https://github.com/xinntao/Real-ESRGAN/blob/a4abfb2/inference_realesrgan.py#L63) with random weights: its cost does not
depend on them. The two take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from datetime import date
from pathlib import Path

import torch
from peer_nets import RRDBNet

from oasis_core.checkpoints import embedded_path, load_checkpoint
from oasis_core.cli.device import choose_device, choose_dtype
from oasis_core.pipeline import Upscaler, UpscaleSettings

HEIGHT, WIDTH = 180, 320


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measure(frames: int, rounds: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Seconds per frame of both, the best of ``rounds`` turns after one to warm up."""
    checkpoint = load_checkpoint(embedded_path(), device, dtype)
    upscaler = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings())
    other = RRDBNet().to(device, dtype).eval().to(memory_format=torch.channels_last)
    clip = torch.rand(frames, HEIGHT, WIDTH, 3)
    still = torch.rand(1, 3, HEIGHT, WIDTH, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    ours, theirs = [], []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            began = time.perf_counter()
            upscaler.upscale(clip)
            synchronise(device)
            ours.append((time.perf_counter() - began) / frames)
            began = time.perf_counter()
            other(still)
            synchronise(device)
            theirs.append(time.perf_counter() - began)
    return {"oasis-tiny": min(ours[1:] or ours), "realesrgan_x4plus": min(theirs[1:] or theirs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16, help="frames a turn; a whole number of chunks (default 16)")
    parser.add_argument("--rounds", type=int, default=2, help="turns after the first (default 2)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    seconds = measure(args.frames, args.rounds, device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    ratio = seconds["realesrgan_x4plus"] / seconds["oasis-tiny"]
    print(
        f"{name}, {dtype}: {seconds['oasis-tiny']:.3f} s a frame ({1 / seconds['oasis-tiny']:.1f} frames per second);"
    )
    print(f"Real-ESRGAN x4plus {seconds['realesrgan_x4plus']:.3f} s: {ratio:.1f} times as long")
    if args.json:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        record = {
            "date": date.today().isoformat(), "commit": commit, "device": name, "torch": torch.__version__,
            "python": platform.python_version(), "dtype": str(dtype), "frames": args.frames,
            "seconds_per_frame": seconds, "ratio": round(ratio, 2),
        }  # fmt: skip
        args.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

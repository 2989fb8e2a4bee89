"""Training on 1, 2... GPUs: steps and clips per second, from the log of real runs.

    python benchmarks/training_scaling.py 1 2          # CUDA devices, the shape of configs/oasis-tiny.toml
    python benchmarks/training_scaling.py 1 2 --small  # CPU processes, that of configs/small.toml: does it run?

Each process takes a batch of its own, so that n GPUs at the pace of one have n times its clips per second (weak scaling). The
data set is drawn on the spot. Pace: the median of the log's lines, without the first, which compiles. Writes
``results/training_scaling.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch

ROOT = Path(__file__).parents[1]
LOG_EVERY = 50
"""Steps to a line of the log (``oasis_core/training/trainer.py``)."""
STAGE = """
[[stages]]
name = "scaling"
steps = {steps}
batch = {batch}
frames = {frames}
size = {size}
lr = 1e-3
lr_end = 1e-3
warmup = 100
mode = "consistent"
reuse = {reuse}
loss = {{ pixel = 1.0, low = 0.5, frequency = 0.1, motion = 0.3 }}
"""


def draw_data(folder: Path, clips: int, frames: int, side: int) -> None:
    """Moving squares of many sizes, H.264, with the table of licences that training wants."""
    (folder / "clips").mkdir(parents=True)
    (folder / "images").mkdir()
    rows = []
    for number in range(clips):
        draw = np.random.default_rng(number)
        picture = np.zeros((side, side + 2 * frames, 3), np.float32)
        for cell in (64, 16, 4):
            small = draw.random((-(-side // cell), -(-(side + 2 * frames) // cell), 3), np.float32)
            picture += small.repeat(cell, 0).repeat(cell, 1)[:side, : side + 2 * frames] * 85
        name = f"clips/squares_{number:02d}.mp4"
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(24), options={"crf": "16"})
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            for t in range(frames):
                cut = np.ascontiguousarray(picture[:, 2 * t : 2 * t + side].astype(np.uint8))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
            container.mux(stream.encode(None))
        rows.append(f"{name}\tdrawn here\tCC0")
    (folder / "LICENCES.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_config(path: Path, small: bool, steps: int) -> int:
    """The shape of a model in ``configs`` with one stage of our own; returns the batch of a process."""
    shape = "small.toml" if small else "oasis-tiny.toml"
    sizes = (
        {"batch": 1, "frames": 2, "size": 64, "reuse": 1}
        if small
        else {"batch": 12, "frames": 5, "size": 256, "reuse": 4}
    )
    text = (ROOT / "configs" / shape).read_text(encoding="utf-8").split("[[stages]]")[0]
    kept = [line for line in text.splitlines() if not line.startswith(("validation", "drop"))]
    path.write_text("\n".join(kept) + STAGE.format(steps=steps, **sizes), encoding="utf-8")
    return sizes["batch"]


def run(config: Path, data: Path, out: Path, processes: int, args: argparse.Namespace) -> list[float]:
    """Milliseconds a step, line for line of the log."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    if processes == 1:
        command = [sys.executable]
    command += ["-m", "oasis_core", "train", str(config), "--data", str(data), "--out", str(out)]
    command += ["--workers", str(args.workers), "--device", "cpu" if args.small else "cuda"]
    if args.data_device:
        command += ["--data-device", args.data_device]
    if args.fuse:
        command.append("--fuse")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    return [json.loads(line)["ms"] for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--small", action="store_true", help="a small model on CPU processes")
    parser.add_argument("--steps", type=int, default=300, help=f"of each run, {2 * LOG_EVERY} or more (default 300)")
    parser.add_argument("--workers", type=int, default=0, help="processes that make a trainer's data")
    parser.add_argument("--data-device", help="as for oasis train")
    parser.add_argument("--fuse", action="store_true", help="as for oasis train; compiling takes a minute or more")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training_scaling.json")
    args = parser.parse_args()
    if args.steps < 2 * LOG_EVERY:
        parser.error(f"--steps is {args.steps}; it must be at least {2 * LOG_EVERY}")
    results: dict[str, dict[str, object]] = {}
    chips = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw_data(folder / "data", 2 if args.small else 24, 12, 96 if args.small else 384)
        batch = write_config(folder / "config.toml", args.small, args.steps)
        for processes in args.processes:
            began = time.monotonic()
            lines = run(folder / "config.toml", folder / "data", folder / str(processes), processes, args)
            pace = median(lines[1:])
            results[str(processes)] = {
                "ms_a_step": pace, "steps_per_second": round(1e3 / pace, 3),
                "clips_per_second": round(1e3 / pace * processes * batch, 2), "ms_by_line": lines,
                "seconds_in_all": round(time.monotonic() - began, 1),
            }  # fmt: skip
            first = next(iter(results.values()))["clips_per_second"]
            times = results[str(processes)]["clips_per_second"] / first  # type: ignore[operator]
            results[str(processes)]["times"] = round(times, 3)
            print(f"{processes} processes: {pace:.1f} ms a step, {times:.2f} x the clips per second", flush=True)
    device = platform.processor() or platform.machine() if args.small or not chips else torch.cuda.get_device_name(0)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    record = {
        "date": datetime.date.today().isoformat(), "commit": commit, "device": device, "torch": torch.__version__,
        "command": " ".join(["python benchmarks/training_scaling.py", *sys.argv[1:]]), "results": results,
    }  # fmt: skip
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

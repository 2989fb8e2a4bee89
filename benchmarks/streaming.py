"""Speed, idle share and memory of whole jobs against length: python benchmarks/streaming.py [FRAMES ...] [--model FILE]

    python benchmarks/streaming.py 100 1000 10000       # 96x64, x2, a tiny random model: all but the model weighs its most
    python benchmarks/streaming.py --real 100 1000      # the bundled sample to and fro (320x180), x4, the model that ships
    python benchmarks/streaming.py --full 300           # the same clip, random weights in the shape of Wan2.1-1.3B
    python benchmarks/streaming.py --gpu                # as a GPU is measured: 100 and 1,000 real, 600 full, 10,000 tiny

Each length is upscaled by a process of its own: reader, model and writer overlapped, segments joined at the end. Idle is told
three ways: the share of the time in which the model's thread waited for reader or writer; of a GPU, the share of time without
a kernel (nvidia-smi, ten samples a second); and the speed of the same frames from memory, without any file. Resident memory
is told for the job's second and last quarter (Linux). Writes ``results/streaming.json``. POSIX only: the peak of a process is
read by ``resource``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from statistics import fmean

import torch
from clips import moving_noise, sample_to_and_fro
from memory import HEIGHT, WIDTH
from random_models import save_full_shape

from oasis_core.checkpoints import EMBEDDED, load_checkpoint, resolve, save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.cli.device import choose_device, choose_dtype
from oasis_core.memory import working_memory
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.ready import ready
from oasis_core.routing import RoutingSpec
from oasis_core.video_io import VideoReader, WriterSettings
from oasis_core.video_job import upscale_video

STATM = Path("/proc/self/statm")
ALONE = 210
"""Frames from memory, at most: 15 chunks."""


@dataclass(frozen=True)
class Case:
    """One job."""

    frames: int
    real: bool
    """The bundled sample and x4, not noise of 96x64 and x2."""
    model: str = ""
    """Checkpoint; empty: the one that ships, or a tiny random one."""
    device: str = "auto"
    full: bool = False
    """Random weights in the full model's shape."""

    @property
    def name(self) -> str:
        size = f"320x180 x4{', full shape' if self.full else ''}" if self.real else f"{WIDTH}x{HEIGHT} x2"
        return f"{self.frames} frames, {size}"


def random_model(path: Path) -> None:
    """A network of a few thousand weights."""
    config = OasisConfig(
        name="random", unshuffle=(1, 8, 8), latent_channels=4, dim=24, depth=2, heads=2, ffn_dim=24, freq_dim=8,
        decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    save_checkpoint(path, OasisModel(config), Metadata(config, RoutingSpec.by_ratio(2, 2, 0.5, 0.5), "Apache-2.0"))


def resident_mib() -> float:
    """What this process holds now."""
    return int(STATM.read_text().split()[1]) * resource.getpagesize() / 2**20


class GpuIdle:
    """Share of time without a kernel while the block runs, as nvidia-smi tells; None where it does not."""

    def __init__(self, device: torch.device) -> None:
        self.share: float | None = None
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
        found = shutil.which("nvidia-smi") if device.type == "cuda" else None
        self._command = None if found is None else [found, *query, "-i", str(device.index or 0)]

    def __enter__(self) -> GpuIdle:
        if self._command is not None:
            self._smi = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._command is not None:
            self._smi.terminate()
            busy = [float(line) for line in self._smi.communicate()[0].split() if line.strip().isdigit()]
            self.share = None if not busy else round(1 - fmean(busy) / 100, 4)


def alone(upscaler: Upscaler, clip: Path, frames: int) -> tuple[float, float | None]:
    """Frames per second from memory to nowhere, and the GPU's idle share then; after some to warm up."""
    held = [frame.rgb for frame in islice(VideoReader(clip), 48)]
    device = upscaler.model.project.weight.device
    for _ in upscaler.stream(held):
        pass
    count = min(frames, ALONE)
    with GpuIdle(device) as idle:
        began = time.perf_counter()
        for _ in upscaler.stream(islice(cycle(chain(held, held[-2:0:-1])), count)):
            pass
        took = time.perf_counter() - began
    return count / took, idle.share


def measure(case: Case, clip: Path) -> dict[str, float | None]:
    """One job in this process."""
    resident: list[float] = []

    def note(done: float, total: int | None) -> None:
        if STATM.exists() and done > len(resident) * 10:
            resident.append(resident_mib())

    place = choose_device(case.device)
    checkpoint = load_checkpoint(Path(case.model), place, choose_dtype("auto", place))
    settings = UpscaleSettings(scale=4.0 if case.real else 2.0)
    upscaler = ready(checkpoint, checkpoint.routing, settings, "auto", False)
    alone_rate, alone_idle = alone(upscaler, clip, case.frames)
    reader = VideoReader(clip)
    needs = working_memory(upscaler, case.frames, reader.info.height, reader.info.width)
    needs += sum(p.numel() * p.element_size() for p in checkpoint.model.parameters())
    with GpuIdle(place) as idle:
        done = upscale_video(reader, clip.with_name("out.mp4"), upscaler, WriterSettings(), note)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    result: dict[str, float | None] = {
        "frames_per_second": round(done.frames / done.seconds, 2),
        "frames_per_second_without_files": round(alone_rate, 2),
        "idle_share_of_the_model_thread": round(done.waited / done.seconds, 4),
        "peak_host_mib": round(peak, 1),
    }
    quarter = len(resident) // 4
    if quarter:
        result["resident_mib_second_quarter"] = round(fmean(resident[quarter : 2 * quarter]), 1)
        result["resident_mib_last_quarter"] = round(fmean(resident[3 * quarter :]), 1)
    if place.type == "cuda":
        result["idle_share_of_the_gpu"] = idle.share
        result["idle_share_of_the_gpu_without_files"] = alone_idle
        result["predicted_device_mib"] = round(needs / 2**20, 1)
        result["peak_device_mib"] = round(torch.cuda.max_memory_allocated(place) / 2**20, 1)
    return result


def run(case: Case) -> dict[str, float | None]:
    """In a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        clip, model = Path(folder) / "in.mp4", Path(folder) / "random.safetensors"
        if case.real:
            sample_to_and_fro(clip, case.frames)
        else:
            moving_noise(clip, case.frames, WIDTH, HEIGHT)
        if case.full:
            save_full_shape(model)
        elif not case.model and not case.real:
            random_model(model)
        given = case.model or str(resolve(EMBEDDED) if case.real and not case.full else model)
        text = json.dumps(asdict(case) | {"model": given})
        argv = [sys.executable, __file__, "--clip", str(clip), "--case", text]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--real", action="store_true", help="the bundled sample, x4, the model that ships")
    parser.add_argument("--full", action="store_true", help="likewise, random weights in the full model's shape")
    parser.add_argument(
        "--gpu", action="store_true", help="100 and 1,000 frames real, 600 full, 10,000 of the tiny model"
    )
    parser.add_argument("--model", default="", help="checkpoint (default: the one that ships, or a tiny random one)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "streaming.json")
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clip is not None:  # a process of its own for each length
        print(json.dumps(measure(Case(**json.loads(args.case)), args.clip)))
        return
    cases = [Case(frames, args.real or args.full, args.model, args.device, args.full) for frames in args.frames]
    if args.gpu:
        cases = [Case(n, True, args.model, args.device) for n in (100, 1000)]
        cases += [Case(600, True, "", args.device, full=True), Case(10000, False, "", args.device)]
    place = choose_device(args.device)
    chip = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{torch.get_num_threads()} threads"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    report = {
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python benchmarks/streaming.py", *sys.argv[1:]]),
        "machine": f"{platform.system()} {platform.machine()}, {place.type}, {chip}, torch {torch.__version__}",
        "what": "whole jobs, h264; x4: the bundled sample, the model that ships; x2: noise, a tiny random model",
        "results": {},
    }
    for case in cases:
        report["results"][case.name] = run(case)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(case.name, json.dumps(report["results"][case.name]), flush=True)


if __name__ == "__main__":
    main()

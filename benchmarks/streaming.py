"""Speed, idle share and memory of whole jobs against length: python benchmarks/streaming.py [FRAMES ...] [--model FILE]

Each length is upscaled (96x64, x2) by a process of its own: reader, model and writer overlapped, segments joined at the
end. Without --model a tiny random one is made, so that everything but the model weighs as much as it ever will. Resident
memory is told for the job's second and last quarter (Linux). Writes ``results/streaming.json``. POSIX only: the peak of a
process is read by ``resource``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean

import torch
from memory import HEIGHT, WIDTH, make_clip

from oasis_core.checkpoints import load_checkpoint, save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.cli.device import choose_device, choose_dtype
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import RoutingSpec
from oasis_core.video_io import VideoReader, WriterSettings
from oasis_core.video_job import upscale_video


def random_model(path: Path) -> None:
    """A network of a few thousand weights."""
    config = OasisConfig(
        name="random", unshuffle=(1, 8, 8), latent_channels=4, dim=24, depth=2, heads=2, ffn_dim=24, freq_dim=8,
        decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    save_checkpoint(path, OasisModel(config), Metadata(config, RoutingSpec.by_ratio(2, 2, 0.5, 0.5), "Apache-2.0"))


STATM = Path("/proc/self/statm")


def resident_mib() -> float:
    """What this process holds now."""
    return int(STATM.read_text().split()[1]) * resource.getpagesize() / 2**20


def measure(model: Path, clip: Path, device: str) -> dict[str, float]:
    """One job in this process."""
    resident: list[float] = []

    def note(done: float, total: int | None) -> None:
        if STATM.exists() and done > len(resident) * 10:
            resident.append(resident_mib())

    place = choose_device(device)
    checkpoint = load_checkpoint(model, place, choose_dtype("auto", place))
    upscaler = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(scale=2.0))
    done = upscale_video(VideoReader(clip), clip.with_name("out.mp4"), upscaler, WriterSettings(), note)
    result = {
        "frames_per_second": round(done.frames / done.seconds, 2),
        "idle_share_of_the_model_thread": round(done.waited / done.seconds, 4),
        "peak_host_mib": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024), 1
        ),
    }
    quarter = len(resident) // 4
    if quarter:
        result["resident_mib_second_quarter"] = round(fmean(resident[quarter : 2 * quarter]), 1)
        result["resident_mib_last_quarter"] = round(fmean(resident[3 * quarter :]), 1)
    if place.type == "cuda":
        result["peak_device_mib"] = round(torch.cuda.max_memory_allocated(place) / 2**20, 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("frames", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--model", type=Path, help="checkpoint (default: a tiny random one)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clip is not None:  # a process of its own for each length
        print(json.dumps(measure(args.model, args.clip, args.device)))
        return
    results = {}
    for frames in args.frames:
        with tempfile.TemporaryDirectory() as folder:
            clip, model = Path(folder) / "in.mp4", args.model or Path(folder) / "random.safetensors"
            make_clip(clip, frames)
            if args.model is None:
                random_model(model)
            argv = [sys.executable, __file__, "--clip", str(clip), "--model", str(model), "--device", args.device]
            done = subprocess.run(argv, capture_output=True, text=True, check=True)
        results[frames] = json.loads(done.stdout.splitlines()[-1])
    place = choose_device(args.device)
    chip = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{torch.get_num_threads()} threads"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    report = {
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/streaming.py " + " ".join(map(str, args.frames)),
        "machine": f"{platform.system()} {platform.machine()}, {place.type}, {chip}, torch {torch.__version__}",
        "what": f"whole jobs, {WIDTH}x{HEIGHT} -> x2, h264, {args.model.name if args.model else 'tiny random model'}, by frames",
        "results": results,
    }
    path = Path(__file__).parent / "results" / "streaming.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

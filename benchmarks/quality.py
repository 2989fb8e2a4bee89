"""The README's quality table: python benchmarks/quality.py DATA_DIR [--settings real mild walk] [--fidelity 0 0.5 1]

Upscales each clip ``DATA_DIR/lq/SETTING/*`` four times, as ``oasis upscale`` does, scores it against the clip of the same name
in ``DATA_DIR/gt`` and prints the mean of each setting above the baselines of ``DATA_DIR/scores.json`` (scores by baseline, clip
and measure, of the setting that its "setting" names). Needs the extra ``[evaluate]``.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from oasis_core.checkpoints import EMBEDDED, load_checkpoint, resolve
from oasis_core.cli.device import choose_device, choose_dtype
from oasis_core.evaluation import report
from oasis_core.evaluation.clips import ClipFile, pair_clips
from oasis_core.evaluation.score import Judge
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.video_io import VideoReader

SCALE = 4.0


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    pairs = {setting: pair_clips(args.data / "gt", args.data / "lq" / setting) for setting in args.settings}
    device = choose_device(args.device)
    weights = resolve(args.model)
    dtype = choose_dtype(args.dtype, device)
    checkpoint = load_checkpoint(weights, device, dtype)
    upscalers = {
        row_name(checkpoint.config.name, fidelity): Upscaler(
            checkpoint.model, checkpoint.routing, UpscaleSettings(scale=SCALE, fidelity=fidelity)
        )
        for fidelity in args.fidelity
    }
    judge, results, baselines = Judge(), {}, {}
    for setting, clips in pairs.items():
        results[setting] = {
            name: measured(judge, upscaler, clips, args.frames, f"{setting}, {name}")
            for name, upscaler in upscalers.items()
        }
        baselines[setting] = known(args.data / "scores.json", setting, list(clips))
        print_table(
            heading(setting, clips, args.frames),
            {name: r["mean"] for name, r in results[setting].items()},
            baselines[setting],
        )
    if args.json is not None:
        facts = about(sys.argv[1:] if argv is None else argv, args.data, weights, device, dtype)
        whole = {**facts, "settings": results, "baselines": baselines}
        args.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--model", default=EMBEDDED, help=f"checkpoint file or embedded model (default {EMBEDDED})")
    parser.add_argument("--settings", nargs="+", default=["real"], help="folders of DATA_DIR/lq (default real)")
    parser.add_argument("--frames", type=int, help="only the first frames of each clip")
    parser.add_argument("--fidelity", type=float, nargs="+", default=[UpscaleSettings.fidelity], help="one row each")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; scores are always the CPU's")
    parser.add_argument("--dtype", default="auto", help="auto, fp32, bf16 or fp16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every score there, with commit and device")
    return parser.parse_args(argv)


def row_name(model: str, fidelity: float | None) -> str:
    return model if fidelity is None else f"{model}, fidelity {fidelity:g}"


def measured(
    judge: Judge, upscaler: Upscaler, clips: dict[str, tuple[Path, Path]], frames: int | None, title: str
) -> dict[str, Any]:
    """Scores of each clip and their mean."""
    scores = {
        name: judge.score(list(islice(ClipFile(truth), frames)), upscaled(upscaler, low, frames))
        for name, (truth, low) in tqdm(clips.items(), desc=title, unit="clip", disable=None)
    }
    return {"fidelity": upscaler.fidelity, "clips": scores, "mean": report.mean(scores.values())}


def upscaled(upscaler: Upscaler, path: Path, frames: int | None) -> list[np.ndarray]:
    """The clip's frames ``(H, W, 3)`` uint8, rounded as a lossless file would have them."""
    low = (frame.rgb for frame in islice(VideoReader(path), frames))
    return [
        np.rint(frame.clamp(0, 1).numpy() * 255).astype(np.uint8) for part in upscaler.stream(low) for frame in part
    ]


def known(path: Path, setting: str, clips: list[str]) -> dict[str, dict[str, float]]:
    """Means of the baselines that were scored on this setting and on all of these clips."""
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if data.get("setting") != f"lq/{setting}":
        return {}
    baselines = {name: report.clip_scores(place) for name, place in data.items()}
    return {
        name: report.mean_of(scores, clips, name) for name, scores in baselines.items() if set(clips) <= set(scores)
    }


def heading(setting: str, clips: Collection[str], frames: int | None) -> str:
    part = "" if frames is None else f", first {frames} frames (baselines: all frames)"
    return f"lq/{setting}, mean of {len(clips)} clips{part}"


def print_table(title: str, ours: dict[str, dict[str, float]], baselines: dict[str, dict[str, float]]) -> None:
    rows = {**ours, **baselines}
    width = max(map(len, rows))
    print(title)
    print(report.table_head(width))
    for name, mean in rows.items():
        print(report.table_row(name, mean, width), flush=True)


def about(
    argv: list[str],
    data: Path,
    weights: Path,
    device: torch.device,
    dtype: torch.dtype,
    script: str = "quality.py",
) -> dict[str, Any]:
    """When, what and where; folders of this machine are left out."""
    words = ["DATA_DIR" if Path(a) == data else Path(a).name for a in argv]
    here = Path(__file__).parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    machine = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.system()} {platform.machine()}"
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "command": " ".join([f"python benchmarks/{script}", *words]),
        "weights": {"file": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()},
        "device": f"{machine}, {device.type}, {str(dtype).removeprefix('torch.')}",
        "torch": torch.__version__,
        "what": f"x{SCALE:g}, scores by setting, row and clip; baselines: means of all frames as scores.json has them",
    }


if __name__ == "__main__":
    main()

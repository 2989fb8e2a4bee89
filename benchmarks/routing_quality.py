"""Dense, routed, all heads at the window: python benchmarks/routing_quality.py DENSE ROUTED DATA_DIR [--json FILE]

Scores as in ``benchmarks/quality.py``, which see (extra ``[evaluate]``), and the transformer's time on one chunk of 16 frames,
180x320 to 720x1280 (``--time-size``). ``DENSE``: checkpoint with all heads global; ``ROUTED``: the one trained on from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from quality import about, measured, print_table

from oasis_core.checkpoints import Checkpoint, load_checkpoint, resolve
from oasis_core.cli.device import choose_device, choose_dtype
from oasis_core.evaluation.clips import pair_clips
from oasis_core.evaluation.score import Judge
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing.auto import AutoRouting, Deciding
from oasis_core.routing.calibrated import calibrate, first_chunk
from oasis_core.routing.calibration import check_dense
from oasis_core.routing.spec import HeadPattern, RoutingSpec
from oasis_core.video_io import VideoReader

FRAMES = 16
"""Of the timed chunk."""
Variant = tuple[Checkpoint, "RoutingSpec | AutoRouting"]


def variants(
    dense: Checkpoint, routed: Checkpoint, clips: dict[str, tuple[Path, Path]], budget: float, size: tuple[int, int]
) -> dict[str, Variant]:
    """By name. The routing of "calibrated" is found on the first 8 frames (their first ``size`` pixels) of these clips."""
    config, own = dense.config, routed.routing
    everywhere, near = (
        RoutingSpec.uniform(config.depth, config.heads, p, own.window) for p in (HeadPattern.GLOBAL, HeadPattern.WINDOW)
    )
    up = Upscaler(dense.model, dense.routing, UpscaleSettings(chunk_frames=8))
    rows, columns = size
    frames = ((name, (f.rgb[:rows, :columns] for f in VideoReader(low))) for name, (_, low) in clips.items())
    found = calibrate(up, config.name, frames, "budget", budget)
    return {
        "dense": (dense, everywhere),
        f"dense, calibrated {budget:.0%}": (dense, found.routing),
        "dense, auto": (dense, AutoRouting("threshold", 0.5, dense.routing.window)),
        "dense, the routed one's routing": (dense, own),
        "dense, all window": (dense, near),
        "routed": (routed, own),
        "routed, all global": (routed, everywhere),
        "routed, all window": (routed, near),
    }


@torch.inference_mode()
def timed(variant: Variant, size: tuple[int, int], repeats: int) -> dict[str, float]:
    """Seconds of the transformer (median), and its attention's arithmetic against dense."""
    checkpoint, routing = variant
    model, config = checkpoint.model, checkpoint.config
    everywhere = RoutingSpec.uniform(config.depth, config.heads, HeadPattern.GLOBAL)
    up = Upscaler(model, everywhere, UpscaleSettings(chunk_frames=FRAMES, scene_cuts=False, tile=0))
    clip = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(0)).expand(FRAMES, -1, -1, -1)
    z = model.encode(first_chunk(up, clip).to(model.project.weight.dtype))
    grid = model.dit.grid(z)
    if isinstance(routing, AutoRouting):
        deciding = Deciding(routing)
        model.restore(z, routing.dense(config.depth, config.heads), decide=deciding)
        routing = deciding.routing()
    seconds = []
    for _ in range(1 + repeats):
        began = _now(z.device)
        model.restore(z, routing)
        seconds.append(_now(z.device) - began)
    return {"seconds": statistics.median(seconds[1:]), "cost": routing.cost((grid.t, grid.h, grid.w))}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", metavar="DENSE")
    parser.add_argument("routed", metavar="ROUTED")
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--frames", type=int, default=8, help="first frames of each clip (default 8)")
    parser.add_argument("--clips", default="*", metavar="GLOB", help="only clips of such names")
    parser.add_argument("--only", nargs="+", help="variants to run (default all)")
    parser.add_argument("--fidelity", type=float)
    parser.add_argument("--budget", type=float, default=0.35)
    parser.add_argument(
        "--time-size", type=int, nargs=2, default=(180, 320), help="input rows and columns of the timing"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-quality", action="store_true", help="times alone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    dense, routed = (load_checkpoint(resolve(name), device, dtype) for name in (args.dense, args.routed))
    check_dense(dense.routing, dense.config.name)
    routed.routing.check_fits(dense.config.depth, dense.config.heads)
    clips = pair_clips(args.data / "gt", args.data / "lq" / "real", args.clips)
    judge = None if args.no_quality else Judge()
    size = (args.time_size[0], args.time_size[1])
    results: dict[str, dict[str, Any]] = {}
    for name, variant in variants(dense, routed, clips, args.budget, size).items():
        if args.only and name not in args.only:
            continue
        results[name] = timed(variant, size, args.repeats)
        print(f"{name:32} {results[name]['seconds']:.3f} s, attention {results[name]['cost']:.1%} of dense", flush=True)
        if judge is not None:
            up = Upscaler(variant[0].model, variant[1], UpscaleSettings(fidelity=args.fidelity))
            results[name] |= measured(judge, up, clips, args.frames, name)
    if judge is not None:
        print_table(f"lq/real, first {args.frames} frames", {name: r["mean"] for name, r in results.items()}, {})
    if args.json is not None:
        words = [args.dense, args.routed, str(args.data), f"--frames={args.frames}", f"--fidelity={args.fidelity}"]
        facts = about(words, args.data, resolve(args.routed), device, dtype)
        facts["command"] = facts["command"].replace("quality.py", "routing_quality.py")
        args.json.write_text(json.dumps({**facts, "variants": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main()

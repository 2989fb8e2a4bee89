"""Dense, routed, all heads at the window: python benchmarks/routing_quality.py DENSE ROUTED DATA_DIR [--json FILE]

Scores as in ``benchmarks/quality.py``, which see (extra ``[evaluate]``), and the transformer's time on one chunk of 16 frames,
180x320 to 720x1280 (``--time-size``, ``--time-frames``; on a CPU, seconds of its cores). ``DENSE``: checkpoint with all heads
global; ``ROUTED``: the one trained on from it, or the same weights with a routing. ``--json`` is written as results come;
started again with it, the script goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from clock import now
from kept import Kept
from quality import about, measured, print_table

from oasis_core.checkpoints import Checkpoint, load_checkpoint, resolve
from oasis_core.cli.device import choose_device, choose_dtype
from oasis_core.evaluation.clips import pair_clips
from oasis_core.evaluation.score import Judge
from oasis_core.jobs.fingerprint import hash_model
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing.auto import AutoRouting, Deciding
from oasis_core.routing.calibrated import calibrate, first_chunk
from oasis_core.routing.calibration import check_dense
from oasis_core.routing.spec import HeadPattern, RoutingSpec
from oasis_core.video_io import VideoReader

CALIBRATED_ON = 8
"""Frames of each clip."""
Variant = tuple[Checkpoint, "RoutingSpec | AutoRouting"]


def variants(
    dense: Checkpoint, routed: Checkpoint, clips: dict[str, tuple[Path, Path]], budget: float, size: tuple[int, int]
) -> dict[str, Variant]:
    """By name. The routing of "calibrated" is found on the first frames (their first ``size`` pixels) of these clips.

    Where ``routed`` has the weights of ``dense``, what would be there twice is left out.
    """
    config, own = dense.config, routed.routing
    everywhere, near = (
        RoutingSpec.uniform(config.depth, config.heads, p, own.window) for p in (HeadPattern.GLOBAL, HeadPattern.WINDOW)
    )
    up = Upscaler(dense.model, dense.routing, UpscaleSettings(chunk_frames=CALIBRATED_ON))
    rows, columns = size
    frames = ((name, (f.rgb[:rows, :columns] for f in VideoReader(low))) for name, (_, low) in clips.items())
    found = calibrate(up, config.name, frames, "budget", budget)
    of_dense = {
        "dense": (dense, everywhere),
        f"dense, calibrated {budget:.0%}": (dense, found.routing),
        "dense, auto": (dense, AutoRouting("threshold", 0.5, dense.routing.window)),
        "dense, the routed one's routing": (dense, own),
        "dense, all window": (dense, near),
    }
    if hash_model(dense.model) == hash_model(routed.model):
        return of_dense
    return of_dense | {
        "routed": (routed, own),
        "routed, all global": (routed, everywhere),
        "routed, all window": (routed, near),
    }


@torch.inference_mode()
def timed(variant: Variant, frames: int, size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Seconds of the transformer (median), and its attention's arithmetic against dense."""
    checkpoint, routing = variant
    model, config = checkpoint.model, checkpoint.config
    everywhere = RoutingSpec.uniform(config.depth, config.heads, HeadPattern.GLOBAL)
    up = Upscaler(model, everywhere, UpscaleSettings(chunk_frames=frames, scene_cuts=False, tile=0))
    clip = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(0)).expand(frames, -1, -1, -1)
    z = model.encode(first_chunk(up, clip).to(model.project.weight.dtype))
    grid = model.dit.grid(z)
    if isinstance(routing, AutoRouting):
        deciding = Deciding(routing)
        model.restore(z, routing.dense(config.depth, config.heads), decide=deciding)
        routing = deciding.routing()
    seconds = []
    for _ in range(1 + repeats):
        began = now(z.device)
        model.restore(z, routing)
        seconds.append(now(z.device) - began)
    cost = routing.cost((grid.t, grid.h, grid.w))
    return {"seconds": statistics.median(seconds[1:]), "cost": cost, "shares": routing.shares()}


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
    parser.add_argument("--time-frames", type=int, default=16)
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
    words = {k: v for k, v in vars(args).items() if k not in ("dense", "routed", "data", "json", "only") and v}
    told = [
        f"--{k.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, list | tuple) else v}"
        for k, v in words.items()
    ]
    names = [args.dense, args.routed, str(args.data)]
    facts = about([*names, *told], args.data, resolve(args.routed), device, dtype, "routing_quality.py")
    try:
        kept = Kept(args.json, facts, words | {"weights": facts["weights"]["sha256"]})
    except ValueError as e:
        parser.error(str(e))

    def made(name: str, variant: Variant) -> dict[str, Any]:
        row = timed(variant, args.time_frames, size, args.repeats)
        if judge is not None:
            up = Upscaler(variant[0].model, variant[1], UpscaleSettings(fidelity=args.fidelity))
            row |= measured(judge, up, clips, args.frames, name)
        return row

    results: dict[str, dict[str, Any]] = {}
    for name, variant in variants(dense, routed, clips, args.budget, size).items():
        if args.only and name not in args.only:
            continue
        row = results[name] = kept.once(name, lambda n=name, v=variant: made(n, v))
        print(f"{name:32} {row['seconds']:.3f} s, attention {row['cost']:.1%} of dense, {row['shares']}", flush=True)
    if judge is not None:
        print_table(f"lq/real, first {args.frames} frames", {name: r["mean"] for name, r in results.items()}, {})


if __name__ == "__main__":
    with torch.inference_mode():
        main()

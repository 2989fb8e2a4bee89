"""What the transformer and its head patterns are worth: python benchmarks/ablation.py DATA_DIR [--frames 8] [--json FILE]

The shipped model on ``DATA_DIR/lq/real`` as it is; with the transformer's output zeroed (z_H = z_L: the decoder alone); and
with every head forced to one pattern. Scores as in ``benchmarks/quality.py``, which see. Needs the extra ``[evaluate]``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from quality import about, measured, print_table

from oasis_core.checkpoints import Checkpoint, embedded_path, load_checkpoint
from oasis_core.cli.device import choose_device, choose_dtype
from oasis_core.evaluation.clips import pair_clips
from oasis_core.evaluation.score import Judge
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing.spec import HeadPattern, RoutingSpec


def variants(checkpoint: Checkpoint) -> dict[str, tuple[RoutingSpec, bool]]:
    """Routing, and whether the transformer's output is kept."""
    config, routing = checkpoint.config, checkpoint.routing
    forced = {
        f"all heads {pattern.value}": (RoutingSpec.uniform(config.depth, config.heads, pattern, routing.window), True)
        for pattern in HeadPattern
    }
    return {"as shipped": (routing, True), "transformer zeroed": (routing, False), **forced}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--frames", type=int, default=8, help="first frames of each clip (default 8)")
    parser.add_argument("--fidelity", type=float, default=UpscaleSettings.fidelity)
    parser.add_argument("--only", nargs="+", help="variants to run (default all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    clips = pair_clips(args.data / "gt", args.data / "lq" / "real")
    device = choose_device(args.device)
    dtype = choose_dtype("auto", device)
    results, judge = {}, Judge()
    for name, (routing, kept) in variants(load_checkpoint(embedded_path(), device, dtype)).items():
        if args.only and name not in args.only:
            continue
        checkpoint = load_checkpoint(embedded_path(), device, dtype)
        if not kept:
            checkpoint.model.dit.head.head.weight.zero_()
            checkpoint.model.dit.head.head.bias.zero_()
        upscaler = Upscaler(checkpoint.model, routing, UpscaleSettings(fidelity=args.fidelity))
        results[name] = measured(judge, upscaler, clips, args.frames, name)
    print_table(f"lq/real, first {args.frames} frames", {name: r["mean"] for name, r in results.items()}, {})
    if args.json is not None:
        facts = about(sys.argv[1:], args.data, embedded_path(), device, dtype)
        facts["command"] = facts["command"].replace("quality.py", "ablation.py")
        args.json.write_text(json.dumps({**facts, "variants": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main()

"""Are stills as good as clips? python benchmarks/stills.py DATA_DIR [--setting real] [--each 8] [--json FILE]

Every ``--each``-th frame of each clip ``DATA_DIR/lq/SETTING/*`` is upscaled by itself, as ``oasis upscale photo.jpg`` does, and
scored beside the same frame out of the upscaled clip, both against ``DATA_DIR/gt``. Needs the extra ``[evaluate]``.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

import torch
from quality import SCALE, about, print_table, upscaled
from tqdm import tqdm

from oasis_core.checkpoints import EMBEDDED, load_checkpoint, resolve
from oasis_core.cli.device import choose_device, choose_dtype
from oasis_core.evaluation import report
from oasis_core.evaluation.clips import ClipFile, pair_clips
from oasis_core.evaluation.score import Judge
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.video_io import VideoReader

ALONE, INSIDE = "by itself", "inside its clip"
COMPARED = ("psnr", "stlpips_alex", "vmaf_neg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--model", default=EMBEDDED, help=f"checkpoint file or embedded model (default {EMBEDDED})")
    parser.add_argument("--setting", default="real", help="folder of DATA_DIR/lq (default real)")
    parser.add_argument("--each", type=int, default=8, help="every how many frames (default 8)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    device, weights = choose_device(args.device), resolve(args.model)
    dtype = choose_dtype("auto", device)
    checkpoint = load_checkpoint(weights, device, dtype)
    upscaler = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(scale=SCALE))
    judge, scores = Judge(), {ALONE: list[dict[str, float]](), INSIDE: list[dict[str, float]]()}
    pairs = pair_clips(args.data / "gt", args.data / "lq" / args.setting)
    for truth, low in tqdm(pairs.values(), unit="clip", disable=None):
        whole = upscaled(upscaler, low, None)
        stills = [frame.rgb for frame in VideoReader(low)]
        for i, real in islice(enumerate(ClipFile(truth)), 0, len(whole), args.each):
            (alone,) = upscaler.upscale(stills[i][None]).mul(255).round().byte().numpy()
            for name, frame in ((ALONE, alone), (INSIDE, whole[i])):
                scores[name].append(judge.score([real], [frame]))
    means = {name: report.mean(each) for name, each in scores.items()}
    print_table(f"lq/{args.setting}, {len(scores[ALONE])} frames of {len(pairs)} clips", means, {})
    ratios = {name: means[ALONE][name] / means[INSIDE][name] for name in COMPARED if name in means[ALONE]}
    print("alone against inside: " + ", ".join(f"{name} {ratio:.4f}" for name, ratio in ratios.items()))
    if args.json is not None:
        facts = about(sys.argv[1:], args.data, weights, device, dtype, "stills.py")
        args.json.write_text(json.dumps(facts | {"means": means, "ratios": ratios}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main()

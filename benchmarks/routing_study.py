"""What a dense checkpoint says about its routing: python benchmarks/routing_study.py DENSE DATA_DIR [--json FILE]

On the clips ``DATA_DIR/lq/SETTING/*`` with the ground truth of the same name in ``DATA_DIR/gt`` (a middle part of each, so that
a CPU takes minutes). Prints, section by section:

stability   is the split the same on other clips, motion and resolutions? Spearman's rank correlation of the heads' KL, and the
            share of heads that get the same pattern at the budget.
forced      one head after another is forced to each local pattern, all others global: what that does to the picture, against the
            head's KL.
budgets     the exact assignment at several budgets: KL, picture, attention cost.
windows     all heads at one window: the same.

"Change" is 10 log10 of the mean squared difference (of 1) from the dense output: less is closer. Times are the transformer's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import torch
from quality import about
from torch import Tensor

from oasis_core.checkpoints import Checkpoint, load_checkpoint, resolve
from oasis_core.cli.device import choose_device, choose_dtype
from oasis_core.evaluation.clips import pair_clips
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing.assignment import assign_by_budget
from oasis_core.routing.calibrated import first_chunk
from oasis_core.routing.calibration import Divergences, check_dense, measure
from oasis_core.routing.spec import HeadPattern, Pattern, RoutingSpec, parse_patterns, pattern_text
from oasis_core.video_io import VideoReader

SCALE = 4
WINDOWS = ((1, 3, 3), (1, 5, 5), (3, 3, 3), (3, 5, 5), (3, 7, 7), (5, 5, 5), (3, 9, 9), (5, 9, 9))
BUDGETS = (0.03, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
SECTIONS = ("stability", "forced", "budgets", "windows")


@dataclass(frozen=True)
class Example:
    """A middle part of a clip."""

    name: str
    low: Tensor
    """``(T, h, w, 3)`` in [0, 1]."""
    truth: Tensor
    """``(T, 4h, 4w, 3)``."""


class Study:
    """A dense model and its examples."""

    def __init__(
        self, checkpoint: Checkpoint, examples: list[Example], patterns: tuple[Pattern, ...], queries: int
    ) -> None:
        self.checkpoint, self.examples, self.patterns, self.queries = checkpoint, examples, patterns, queries
        self.depth, self.heads = checkpoint.config.depth, checkpoint.config.heads
        self.window = checkpoint.routing.window
        self.dense = RoutingSpec.uniform(self.depth, self.heads, HeadPattern.GLOBAL, self.window)
        self._dense_pictures: dict[str, Tensor] = {}

    def upscaler(self, routing: RoutingSpec, scale: float = SCALE) -> Upscaler:
        settings = UpscaleSettings(scale=scale, chunk_frames=len(self.examples[0].low), scene_cuts=False)
        return Upscaler(self.checkpoint.model, routing, settings)

    def measured(
        self, clips: list[Tensor], scale: float = SCALE, window: tuple[int, int, int] | None = None
    ) -> Divergences:
        up = self.upscaler(self.dense, scale)
        chunks = [first_chunk(up, clip) for clip in clips]
        return measure(
            self.checkpoint.model, chunks, window or self.window, self.queries, 0, self.patterns, up.fidelity
        )

    def picture(self, routing: RoutingSpec, example: Example) -> tuple[Tensor, float]:
        """The model's output ``(3, T, H, W)`` in [0, 1] (no colour correction), and the transformer's seconds."""
        model, up = self.checkpoint.model, self.upscaler(routing)
        pixels = first_chunk(up, example.low).to(model.project.weight.dtype)
        z = model.encode(pixels)
        began = _now(z.device)
        z = model.restore(z, routing, fidelity=up.fidelity)
        seconds = _now(z.device) - began
        return ((model.decode(z, pixels)[0].float() + 1) / 2).clamp(0, 1), seconds

    def row(self, routing: RoutingSpec) -> dict[str, float]:
        """Means over the examples."""
        rows = []
        for example in self.examples:
            out, seconds = self.picture(routing, example)
            if example.name not in self._dense_pictures:
                self._dense_pictures[example.name] = self.picture(self.dense, example)[0]
            dense = self._dense_pictures[example.name]
            truth = example.truth.permute(3, 0, 1, 2).to(out.device)
            out, dense = (x[:, :, : truth.shape[2], : truth.shape[3]] for x in (out, dense))
            rows.append({"change": _db(out, dense), "psnr": -_db(out, truth), "seconds": seconds})
        return {key: sum(r[key] for r in rows) / len(rows) for key in rows[0]}

    def sizes(self) -> tuple[int, int, int]:
        grid = self.measured([self.examples[0].low]).grids[0]
        return grid.t, grid.h, grid.w


def stability(study: Study, budget: float) -> dict[str, Any]:
    """Rank correlation and agreement between clips, and of each clip with itself changed."""
    lows = [e.low for e in study.examples]
    usual = [study.measured([low]) for low in lows]
    changes: dict[str, Callable[[Tensor], Divergences]] = {
        "held still": lambda low: study.measured([low[:1].expand_as(low)]),
        "every 2nd frame": lambda low: study.measured([torch.cat([low[::2], low[::2].flip(0)])[: len(low)]]),
        "mirrored": lambda low: study.measured([low.flip(2)]),
        "twice enlarged": lambda low: study.measured([low], 2.0),
        "inner half": lambda low: study.measured([_inner_half(low)]),
    }
    pairs = {"another clip": list(combinations(usual, 2))}
    for name, change in changes.items():
        pairs[name] = [(a, change(low)) for a, low in zip(usual, lows, strict=True)]
    return {name: _compared(found, budget) for name, found in pairs.items()}


def _compared(pairs: list[tuple[Divergences, Divergences]], budget: float) -> dict[str, float]:
    """Of the second with the first, on whose token grid the assignments' costs are told: there it would be used."""
    result: dict[str, float] = {}
    for i, pattern in enumerate(pairs[0][0].patterns):
        ranks = [spearman(a.mean[i].flatten(), b.mean[i].flatten()) for a, b in pairs]
        result[f"rank {pattern_text(pattern)}"] = sum(ranks) / len(ranks)
        result[f"least {pattern_text(pattern)}"] = min(ranks)
    alike = []
    for a, b in pairs:
        one, other = (assign_by_budget(replace(x, grids=a.grids), budget).layers for x in (a, b))
        same = [p == q for x, y in zip(one, other, strict=True) for p, q in zip(x, y, strict=True)]
        alike.append(sum(same) / len(same))
    result["agreement"] = sum(alike) / len(alike)
    result["least agreement"] = min(alike)
    return result


def forced(study: Study, count: int) -> dict[str, Any]:
    """Of ``count`` heads (0: all), seeded: KL and change under each local pattern."""
    found = study.measured([e.low for e in study.examples])
    every = [(i, n) for i in range(study.depth) for n in range(study.heads)]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    rows = []
    base = study.row(study.dense)
    for place in sorted(order[: count or len(order)]):
        layer, head = every[place]
        for p, pattern in enumerate(found.patterns):
            layers = [list(x) for x in study.dense.layers]
            layers[layer][head] = pattern
            got = study.row(RoutingSpec(tuple(map(tuple, layers)), study.window))
            rows.append({
                "layer": layer, "head": head, "pattern": pattern_text(pattern), "kl": float(found.mean[p, layer, head]),
                "change": got["change"], "psnr lost": base["psnr"] - got["psnr"],
            })  # fmt: skip
    result: dict[str, Any] = {"rows": rows}
    for name in {r["pattern"] for r in rows}:
        some = [r for r in rows if r["pattern"] == name]
        kl, change, lost = (torch.tensor([r[key] for r in some]) for key in ("kl", "change", "psnr lost"))
        result[name] = {"rank KL and change": spearman(kl, change), "rank KL and PSNR lost": spearman(kl, lost)}
    kl, change = (torch.tensor([r[key] for r in rows]) for key in ("kl", "change"))
    result["all"] = {"rank KL and change": spearman(kl, change)}
    return result


def budgets(study: Study) -> dict[str, dict[str, float]]:
    found, sizes = study.measured([e.low for e in study.examples]), study.sizes()
    rows = {"dense": study.row(study.dense) | {"cost": 1.0, "kl": 0.0}}
    for budget in BUDGETS:
        try:
            routing = assign_by_budget(found, budget)
        except ValueError:  # under the cheapest pattern
            continue
        rows[f"{budget:.0%}"] = study.row(routing) | {"cost": routing.cost(sizes), "kl": _mean_kl(found, routing)}
    return rows


def windows(study: Study) -> dict[str, dict[str, float]]:
    sizes, rows = study.sizes(), {}
    for window in WINDOWS:
        routing = RoutingSpec.uniform(study.depth, study.heads, HeadPattern.WINDOW, window)
        alone = Study(study.checkpoint, study.examples, (HeadPattern.WINDOW,), study.queries)
        found = alone.measured([e.low for e in study.examples], window=window)
        name = "x".join(map(str, window))
        rows[name] = study.row(routing) | {"cost": routing.cost(sizes), "kl": float(found.mean.mean())}
    return rows


def _inner_half(low: Tensor) -> Tensor:
    top, left = (side // 4 for side in low.shape[1:3])
    return low[:, top : low.shape[1] - top, left : low.shape[2] - left]


def _mean_kl(found: Divergences, routing: RoutingSpec) -> float:
    where = {p: i for i, p in enumerate(found.patterns)}
    heads = [(p, i, n) for i, layer in enumerate(routing.layers) for n, p in enumerate(layer)]
    kls = [float(found.mean[where[p], i, n]) if p in where else 0.0 for p, i, n in heads]
    return sum(kls) / len(kls)


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation, -1 to 1 (ties in order of appearance)."""
    ranks = [x.double().argsort().argsort().double() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def _db(a: Tensor, b: Tensor) -> float:
    return float(10 * (a - b).square().mean().clamp_min(1e-12).log10())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def read_examples(data: Path, setting: str, frames: int, size: tuple[int, int], only: int | None) -> list[Example]:
    """The middle ``size`` (rows, columns of the input) of the first frames of each clip."""
    examples = []
    for name, (truth, low) in islice(pair_clips(data / "gt", data / "lq" / setting).items(), only):
        lows, truths = (torch.stack([f.rgb for f in islice(VideoReader(p), frames)]) for p in (low, truth))
        h, w = (min(have, want) for have, want in zip(lows.shape[1:3], size, strict=True))
        top, left = (lows.shape[1] - h) // 2, (lows.shape[2] - w) // 2
        truths = truths[:, SCALE * top : SCALE * (top + h), SCALE * left : SCALE * (left + w)]
        examples.append(Example(name, lows[:, top : top + h, left : left + w].clamp(0, 1), truths.clamp(0, 1)))
    return examples


def print_rows(title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    print(f"\n{title}\n| |" + "|".join(columns) + "|\n|" + "---|" * (len(columns) + 1))
    for name, row in rows.items():
        print(f"|{name}|" + "|".join(f"{row[c]:.3f}" if c in row else "" for c in columns) + "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="DENSE", help="dense checkpoint")
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--setting", default="real", help="folder of DATA_DIR/lq (default real)")
    parser.add_argument("--sections", nargs="+", default=SECTIONS, choices=SECTIONS)
    parser.add_argument("--frames", type=int, default=8, help="of each clip (default 8)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(48, 64), help="rows and columns of the input (default 48 64)"
    )
    parser.add_argument("--clips", type=int, help="only the first clips")
    parser.add_argument("--heads", type=int, default=32, help="heads of section forced, 0: all (default 32)")
    parser.add_argument("--budget", type=float, default=0.35, help="of the agreement (default 0.35)")
    parser.add_argument("--patterns", default="intra-frame,window", help="local candidates")
    parser.add_argument("--queries", type=int, default=0, help="sampled queries, 0: all (default)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="fp32", help="fp32 (default): changes by one head are small")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    device, path = choose_device(args.device), resolve(args.model)
    dtype = choose_dtype(args.dtype, device)
    checkpoint = load_checkpoint(path, device, dtype)
    check_dense(checkpoint.routing, checkpoint.config.name)
    examples = read_examples(args.data, args.setting, args.frames, tuple(args.size), args.clips)
    study = Study(checkpoint, examples, parse_patterns(args.patterns), args.queries)
    print(f"{checkpoint.config.name}, {len(examples)} clips, tokens {study.sizes()}, window {study.window}")
    study.row(study.dense)  # warms up
    results: dict[str, Any] = {}
    if "stability" in args.sections:
        results["stability"] = stability(study, args.budget)
        print_rows(f"stability (agreement at a budget of {args.budget:.0%})", results["stability"])
    if "forced" in args.sections:
        results["forced"] = forced(study, args.heads)
        print_rows("forced", {k: v for k, v in results["forced"].items() if k != "rows"})
    if "budgets" in args.sections:
        results["budgets"] = budgets(study)
        print_rows("budgets", results["budgets"])
    if "windows" in args.sections:
        results["windows"] = windows(study)
        print_rows("windows (all heads)", results["windows"])
    if args.json is not None:
        rest = {k: v for k, v in vars(args).items() if k not in ("model", "data", "json")}
        words = [args.model, str(args.data), *(f"--{k}={v}" for k, v in rest.items())]
        facts = about(words, args.data, path, device, dtype)
        facts["command"] = facts["command"].replace("quality.py", "routing_study.py")
        facts["what"] = "see the script's first lines"
        args.json.write_text(json.dumps({**facts, **results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main()

"""What calibrating and deciding cost beside a plain forward pass: python benchmarks/calibration.py [--json FILE]

A model of the full size with random weights (30 blocks of 1536, 12 heads) on 33 frames of 720x1280 where there is a CUDA GPU;
the shipped sizes on 5 frames of 240x320 on a CPU. Medians of ``--repeats``; the parts take turns. "deciding" is a forward pass
in which ``auto`` decides; its share is what it takes longer on a GPU (timing its calls would stop the GPU), on a CPU the time in
its calls, in seconds of the cores, so that a busy machine does not hide it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from clock import now
from torch import Tensor

from oasis_core.attention import TokenGrid
from oasis_core.checkpoints import embedded_path
from oasis_core.checkpoints.read import read_metadata
from oasis_core.cli.device import choose_device, choose_dtype
from oasis_core.model import OasisConfig, OasisModel
from oasis_core.routing.auto import QUERIES, AutoRouting, Deciding
from oasis_core.routing.calibration import measure
from oasis_core.routing.spec import HeadPattern, Pattern, RoutingSpec

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--queries", type=int, nargs="+", default=(64, 128, 256))
    parser.add_argument("--size", type=int, nargs=3, help="frames, rows, columns of the output")
    parser.add_argument(
        "--depth", type=int, help="blocks, where all of them take too long (a share is that of any number)"
    )
    parser.add_argument("--no-calibration", action="store_true", help="deciding alone")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    device = choose_device(args.device)
    large = device.type == "cuda"
    config = OasisConfig("full size, random") if large else read_metadata(embedded_path()).config
    config = replace(config, depth=args.depth or config.depth)
    frames, rows, columns = args.size or ((33, 720, 1280) if large else (5, 240, 320))
    with torch.device(device):
        model = OasisModel(config).to(choose_dtype("auto", device)).eval()
        model.init_weights()
        for p in model.parameters():
            p.requires_grad_(False)
        clip = torch.rand(1, 3, frames, rows, columns, dtype=model.project.weight.dtype) * 2 - 1
    dense = RoutingSpec.uniform(config.depth, config.heads, HeadPattern.GLOBAL)
    z = model.encode(clip)

    spent: dict[str, list[float]] = {}

    def decided(queries: int, name: str) -> Callable[[], object]:
        auto = AutoRouting("threshold", 0.0, queries=queries)  # all stay global, so that only the deciding is added

        def run() -> object:
            deciding, seconds = Deciding(auto), [0.0]
            if device.type != "cpu":
                return model.restore(z, dense, decide=deciding)

            def timed(step: Callable[..., T], *given: object) -> T:
                began = now(device)
                result = step(*given)
                seconds[0] += now(device) - began
                return result

            def decide(layer: int, q: Tensor, k: Tensor, grid: TokenGrid) -> Callable[[], tuple[Pattern, ...]]:
                return partial(timed, timed(deciding, layer, q, k, grid))

            result = model.restore(z, dense, decide=decide)
            spent.setdefault(name, []).append(seconds[0])
            return result

        return run

    parts: dict[str, Callable[[], object]] = {"plain forward": lambda: model.restore(z, dense)}
    for queries in args.queries:
        name = f"deciding, {queries} queries"
        parts[name] = decided(queries, name)
        if args.no_calibration:
            continue
        parts[f"calibration, {queries} queries"] = lambda queries=queries: measure(model, [clip], queries=queries)
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    peaks: dict[str, float] = {}
    for _ in range(1 + args.repeats):
        for name, run in parts.items():
            if large:
                torch.cuda.reset_peak_memory_stats()
            began = now(device)
            run()
            seconds[name].append(now(device) - began)
            if large:
                peaks[name] = torch.cuda.max_memory_allocated() / 2**30
    grid = model.dit.grid(z)
    print(f"{config.name}: {config.depth} blocks of {config.dim}, tokens {grid.t}x{grid.h}x{grid.w}, {device}")
    rows_out = {}
    for name, times in seconds.items():
        middle, plain = statistics.median(times[1:]), statistics.median(seconds["plain forward"][1:])
        rows_out[name] = {"seconds": middle, "against plain": middle / plain}
        memory = ""
        if name.startswith("deciding"):
            itself = statistics.median(spent[name][1:]) if name in spent else middle - plain
            rows_out[name]["share of the pass"] = itself / plain
            memory = f", itself {rows_out[name]['share of the pass']:.2%}"
        if large:
            rows_out[name] |= {"peak GiB": peaks[name], "memory against plain": peaks[name] / peaks["plain forward"]}
            memory += f", peak {peaks[name]:.2f} GiB ({peaks[name] / peaks['plain forward']:.2f} x)"
        print(f"{name:28} {middle:.3f} s ({middle / plain:.3f} x){memory}")
    for name, row in rows_out.items():
        if large and name.startswith("calibration"):  # what issue 5 asks of 33 frames of 720x1280 on an H200
            fine = row["seconds"] < 2 and row["memory against plain"] < 1.3
            verdict = "as it should be" if fine else "TOO MUCH"
            print(
                f"{name}: {row['seconds']:.2f} s (under 2), {row['memory against plain']:.3f} x memory (under 1.3): {verdict}"
            )
        if large and name == f"deciding, {QUERIES} queries":
            verdict = "as it should be" if row["share of the pass"] < 0.02 else "TOO MUCH"
            print(f"{name}: {row['share of the pass']:.2%} of a plain forward (under 2 %): {verdict}")
    if args.json is not None:
        machine = torch.cuda.get_device_name(device) if large else f"{platform.system()} {platform.machine()}"
        facts = {"device": machine, "torch": torch.__version__, "tokens": [grid.t, grid.h, grid.w], "rows": rows_out}
        args.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main()

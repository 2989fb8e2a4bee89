"""What a dense checkpoint says about its routing: python benchmarks/routing_study.py DENSE DATA_DIR [--json FILE]

On the clips ``DATA_DIR/lq/SETTING/*`` with the ground truth of the same name in ``DATA_DIR/gt`` (a middle part of each, so that
a CPU takes minutes). ``--json`` is written as results come; started again with it, the script goes on where it was.
``routing_figures.py`` draws it. Section by section:

heads       each head's KL, and what it would be if attention were uniform.
stability   is the split the same on other clips, motion, resolutions, chunk lengths and samples of queries? Spearman's rank
            correlation of the heads' KL; the share of heads that get the same pattern at a budget, and what it would be by
            chance; what a clip loses with the routing of another instead of its own.
forced      one head after another is forced to each local pattern, all others global: what that does to the picture, against the
            head's KL.
layers      the same with all heads of a layer.
budgets     the exact assignment at several budgets, the same numbers of patterns at random places, all heads alike.
windows     all heads at one extent.

"change" is 10 log10 of the mean squared difference (of 1) from the dense output: less is closer. "stlpips" is ST-LPIPS (alex)
to the ground truth: less is better. Seconds are the transformer's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from kept import Kept
from quality import about
from routing_examples import SCALE, Study, read_examples, spearman
from torch import Tensor

from oasis_core.attention import TokenGrid
from oasis_core.checkpoints import load_checkpoint, resolve
from oasis_core.cli.device import choose_device, choose_dtype
from oasis_core.routing.assignment import assign_by_budget, assign_by_shares, assign_by_threshold
from oasis_core.routing.calibration import Divergences, check_dense
from oasis_core.routing.divergence import localisation_kl
from oasis_core.routing.spec import Pattern, RoutingSpec, extent_of, parse_patterns, pattern_text

BUDGETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
RANDOM_AT = (0.1, 0.35)
"""Budgets whose patterns are given to random heads, too, ``SEEDS`` times."""
SEEDS = 3
RECIPE = (0.0125, 0.075)
"""Shares of global and intra-frame heads in ``configs/oasis-tiny.toml`` until 2026-11-27; now 0 and 0.03."""
THRESHOLDS = (0.1, 0.5, 1.0, 1.5)
EXTENTS = "1x3x3,1x5x5,3x3x3,3x5x5,3x7x7,5x5x5,3x9x9,5x9x9,5x3x3,1xallxall,3xallxall"
QUERIES = (32, 128, 256)
ALSO = "allx5x5,1x5x5"
"""Further extents whose KL is told."""
SECTIONS = ("heads", "stability", "forced", "layers", "budgets", "windows")
Row = dict[str, float]


def heads(study: Study) -> dict[str, Any]:
    """Tables by pattern: mean, spread over clips, and the value of uniform attention; heads by pattern at thresholds."""
    every = (*study.patterns, *parse_patterns(ALSO))
    found, grid = study.measured([e.low for e in study.examples], patterns=every), TokenGrid(*study.sizes())
    extents = [extent_of(p, study.window) for p in found.patterns]
    nothing = torch.zeros(1, grid.length, 1, 1)
    uniform = localisation_kl(nothing, nothing, grid, extents, torch.arange(grid.length)).mean((1, 2, 3))
    tables = {}
    for i, pattern in enumerate(found.patterns):
        mean, even = found.mean[i], float(uniform[i])
        tables[pattern_text(pattern)] = {
            "kl": mean.tolist(), "between clips": found.per_clip[:, i].std(0, correction=0).tolist(), "uniform": even,
            "within 5 % of uniform": float(((mean / even - 1).abs() < 0.05).double().mean()),
            "under half of uniform": float((mean < even / 2).double().mean()),
        }  # fmt: skip
    return {
        "tokens": list(study.sizes()),
        "patterns": tables,
        "thresholds": {f"{t:g} nats": assign_by_threshold(found, t).shares() for t in THRESHOLDS},
        "least of all heads": {p: min(map(min, table["kl"])) for p, table in tables.items()},
    }


def stability(study: Study, budgets: list[float]) -> dict[str, Row]:
    """Between clips, and of each clip with itself changed."""
    lows = [e.low for e in study.examples]
    usual = [study.measured([low]) for low in lows]
    for budget in budgets:
        assign_by_budget(usual[0], budget)  # refused now, not after everything is measured
    whole, longer = ({id(e.low): x for e, x in zip(study.examples, xs, strict=True)} for xs in _others(study))
    changes: dict[str, Callable[[Tensor], Divergences]] = {
        **{f"{n} queries": lambda low, n=n: study.measured([low], queries=n) for n in QUERIES},
        "mirrored": lambda low: study.measured([low.flip(2)]),
        "held still": lambda low: study.measured([low[:1].expand_as(low)]),
        "every 2nd frame": lambda low: study.measured([longer[id(low)][::2]]),
        "chunk twice as long": lambda low: study.measured([longer[id(low)]]),
        "half the enlargement": lambda low: study.measured([low], SCALE / 2),
        "whole frames": lambda low: study.measured([whole[id(low)]], queries=QUERIES[-1]),
    }
    pairs = {"another clip": [p for a, b in combinations(usual, 2) for p in ((a, b), (b, a))]}
    if len(usual) > 2:
        rest = [[x for x in usual if x is not one] for one in usual]
        pairs["all other clips"] = [(_pooled(r), one) for r, one in zip(rest, usual, strict=True)]
    for name, change in changes.items():
        pairs[name] = [(a, change(low)) for a, low in zip(usual, lows, strict=True)]
        print(f"  {name}", flush=True)
    return {name: _compared(found, budgets) for name, found in pairs.items()}


def _others(study: Study) -> tuple[list[Tensor], list[Tensor]]:
    return [e.whole for e in study.examples], [e.longer for e in study.examples]


def _pooled(several: list[Divergences]) -> Divergences:
    return replace(several[0], mean=torch.stack([d.mean for d in several]).mean(0))


def _compared(pairs: list[tuple[Divergences, Divergences]], budgets: list[float]) -> Row:
    """Routings are found on the first's token grid. "loss": mean KL on the second, with its own routing, with the first's,
    and with the first's patterns at random heads."""
    result: Row = {}
    for i, pattern in enumerate(pairs[0][0].patterns):
        ranks = [spearman(a.mean[i].flatten(), b.mean[i].flatten()) for a, b in pairs]
        result[f"rank {pattern_text(pattern)}"] = sum(ranks) / len(ranks)
        result[f"least {pattern_text(pattern)}"] = min(ranks)
    for budget in budgets:
        rows = [_at_budget(a, replace(b, grids=a.grids), budget) for a, b in pairs]
        for key in rows[0]:
            result[f"{key} {budget:.0%}"] = sum(r[key] for r in rows) / len(rows)
    return result


def _at_budget(a: Divergences, b: Divergences, budget: float) -> Row:
    one, own = (assign_by_budget(x, budget) for x in (a, b))
    flat = [[p for layer in spec.layers for p in layer] for spec in (one, own)]
    alike = [p == q for p, q in zip(*flat, strict=True)]
    shares = [{p: f.count(p) / len(f) for p in set(f)} for f in flat]
    chance = sum(share * shares[1].get(p, 0.0) for p, share in shares[0].items())
    means = {p: float(b.mean[i].mean()) for i, p in enumerate(b.patterns)}
    return {
        "alike": sum(alike) / len(alike),
        "by chance": chance,
        "loss own": mean_kl(b, own),
        "loss theirs": mean_kl(b, one),
        "loss random": sum(share * means.get(p, 0.0) for p, share in shares[0].items()),
    }


def forced(study: Study, count: int, rows: list[dict[str, Any]], save: Callable[[], None]) -> dict[str, Any]:
    """Of ``count`` heads (0: all), seeded: KL and change under each local pattern. ``rows``: those that are there."""
    found = study.everyone()
    every = [(i, n) for i in range(study.depth) for n in range(study.heads)]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    base = study.row(study.dense)
    known = {(r["layer"], r["head"], r["pattern"]) for r in rows}
    for place in order[: count or len(order)]:
        layer, head = every[place]
        for p, pattern in enumerate(found.patterns):
            if (layer, head, pattern_text(pattern)) in known:
                continue
            layers = [list(x) for x in study.dense.layers]
            layers[layer][head] = pattern
            got = study.row(RoutingSpec(tuple(map(tuple, layers)), study.window))
            rows.append({
                "layer": layer, "head": head, "pattern": pattern_text(pattern), "kl": float(found.mean[p, layer, head]),
                "change": got["change"], "psnr lost": base["psnr"] - got["psnr"],
                "stlpips lost": got["stlpips"] - base["stlpips"],
            })  # fmt: skip
            save()
    return {"dense": base, "rank with KL": _ranks(rows)}


def layers(study: Study, once: Callable[[str, Callable[[], Row]], Row]) -> dict[str, Row]:
    """Of each layer and local pattern; what is lost is against dense."""
    found, base = study.everyone(), study.row(study.dense)

    def row(layer: int, p: int) -> Row:
        patterns = [*study.dense.layers]
        patterns[layer] = (found.patterns[p],) * study.heads
        got = study.row(RoutingSpec(tuple(patterns), study.window))
        return {
            "kl": float(found.mean[p, layer].mean()), "change": got["change"], "psnr lost": base["psnr"] - got["psnr"],
            "stlpips lost": got["stlpips"] - base["stlpips"],
        }  # fmt: skip

    return {
        name: once(f"layers: {name}", lambda i=i, p=p: row(i, p))
        for p, pattern in enumerate(found.patterns)
        for i, name in ((i, f"{i}, {pattern_text(pattern)}") for i in range(study.depth))
    }


def _ranks(rows: list[dict[str, Any]]) -> dict[str, Row]:
    """Rank correlation of the KL, and of the layer's number, with what is lost."""
    result = {}
    for name in (*sorted({r["pattern"] for r in rows}), "all"):
        some = [r for r in rows if name in (r["pattern"], "all")]
        value = {key: torch.tensor([float(r[key]) for r in some]) for key in some[0] if key != "pattern"}
        result[name] = {"heads": float(len(some))}
        for lost in ("change", "psnr lost", "stlpips lost"):
            result[name][f"KL, {lost}"] = spearman(value["kl"], value[lost])
        result[name]["layer, change"] = spearman(value["layer"], value["change"])
        result[name]["most psnr lost"] = float(value["psnr lost"].max())
        result[name]["most stlpips lost"] = float(value["stlpips lost"].max())
    return result


def budgets(study: Study, found: Divergences, once: Callable[[str, Callable[[], Row]], Row]) -> dict[str, Row]:
    sizes = study.sizes()

    def row(routing: RoutingSpec) -> Row:
        return study.row(routing) | {"cost": routing.cost(sizes), "kl": mean_kl(found, routing)}

    routings = {"dense": study.dense}
    cheapest = min(extent_of(p, study.window).pairs(sizes) for p in found.patterns) / math.prod(sizes) ** 2
    for budget in (b for b in BUDGETS if b >= cheapest):
        routings[f"{budget:.0%}"] = assign_by_budget(found, budget)
        for seed in range(SEEDS if budget in RANDOM_AT else 0):
            routings[f"{budget:.0%}, random {seed}"] = _shuffled(routings[f"{budget:.0%}"], seed)
    routings["recipe's shares"] = assign_by_shares(found, *RECIPE)
    for seed in range(SEEDS):
        routings[f"recipe's shares, random {seed}"] = _shuffled(routings["recipe's shares"], seed)
    for pattern in found.patterns:
        routings[f"all {pattern_text(pattern)}"] = RoutingSpec.uniform(study.depth, study.heads, pattern, study.window)
    return {name: once(f"budgets: {name}", lambda r=routing: row(r)) for name, routing in routings.items()}


def _shuffled(routing: RoutingSpec, seed: int) -> RoutingSpec:
    """The same patterns at other heads."""
    flat = [p for layer in routing.layers for p in layer]
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed)).tolist()
    n = routing.heads
    return replace(routing, layers=tuple(tuple(flat[i] for i in order[j : j + n]) for j in range(0, len(flat), n)))


def windows(study: Study, once: Callable[[str, Callable[[], Row]], Row]) -> dict[str, Row]:
    sizes, extents = study.sizes(), parse_patterns(EXTENTS)

    def row(pattern: Pattern, kl: float) -> Row:
        routing = RoutingSpec.uniform(study.depth, study.heads, pattern, study.window)
        return study.row(routing) | {"cost": routing.cost(sizes), "kl": kl}

    found = study.measured([e.low for e in study.examples], patterns=extents)
    kl = {p: float(found.mean[i].mean()) for i, p in enumerate(found.patterns)}
    return {
        name: once(f"windows: {name}", lambda p=p: row(p, kl[p]))
        for p, name in ((p, pattern_text(p)) for p in found.patterns)
    }


def mean_kl(found: Divergences, routing: RoutingSpec) -> float:
    """Over all heads; a global one loses nothing."""
    where = {p: i for i, p in enumerate(found.patterns)}
    places = [(p, i, n) for i, layer in enumerate(routing.layers) for n, p in enumerate(layer)]
    kls = [float(found.mean[where[p], i, n]) if p in where else 0.0 for p, i, n in places]
    return sum(kls) / len(kls)


def print_rows(title: str, rows: dict[str, Row]) -> None:
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
    parser.add_argument("--frames", type=int, default=5, help="of each clip (default 5, the training's)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(64, 64), help="rows and columns of the input (default 64 64)"
    )
    parser.add_argument("--clips", type=int, help="only the first clips")
    parser.add_argument("--heads", type=int, default=32, help="heads of section forced, 0: all (default 32)")
    parser.add_argument("--budget", type=float, nargs="+", default=[0.1, 0.35], help="of the stability")
    parser.add_argument("--patterns", default="intra-frame,window", help="local candidates")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; ST-LPIPS runs there, too")
    parser.add_argument("--dtype", default="fp32", help="fp32 (default): changes by one head are small")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    device, path = choose_device(args.device), resolve(args.model)
    dtype = choose_dtype(args.dtype, device)
    checkpoint = load_checkpoint(path, device, dtype)
    check_dense(checkpoint.routing, checkpoint.config.name)
    examples = read_examples(args.data, args.setting, args.frames, tuple(args.size), args.clips)
    study = Study(checkpoint, examples, parse_patterns(args.patterns))
    words = {key: value for key, value in vars(args).items() if key not in ("model", "data", "json")}
    told = [f"--{k} {' '.join(map(str, v)) if isinstance(v, list | tuple) else v}" for k, v in words.items() if v]
    facts = about([args.model, str(args.data), *told], args.data, path, device, dtype, "routing_study.py")
    free = ("sections", "heads", "device")  # results of other sections and heads stay what they are
    same = {k: v for k, v in words.items() if k not in free} | {"weights": facts["weights"]["sha256"]}
    try:
        kept = Kept(args.json, facts | {"what": "see the script's first lines"}, same)
    except ValueError as e:
        parser.error(str(e))
    print(f"{checkpoint.config.name}, {len(examples)} clips, tokens {study.sizes()}, window {study.window}", flush=True)
    study.row(study.dense)  # warms up
    for section in args.sections:
        if section == "heads":
            print({k: v for k, v in kept.once("heads", lambda: heads(study)).items() if k != "patterns"})
        elif section == "stability":
            print_rows("stability", kept.once("stability", lambda: stability(study, args.budget)))
        elif section == "forced":
            rows = kept.results.setdefault("forced heads", [])
            kept.results["forced"] = forced(study, args.heads, rows, kept.save)
            kept.save()
            print_rows("forced: rank correlations", kept.results["forced"]["rank with KL"])
        elif section == "layers":
            print_rows("layers", layers(study, kept.once))
        elif section == "budgets":
            print_rows("budgets", budgets(study, study.everyone(), kept.once))
        else:
            print_rows("windows (all heads)", windows(study, kept.once))


if __name__ == "__main__":
    with torch.inference_mode():
        main()

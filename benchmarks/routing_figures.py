"""The pictures of docs/routing.md: python benchmarks/routing_figures.py STUDY.json [FORCED.json]

Drawn from what ``routing_study.py --json`` wrote (section forced may be in a file of its own), into ``docs/pictures``. A section
that is not there is left out. Needs matplotlib (extra ``[train]``).
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
COLOURS = {"intra-frame": "tab:blue", "window": "tab:orange"}
Results = dict[str, Any]


def heads(results: Results, axes: Axes) -> None:
    """Each head's KL under one pattern against the other."""
    tables = results["heads"]["patterns"]
    x, y = (tables[p] for p in ("intra-frame", "window"))
    layers = [[i] * len(row) for i, row in enumerate(x["kl"])]
    flat = [[v for row in table for v in row] for table in (x["kl"], y["kl"], layers)]
    dots = axes.scatter(flat[0], flat[1], c=flat[2], cmap="viridis", s=22)
    axes.figure.colorbar(dots, ax=axes, label="layer")
    axes.axvline(x["uniform"], color="grey", ls="--", lw=1)
    axes.axhline(y["uniform"], color="grey", ls="--", lw=1)
    axes.set(xlabel="KL intra-frame (nats)", ylabel="KL window (nats)", xlim=(0, None), ylim=(0, None))
    axes.set_title("Each dot a head; dashed: attention that looks everywhere alike", fontsize=9)


def stability(results: Results, axes: Axes) -> None:
    """Heads that get the same pattern, and what that would be by chance."""
    rows = results["stability"]
    names = list(rows)[::-1]
    keys = [key for key in rows[names[0]] if key.startswith("alike ")]
    for n, key in enumerate(keys):
        places = [i + 0.38 * (n - (len(keys) - 1) / 2) for i in range(len(names))]
        budget = key.removeprefix("alike ")
        axes.barh(places, [100 * rows[m][key] for m in names], 0.34, label=f"budget {budget}", color=f"C{n}")
        chance = [100 * rows[m][f"by chance {budget}"] for m in names]
        axes.plot(chance, places, "k|", ms=9, label=None if n else "by chance")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="heads with the same pattern (%)", xlim=(0, 100))
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.09), ncols=3, fontsize=8, frameon=False)


def forced(results: Results, axes: Axes) -> None:
    """KL against what forcing the head does to the picture."""
    for pattern, colour in COLOURS.items():
        rows = [r for r in results["forced heads"] if r["pattern"] == pattern]
        rank = results["forced"]["rank with KL"][pattern]["KL, change"]
        label = f"{pattern}: rank correlation {rank:.2f}"
        axes.scatter([r["kl"] for r in rows], [r["change"] for r in rows], s=22, color=colour, label=label)
    axes.set(xlabel="KL of the head under the pattern (nats)", ylabel="change of the picture (dB)", xlim=(0, None))
    axes.set_title("One head forced to a pattern, all others global", fontsize=9)
    axes.legend(loc="lower right", fontsize=8)


def costs(results: Results, axes: Axes, key: str, label: str, sides: dict[str, tuple[int, int]]) -> None:
    """Attention's cost against one score: chosen by KL, at random, all heads at one extent.

    ``sides``: on which side of its point an extent's name stands, in x and y; right of it and above where none is given.
    """
    budgets = {k.removeprefix("budgets: "): v for k, v in results.items() if k.startswith("budgets: ")}
    extents = {k.removeprefix("windows: "): v for k, v in results.items() if k.startswith("windows: ")}
    chosen = [v for k, v in budgets.items() if k.endswith("%") or (k == "dense" and key != "change")]
    chosen.sort(key=lambda row: row["cost"])
    random = [v for k, v in budgets.items() if "random" in k]

    def points(rows: list[dict[str, float]]) -> tuple[list[float], list[float]]:
        return [100 * r["cost"] for r in rows], [r[key] for r in rows]

    axes.plot(*points(chosen), "o-", ms=4, label="least KL at a budget")
    axes.plot(
        *points([budgets["recipe's shares"]]), "D", ms=5, color="tab:blue", label="least KL at given shares of heads"
    )
    axes.plot(*points(random), "x", ms=5, color="tab:red", label="the same patterns at random heads")
    axes.plot(*points(list(extents.values())), "s", ms=4, color="tab:green", label="all heads at one extent")
    for name, row in extents.items():
        dx, dy = sides.get(name, (1, 1))
        axes.annotate(
            name, (100 * row["cost"], row[key]), (4 * dx, 3 * dy), textcoords="offset points", fontsize=7,
            ha="left" if dx > 0 else "right", va="bottom" if dy > 0 else "top",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    axes.set(xlabel="attention's arithmetic (% of dense)", ylabel=label)
    axes.legend(fontsize=8)


FIGURES = {
    "routing_heads.png": (heads, "heads", (5.2, 3.6)),
    "routing_stability.png": (stability, "stability", (6.4, 4.6)),
    "routing_forced.png": (forced, "forced", (5.2, 3.6)),
    "routing_change.png": (
        partial(
            costs,
            key="change",
            label="change from the dense output (dB, less is closer)",
            sides=dict.fromkeys(
                ("3x3x3", "1x5x5", "window", "5x5x5", "3x7x7", "3x9x9", "5x9x9", "3xallxall"), (-1, -1)
            ),
        ),
        "budgets: dense",
        (5.6, 4.2),
    ),
    "routing_stlpips.png": (
        partial(
            costs,
            key="stlpips",
            label="ST-LPIPS to the ground truth (less is better)",
            sides={"window": (-1, 1), "3x3x3": (-1, 1), "3x7x7": (1, -1), "3xallxall": (-1, 1)},
        ),
        "budgets: dense",
        (5.6, 4.2),
    ),
}
"""What draws each picture, what it needs, and its inches."""


def main() -> None:
    results: Results = {}
    for name in sys.argv[1:]:
        results |= json.loads(Path(name).read_text(encoding="utf-8"))["results"]
    if not results:
        sys.exit(__doc__)
    PICTURES.mkdir(exist_ok=True)
    for name, (draw, needs, inches) in FIGURES.items():
        if needs not in results:
            print(f"{name}: left out, there is no {needs}")
            continue
        figure = Figure(figsize=inches, dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        draw(results, figure.add_subplot())
        figure.savefig(PICTURES / name, pil_kwargs={"optimize": True}, metadata={"Software": None})
        print(f"{name}: {(PICTURES / name).stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()

"""The training log as a picture."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

PANELS = 4
"""Panels per row."""


def read_log(path: Path) -> list[dict[str, float | str]]:
    """The lines of a ``log.jsonl``. A last line that was cut off (the run was killed) is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def plot_log(log: Path, picture: Path) -> None:
    """Write a PNG with a panel for every value of the log against the step; stages are shaded, fidelity 1 is dashed.

    Raises:
        ValueError: the log holds no line.
        ModuleNotFoundError: matplotlib (extra ``[train]``) is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_log(log)
    if not lines:
        raise ValueError(f"{log} holds no line yet; train for some more steps")
    names = list(dict.fromkeys(n for line in lines for n in line if n not in ("step", "stage")))
    panels = [n for n in names if not n.endswith("_faithful")]
    rows = -(-len(panels) // PANELS)
    figure = Figure(figsize=(4 * PANELS, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(rows, PANELS, squeeze=False).flat, panels, strict=False):
        for shade, (_, part) in enumerate(groupby(lines, lambda line: line["stage"])):
            steps = [float(line["step"]) for line in part]
            axes.axvspan(steps[0], steps[-1], alpha=0.06 * (shade % 2), color="black", linewidth=0)
        for key, style in ((name, "-"), (f"{name}_faithful", "--")):
            points = [(float(line["step"]), float(line[key])) for line in lines if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), style, linewidth=0.9)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    for axes in figure.axes[len(panels) :]:
        axes.set_visible(False)
    figure.savefig(picture, dpi=90)

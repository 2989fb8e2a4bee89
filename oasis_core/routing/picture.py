"""Routings as pictures and as text: layers x heads, each pattern in its colour, the KL as shade, two side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .calibrated import CalibratedRouting, KlTable
from .spec import HeadPattern, Pattern, RoutingSpec, extent_of, pattern_text

Color = tuple[int, int, int]
Sizes = tuple[int, int, int]

GRID: Sizes = (16, 45, 80)
"""Tokens that the cost is told for where nothing is said: 16 frames of 1280x720 in tokens of 16x16 pixels, no groups."""
COLORS: dict[Pattern, Color] = {
    HeadPattern.GLOBAL: (230, 159, 0),
    HeadPattern.INTRA_FRAME: (86, 180, 233),
    HeadPattern.WINDOW: (0, 158, 115),
}
"""From Okabe and Ito's palette, which the colour-blind can tell apart (https://jfly.uni-koeln.de/color/)."""
OWN_COLORS: tuple[Color, ...] = ((204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178))
"""Of extents, in the order of ``RoutingSpec.patterns``; then again from the first."""
LETTERS: dict[Pattern, str] = {HeadPattern.GLOBAL: "G", HeadPattern.INTRA_FRAME: "I", HeadPattern.WINDOW: "W"}
BACKGROUND: Color = (32, 34, 38)
INK: Color = (225, 228, 232)
LEAST_SHADE = 0.25
"""Brightness of a head that loses nothing."""
CELL, GAP, MARGIN, LINE, FONT = 22, 2, 16, 20, 13
"""Pixels: side of a head, between heads, around, height of a line of text, of its letters."""
SIDE = 34
"""Pixels left of a map, for the layers' numbers."""
NARROWEST = 300
"""Pixels of a map with its text, at least."""


@dataclass(frozen=True)
class NamedRouting:
    """A routing to show."""

    title: str
    routing: RoutingSpec
    kl: KlTable | None = None
    sizes: Sizes = GRID
    """Token grid (t, h, w) that the cost is told for."""


def named_routing(title: str, text: str) -> NamedRouting:
    """A routing's JSON, with its calibration where it has one. Raises ValueError, one line, for anything else."""
    routing = RoutingSpec.from_json(text)
    if "calibration" not in json.loads(text):
        return NamedRouting(title, routing)
    found = CalibratedRouting.from_json(text)
    return NamedRouting(title, routing, found.kl, found.sizes)


def routing_picture(shown: Sequence[NamedRouting]) -> Image.Image:
    """Each routing's map beside the other's; of two, heads that differ have a white frame.

    The shade is what the head would lose with the cheapest candidate pattern (0: dark, the most of all: bright, by the
    square root), where that was measured.

    Args:
        shown: one or two, of one depth and number of heads.

    Raises:
        ValueError: not one or two, or routings of different models.
    """
    different = differing(shown)
    kinds = tuple(dict.fromkeys((*HeadPattern, *(p for s in shown for p in s.routing.patterns))))
    most = max((v for s in shown if s.kl is not None for v in np.ravel(_least(s.kl, s.routing.window))), default=0.0)
    maps = [_map(s, different, kinds, most) for s in shown]
    notes = []
    if len(shown) == 2:
        heads = shown[0].routing.depth * shown[0].routing.heads
        notes.append(f"{len(different)} of {heads} heads differ ({len(different) / heads:.0%}), framed white")
    if any(s.kl is not None for s in shown):
        notes.append(f"shade: KL of the cheapest pattern, dark 0 to bright {most:.2f} nats")
    width = max(sum(m.width for m in maps), *(_width(note) for note in notes), 0)
    height = max(m.height for m in maps) + LINE * len(notes) + MARGIN
    whole = Image.new("RGB", (width, height), BACKGROUND)
    for i, part in enumerate(maps):
        whole.paste(part, (sum(m.width for m in maps[:i]), 0))
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(FONT)
    for i, note in enumerate(notes):
        draw.text((MARGIN, height - MARGIN - LINE * (len(notes) - i)), note, INK, font)
    return whole


def differing(shown: Sequence[NamedRouting]) -> set[tuple[int, int]]:
    """(layer, head) of the heads that two routings treat differently. Raises ValueError as ``routing_picture``."""
    if not 1 <= len(shown) <= 2:
        raise ValueError(f"{len(shown)} routings were given to show; give one or two")
    first, last = shown[0].routing, shown[-1].routing
    if (first.depth, first.heads) != (last.depth, last.heads):
        raise ValueError(
            f"routings of different models cannot be compared: {shown[0].title} has {first.depth} layers x {first.heads} "
            f"heads, {shown[-1].title} {last.depth} x {last.heads}"
        )
    return {
        (i, n)
        for i in range(first.depth)
        for n in range(first.heads)
        if extent_of(first.layers[i][n], first.window) != extent_of(last.layers[i][n], last.window)
    }


def routing_text(shown: Sequence[NamedRouting], color: bool = False) -> str:
    """The same for a terminal: a letter for each head, of two routings a lower-case one where they differ.

    ``color``: with ANSI's 24-bit colours, the shade as in the picture.
    """
    different = differing(shown)
    lines = []
    for s in shown:
        kinds = tuple(dict.fromkeys((*HeadPattern, *s.routing.patterns)))
        least = None if s.kl is None else _least(s.kl, s.routing.window)
        most = 0.0 if least is None else float(least.max())
        lines += [s.title, "layer  heads"]
        for i, layer in enumerate(s.routing.layers):
            cells = []
            for n, pattern in enumerate(layer):
                letter = _letter(pattern, kinds)
                cell = letter.lower() if (i, n) in different else letter
                if color:
                    r, g, b = _shaded(_color(pattern, kinds), None if least is None else (least[i, n], most))
                    cell = f"\x1b[48;2;{r};{g};{b}m\x1b[38;2;255;255;255m {cell} \x1b[0m"
                cells.append(cell)
            lines.append(f"{i:5}  {('' if color else ' ').join(cells)}")
        lines += [f"{_letter(p, kinds)} {_described(p, s.routing)}" for p in kinds if s.routing.share(p)]
        lines += [_costs(s), ""]
    if len(shown) == 2:
        heads = shown[0].routing.depth * shown[0].routing.heads
        lines.append(f"{len(different)} of {heads} heads differ (lower case)")
    return "\n".join(lines).rstrip()


def _map(shown: NamedRouting, different: set[tuple[int, int]], kinds: tuple[Pattern, ...], most: float) -> Image.Image:
    routing = shown.routing
    legend = [p for p in kinds if routing.share(p)]
    step = CELL + GAP
    texts = [shown.title, _costs(shown), *(f"xxx {_described(p, routing)}" for p in legend)]
    width = max(NARROWEST, SIDE + routing.heads * step + 2 * MARGIN, *map(_width, texts))
    top = MARGIN + 2 * LINE
    picture = Image.new("RGB", (width, top + routing.depth * step + LINE * (len(legend) + 2) + MARGIN), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT)
    draw.text((MARGIN, MARGIN - 4), shown.title, INK, font)
    draw.text((MARGIN, MARGIN + LINE), "layer", INK, ImageFont.load_default(FONT - 3))
    least = None if shown.kl is None else _least(shown.kl, routing.window)
    for n in range(routing.heads):
        draw.text((MARGIN + SIDE + n * step + CELL / 2, MARGIN + LINE + 7), str(n), INK, font, anchor="mm")
    for i, layer in enumerate(routing.layers):
        y = top + i * step
        draw.text((MARGIN + SIDE - 8, y + CELL / 2), str(i), INK, font, anchor="rm")
        for n, pattern in enumerate(layer):
            x = MARGIN + SIDE + n * step
            fill = _shaded(_color(pattern, kinds), None if least is None else (least[i, n], most))
            edge = (255, 255, 255) if (i, n) in different else fill
            draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill, edge, 2)
    y = top + routing.depth * step + LINE // 2
    for pattern in legend:
        draw.rectangle((MARGIN, y + 2, MARGIN + 13, y + 15), _color(pattern, kinds))
        draw.text((MARGIN + 22, y), _described(pattern, routing), INK, font)
        y += LINE
    draw.text((MARGIN, y), _costs(shown), INK, font)
    return picture


def _width(text: str) -> int:
    """Pixels that a line of text needs, its margins included."""
    return ceil(ImageFont.load_default(FONT).getlength(text)) + 2 * MARGIN


def _described(pattern: Pattern, routing: RoutingSpec) -> str:
    window = f" {extent_of(pattern, routing.window)}" if pattern is HeadPattern.WINDOW else ""
    return f"{pattern_text(pattern)}{window}: {routing.share(pattern):.1%}"


def _costs(shown: NamedRouting) -> str:
    return f"attention {shown.routing.cost(shown.sizes):.1%} of dense at {'x'.join(map(str, shown.sizes))} tokens"


def _least(kl: KlTable, window: Sizes) -> NDArray[np.float64]:
    """KL ``(depth, heads)`` of the candidate that sees least."""
    cheapest = min(kl.patterns, key=lambda p: extent_of(p, window).pairs(GRID))
    return np.asarray(kl.mean[kl.patterns.index(cheapest)])


def _color(pattern: Pattern, kinds: tuple[Pattern, ...]) -> Color:
    own = [p for p in kinds if p not in COLORS]
    return COLORS[pattern] if pattern in COLORS else OWN_COLORS[own.index(pattern) % len(OWN_COLORS)]


def _letter(pattern: Pattern, kinds: tuple[Pattern, ...]) -> str:
    own = [p for p in kinds if p not in LETTERS]
    return LETTERS[pattern] if pattern in LETTERS else "ABCDEFHJKLMNOPQRSTUV"[own.index(pattern) % 20]


def _shaded(color: Color, loss: tuple[float, float] | None) -> Color:
    """``loss``: the head's and the most of all; None: not known, full colour."""
    share = (
        1.0
        if loss is None
        else LEAST_SHADE + (1 - LEAST_SHADE) * (max(0.0, loss[0]) / loss[1] if loss[1] > 0 else 0.0) ** 0.5
    )
    r, g, b = (round(BACKGROUND[i] + (color[i] - BACKGROUND[i]) * min(1.0, max(0.0, share))) for i in range(3))
    return r, g, b

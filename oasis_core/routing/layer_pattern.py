"""A routing from a pattern that repeats over the layers: ``"window*2, global"``."""

from __future__ import annotations

import re

from .spec import DEFAULT_WINDOW, HeadPattern, RoutingSpec

EXAMPLE = '"window*2, global"'
_ITEM = re.compile(r"([a-z-]+)\s*(?:\*\s*(\d+))?")
_PATTERNS = {p.value: p for p in HeadPattern}


def by_layers(depth: int, heads: int, text: str, window: tuple[int, int, int] = DEFAULT_WINDOW) -> RoutingSpec:
    """Every head of a layer alike; the layers follow ``text``, which begins again where it ends before them.

    Args:
        text: patterns separated by commas, each for one layer, or ``PATTERN*COUNT`` for COUNT layers (1 or more).
            ``"window*2, global"``: layers 0 and 1 window, 2 global, 3 and 4 window, and so on.

    Raises:
        ValueError: one line that quotes what is wrong; a text for more than ``depth`` layers, too.
    """
    layers: list[HeadPattern] = []
    for item in text.lower().split(","):
        found = _ITEM.fullmatch(item.strip())
        if found is None:
            raise ValueError(
                f"layer pattern {text!r}: {item.strip()!r} is not PATTERN or PATTERN*COUNT, as in {EXAMPLE}"
            )
        name, count = found[1], int(found[2] or 1)
        if name not in _PATTERNS:
            raise ValueError(f"layer pattern {text!r} names {name!r}; known patterns: {', '.join(_PATTERNS)}")
        if not 1 <= count <= depth - len(layers):
            raise ValueError(
                f"layer pattern {text!r}: {item.strip()!r} is for {count} layers; this model has {depth}, of which "
                f"{depth - len(layers)} are left for it"
            )
        layers += [_PATTERNS[name]] * count
    return RoutingSpec(tuple((layers[i % len(layers)],) * heads for i in range(depth)), window)

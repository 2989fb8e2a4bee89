"""A routing from a pattern that repeats over the layers: ``"window*2, 3x7x7, global"``."""

from __future__ import annotations

import re

from .spec import DEFAULT_WINDOW, Pattern, RoutingSpec, parse_pattern

EXAMPLE = '"window*2, global" or "3x7x7*2, global"'
_ITEM = re.compile(r"([^*]*[^*\s])\s*(?:\*\s*(\d+))?", re.ASCII)


def by_layers(depth: int, heads: int, text: str, window: tuple[int, int, int] = DEFAULT_WINDOW) -> RoutingSpec:
    """Every head of a layer alike; the layers follow ``text``, which begins again where it ends before them.

    Args:
        text: patterns separated by commas, each for one layer, or ``PATTERN*COUNT`` for COUNT layers (1 or more). A pattern
            is global, intra-frame, window, or an extent in frames x token rows x token columns such as 3x7x7 or 3xallxall.
            ``"window*2, global"``: layers 0 and 1 window, 2 global, 3 and 4 window, and so on.
        window: what ``window`` means, (frames, token rows, token columns), odd.

    Raises:
        ValueError: one line that quotes what is wrong; a text for more than ``depth`` layers, too.
    """
    layers: list[Pattern] = []
    for item in text.lower().split(","):
        found = _ITEM.fullmatch(item.strip())
        if found is None:
            raise ValueError(
                f"layer pattern {text!r}: {item.strip()!r} is not PATTERN or PATTERN*COUNT, as in {EXAMPLE}"
            )
        count = int(found[2] or 1)
        try:
            pattern = parse_pattern(found[1])
        except ValueError as e:
            raise ValueError(f"layer pattern {text!r} names {e}") from None
        if not 1 <= count <= depth - len(layers):
            raise ValueError(
                f"layer pattern {text!r}: {item.strip()!r} is for {count} layers; this model has {depth}, of which "
                f"{depth - len(layers)} are left for it"
            )
        layers += [pattern] * count
    return RoutingSpec(tuple((layers[i % len(layers)],) * heads for i in range(depth)), window)

"""Short rules that change some layers or heads of a routing: ``"0-5: window; 6: 0-3 global, 7 intra-frame"``."""

from __future__ import annotations

import re
from dataclasses import replace

from .spec import Pattern, RoutingSpec, parse_pattern

EXAMPLE = '"0-5: window; 6: 0-3 global"'
_SPAN = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


def apply_rules(routing: RoutingSpec, rules: str) -> RoutingSpec:
    """The routing with its layers and heads overridden; later rules win over earlier ones.

    Args:
        rules: ``LAYERS: CHANGES`` separated by semicolons or line ends; LAYERS is a number, a span ``a-b`` or ``all``;
            CHANGES are separated by commas, each a pattern (all heads) or ``HEADS pattern``, HEADS a number or a span; a
            pattern is global, intra-frame, window or an extent such as 3x7x7 or 3xallxall.
            Numbers start at 0. An empty text changes nothing.

    Raises:
        ValueError: one line that quotes the rule, what is wrong with it, and the range.
    """
    layers = [list(layer) for layer in routing.layers]
    for rule in re.split(r"[;\n]", rules):
        if not rule.strip():
            continue
        where, colon, changes = rule.partition(":")
        if not colon or not changes.strip():
            raise ValueError(f"routing rule {rule.strip()!r} is not LAYERS: CHANGES, such as {EXAMPLE}")
        for change in changes.split(","):
            heads, pattern = _change(change, rule, routing.heads)
            for layer in _span(where, rule, "layer", routing.depth):
                for head in heads:
                    layers[layer][head] = pattern
    return replace(routing, layers=tuple(tuple(layer) for layer in layers))


def _change(text: str, rule: str, heads: int) -> tuple[range, Pattern]:
    words = text.split()
    try:
        pattern = parse_pattern(words[-1].lower() if words else "")
    except ValueError as e:
        raise ValueError(f"routing rule {rule.strip()!r} names the pattern {e}") from None
    return _span(" ".join(words[:-1]) or "all", rule, "head", heads), pattern


def _span(text: str, rule: str, what: str, count: int) -> range:
    if text.strip().lower() == "all":
        return range(count)
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"routing rule {rule.strip()!r}: {text.strip()!r} is no {what}; give a number, a-b or all")
    first = int(found[1])
    last = int(found[2] or first)
    if not first <= last < count:
        raise ValueError(f"routing rule {rule.strip()!r}: {what} {text.strip()} is not within 0 to {count - 1}")
    return range(first, last + 1)

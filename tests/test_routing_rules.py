"""Rules that override parts of a routing, and patterns that repeat over its layers."""

from __future__ import annotations

import random

import pytest

from oasis_core.routing import Extent
from oasis_core.routing.layer_pattern import by_layers
from oasis_core.routing.rules import apply_rules
from oasis_core.routing.spec import HeadPattern, Pattern, RoutingSpec

E = Extent
G, I, W = HeadPattern.GLOBAL, HeadPattern.INTRA_FRAME, HeadPattern.WINDOW  # noqa: E741
BASE = RoutingSpec.uniform(8, 4, G, (3, 7, 7))


def test_layers_heads_and_order() -> None:
    got = apply_rules(BASE, "0-5: window; 6: 0-2 intra-frame, 3 window\nall: 1 global ;")
    assert got.layers[:6] == ((W, G, W, W),) * 6
    assert got.layers[6:] == ((I, G, I, W), (G,) * 4)
    assert got.window == (3, 7, 7)
    assert apply_rules(BASE, " \n;") == BASE


def test_extents_of_a_heads_own() -> None:
    got = apply_rules(BASE, "0: 3xallxall; 1: 0-1 allx3x3, 2 3X7X7")
    assert got.layers[0] == (Extent(3, None, None),) * 4
    assert got.layers[1] == (Extent(None, 3, 3), Extent(None, 3, 3), W, G)  # the third is this routing's window


def test_any_routing_can_be_written_as_rules() -> None:
    rng = random.Random(0)
    for _ in range(20):
        layers = tuple(tuple(rng.choice((G, I, W)) for _ in range(4)) for _ in range(8))
        rules = "; ".join(
            f"{i}: " + ", ".join(f"{n} {p.value}" for n, p in enumerate(layer)) for i, layer in enumerate(layers)
        )
        assert apply_rules(BASE, rules).layers == layers


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ("window", "is not LAYERS: CHANGES"),
        ("3:", "is not LAYERS: CHANGES"),
        ("8: window", "layer 8 is not within 0 to 7"),
        ("3-1: window", "layer 3-1 is not within 0 to 7"),
        ("0: 4 window", "head 4 is not within 0 to 3"),
        ("0: 1 sideways", "pattern 'sideways'; known patterns: global, intra-frame, window"),
        ("0: 4x4x4", "pattern '4x4x4'; known patterns: .* or an extent such as 3x7x7"),
        ("first: window", "'first' is no layer; give a number, a-b or all"),
        ("0: window,", "names the pattern ''"),
    ],
)
def test_what_makes_no_sense_is_one_line(rules: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        apply_rules(BASE, rules)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("window*2, global", (W, W, G, W, W, G, W, W)),
        ("global", (G,) * 8),
        (" Intra-Frame , window * 3,global*4", (I, W, W, W, G, G, G, G)),
        ("5x9x9, 3X1X1 *2, global", (E(5, 9, 9), E(3, 1, 1), E(3, 1, 1), G) * 2),
        ("3xallxall*7, allx3x5", (*(E(3, None, None),) * 7, E(None, 3, 5))),
        ("3x7x7, allxallxall, 1xallxall, allx1x1", (W, G, I, E(None, 1, 1)) * 2),  # the presets by their extents
    ],
)
def test_a_pattern_repeats_over_the_layers(text: str, layers: tuple[Pattern, ...]) -> None:
    assert by_layers(8, 4, text, (3, 7, 7)) == RoutingSpec(tuple((p,) * 4 for p in layers), (3, 7, 7))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is not PATTERN or PATTERN"),
        ("window, ", "'' is not PATTERN or PATTERN"),
        ("2*window", "'2\\*window' is not PATTERN"),
        ("window*2*2", "'window\\*2\\*2' is not PATTERN"),
        ("*2", "'\\*2' is not PATTERN"),
        ("sideways*2", "names 'sideways'; known patterns: global, intra-frame, window, or an extent such as 3x7x7"),
        ("window, 3x4x7", "names '3x4x7'; known patterns: .* or an extent such as 3x7x7"),
        ("3x7", "names '3x7'; known patterns"),
        ("2 window", "names '2 window'; known patterns"),
        ("window*0", "is for 0 layers"),
        ("window*6, global*3", "'global\\*3' is for 3 layers; this model has 8, of which 2 are left"),
        ("window*99999999999999999999", "this model has 8"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_one_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        by_layers(8, 4, text)
    assert "\n" not in str(caught.value)

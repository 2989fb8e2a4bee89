"""Routing as data, its errors, and how a head's pattern is found."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from oasis_core.attention import TokenGrid
from oasis_core.attention.reference import pattern_mask
from oasis_core.routing import Extent, HeadPattern, RoutingSpec

GLOBAL, FRAME, NEAR = HeadPattern.GLOBAL, HeadPattern.INTRA_FRAME, HeadPattern.WINDOW
WINDOW = (3, 5, 5)


def random_spec(seed: int) -> RoutingSpec:
    r = random.Random(seed)
    heads = r.randint(1, 12)
    layers = tuple(tuple(r.choice(list(HeadPattern)) for _ in range(heads)) for _ in range(r.randint(1, 8)))
    return RoutingSpec(layers, (r.choice([1, 3, 5]), r.choice([1, 5, 7]), r.choice([1, 3, 9])))


def valid() -> dict[str, object]:
    return json.loads(RoutingSpec(((GLOBAL, NEAR), (FRAME, NEAR))).to_json())


@pytest.mark.parametrize("seed", range(20))
def test_json_and_hash_round_trip(seed: int, tmp_path: Path) -> None:
    spec = random_spec(seed)
    again = RoutingSpec.from_json(spec.to_json())
    assert again == spec
    assert hash(again) == hash(spec)
    assert {spec: 1}[again] == 1
    path = tmp_path / "routing.json"
    path.write_text(json.dumps(json.loads(spec.to_json()), indent=2), encoding="utf-8")
    assert RoutingSpec.from_file(path) == spec


@pytest.mark.parametrize("seed", range(20))
def test_shares_and_heads_of_add_up(seed: int) -> None:
    spec = random_spec(seed)
    assert sum(spec.share(p) for p in HeadPattern) == pytest.approx(1)
    for layer in range(spec.depth):
        heads = [n for p in HeadPattern for n in spec.heads_of(layer, p)]
        assert sorted(heads) == list(range(spec.heads))
        assert all(spec.layers[layer][n] is p for p in HeadPattern for n in spec.heads_of(layer, p))


def test_uniform() -> None:
    spec = RoutingSpec.uniform(3, 2, FRAME, (1, 3, 3))
    assert spec == RoutingSpec(((FRAME, FRAME),) * 3, (1, 3, 3))
    assert [spec.share(p) for p in HeadPattern] == [0, 1, 0]


@pytest.mark.parametrize(
    ("shares", "layer"),
    [
        ((0.25, 0.25), (GLOBAL, FRAME, NEAR, NEAR)),
        ((0, 0), (NEAR, NEAR, NEAR, NEAR)),
        ((1, 0), (GLOBAL, GLOBAL, GLOBAL, GLOBAL)),
        ((0, 1), (FRAME, FRAME, FRAME, FRAME)),
        ((0.5, 0.5), (GLOBAL, GLOBAL, FRAME, FRAME)),
        ((0.4, 0.6), (GLOBAL, GLOBAL, FRAME, FRAME)),  # 1.6 and 2.4 heads
        ((0.625, 0.375), (GLOBAL, GLOBAL, FRAME, FRAME)),  # 2.5 and 1.5: to even, no more heads than there are
    ],
)
def test_by_ratio(shares: tuple[float, float], layer: tuple[HeadPattern, ...]) -> None:
    assert RoutingSpec.by_ratio(2, 4, *shares) == RoutingSpec((layer, layer))


def test_by_ratio_takes_shares_whose_sum_rounds_above_one() -> None:
    assert RoutingSpec.by_ratio(1, 10, 0.7, 0.1 + 0.2).share(FRAME) == pytest.approx(0.3)


@pytest.mark.parametrize("shares", [(-0.1, 0), (0, -0.1), (1.1, 0), (0.6, 0.5), (float("nan"), 0)])
def test_by_ratio_refuses_other_shares(shares: tuple[float, float]) -> None:
    refused("head shares are", lambda: RoutingSpec.by_ratio(1, 4, *shares))


def refused(message: str, act: object, error: type[Exception] = ValueError) -> None:
    """``act`` raises that error, in one line that holds ``message``."""
    with pytest.raises(error) as caught:
        act()  # type: ignore[operator]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, 'no "format": "oasis-routing"'),
        ({"version": 2}, "version is 2; this program reads version 1"),
        ({"version": None}, "version is None"),
        ({"layers": [["global", "local"]]}, "layer 0 names the pattern 'local'; known patterns: global"),
        ({"layers": [["global"], [3]]}, "layer 1 names the pattern 3"),
        ({"layers": [["global"], [["global"]]]}, "layer 1 names the pattern ['global']"),
        ({"layers": [["global", "window"], ["window"]]}, "different head counts [1, 2]"),
        ({"layers": []}, "no layers or no heads"),
        ({"layers": [[]]}, "no layers or no heads"),
        ({"layers": "global"}, '"layers"'),
        ({"layers": None}, '"layers"'),
        ({"layers": ["global"]}, '"layers"'),
        ({"window": [3, 4, 5]}, "three odd whole numbers"),
        ({"window": [3, 5]}, "three odd whole numbers"),
        ({"window": [3, 5, -1]}, "three odd whole numbers"),
        ({"window": [3, 5, 5.0]}, "three odd whole numbers"),
        ({"window": [3, 5, True]}, "three odd whole numbers"),
        ({"window": 5}, "three odd whole numbers"),
    ],
)
def test_json_that_is_not_a_routing_is_refused_in_one_line(change: dict[str, object], message: str) -> None:
    refused(message, lambda: RoutingSpec.from_json(json.dumps(valid() | change)))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", "3", "null", "not json", pytest.param("[" * 100_000, id="deep"), "\x00", '{"format":\n}'],
)
def test_text_that_is_not_a_routing_is_refused_in_one_line(text: str) -> None:
    refused("routing", lambda: RoutingSpec.from_json(text))


def test_window_may_be_left_out_of_the_json() -> None:
    data = valid()
    del data["window"]
    assert RoutingSpec.from_json(json.dumps(data)).window == WINDOW


def test_files_that_are_not_a_routing_are_named(tmp_path: Path) -> None:
    refused("routing file not found: ", lambda: RoutingSpec.from_file(tmp_path / "none.json"), FileNotFoundError)
    refused("routing file not found: ", lambda: RoutingSpec.from_file(tmp_path), FileNotFoundError)
    path = tmp_path / "bad.json"
    for content in (b"\xff\xfe\x00\x80", b"\x80abc", b"", b"hello", b'{"format": "oasis-routing", "version": 9}'):
        path.write_bytes(content)
        refused(str(path), lambda: RoutingSpec.from_file(path))


def test_the_routing_of_another_model_is_refused() -> None:
    spec = RoutingSpec.uniform(3, 4, NEAR)
    spec.check_fits(3, 4)
    for depth, heads in ((4, 3), (3, 5), (2, 4)):
        refused(f"3 layers x 4 heads, this model has {depth} x {heads}", lambda d=depth, h=heads: spec.check_fits(d, h))


# Extents of a head's own.


@pytest.mark.parametrize("text", ["3x7x7", "3xallxall", "allx3x3", "1x1x1", "11xallx5"])
def test_an_extents_text_reads_back(text: str) -> None:
    assert str(Extent.parse(text)) == text
    assert Extent.parse(f" {text.upper()} ") == Extent.parse(text)
    spec = RoutingSpec(((Extent.parse(text), NEAR),))
    assert RoutingSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "text", ["3x4x5", "0x3x3", "-1x3x3", "3x3", "3x3x3x3", "axbxc", "3 x 3 x 3", "3.0x3x3", "", "x" * 9999]
)
def test_what_is_no_extent_is_refused_in_one_line(text: str) -> None:
    refused("head extent is", lambda: Extent.parse(text))
    refused(
        "known patterns: global, intra-frame, window, or an extent such as 3x7x7",
        lambda: RoutingSpec.from_json(json.dumps(valid() | {"layers": [[text]]})),
    )


def test_an_extent_that_is_a_preset_becomes_it() -> None:
    own = (Extent(None, None, None), Extent(1, None, None), Extent(3, 7, 7), Extent(3, 5, 5))
    assert RoutingSpec((own,), (3, 7, 7)).layers == ((GLOBAL, FRAME, NEAR, Extent(3, 5, 5)),)
    assert RoutingSpec((own,), (3, 7, 7)).patterns == (GLOBAL, FRAME, NEAR, Extent(3, 5, 5))
    assert RoutingSpec((own,), (3, 7, 7)).shares() == "25% global, 25% intra-frame, 25% window, 25% 3x5x5"


def test_cost_is_the_share_of_pairs() -> None:
    grid = TokenGrid(3, 6, 7)
    spec = RoutingSpec(((GLOBAL, FRAME), (NEAR, Extent(None, 1, 3))))
    seen = [pattern_mask(grid, p, WINDOW).float().mean() for layer in spec.layers for p in layer]
    assert spec.cost((3, 6, 7)) == pytest.approx(float(sum(seen)) / 4)
    assert RoutingSpec.uniform(2, 3, GLOBAL).cost((4, 5, 6)) == 1

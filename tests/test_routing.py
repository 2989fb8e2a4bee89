"""Routing as data, its errors, and how a head's pattern is found."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from oasis_core.attention import TokenGrid
from oasis_core.attention.reference import pattern_mask
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.routing import Extent, HeadPattern, RoutingSpec
from oasis_core.routing.calibration import assign, localisation_kl, measure

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


# Calibration.


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 7), (2, 9, 1), (5, 3, 3)])
@pytest.mark.parametrize("window", [WINDOW, (1, 3, 3)])
def test_localisation_kl_is_the_kl_of_the_attention_matrices(
    shape: tuple[int, int, int], window: tuple[int, int, int]
) -> None:
    grid = TokenGrid(*shape)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, grid.length, 3, 8, generator=generator, dtype=torch.float64) * 1.5 for _ in range(2))
    queries = torch.randperm(grid.length, generator=generator)[: 1 + grid.length // 2]
    got = localisation_kl(q, k, grid, window, queries)
    assert set(got) == {FRAME, NEAR}
    scores = torch.einsum("bqnd,blnd->bnql", q[:, queries], k) * 8**-0.5
    whole = scores.softmax(-1)
    for pattern, kl in got.items():
        local = scores.masked_fill(~pattern_mask(grid, pattern, window)[queries], float("-inf")).softmax(-1)
        expected = torch.where(local > 0, local * (local / whole).log(), 0).sum(-1).mean((0, 2))
        assert kl.shape == (3,)
        assert (kl - expected).abs().max() < 1e-5  # the code computes in fp32
        if grid.length > 1:
            assert expected.max() > 0.1


def heads_of_each_kind(grid: TokenGrid, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k ``(1, L, 3, D)``: head 0 looks for tokens anywhere, head 1 at its frame, head 2 at its neighbourhood.

    Position codes make q . k fall with the squared distance along the axes that matter to the head.
    """
    index = torch.arange(grid.length)
    t, h, w = (x.float() for x in (index // grid.frame, index // grid.w % grid.h, index % grid.w))

    def near(*axes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ones = torch.ones_like(t)
        q = [x for a in axes for x in (2 * a, -ones)]
        k = [x for a in axes for x in (a, a * a)]
        pad = [torch.zeros_like(t)] * (6 - len(q))
        return torch.stack([*q, *pad], -1) * 6, torch.stack([*k, *pad], -1)

    anywhere = torch.randn(grid.length, 6, generator=generator), torch.randn(grid.length, 6, generator=generator)
    pairs = (anywhere, near(t), near(t, h, w))
    return torch.stack([q for q, _ in pairs], 1)[None], torch.stack([k for _, k in pairs], 1)[None]


@pytest.mark.parametrize("seed", range(5))
def test_heads_built_to_a_pattern_are_recovered(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    grid = TokenGrid(4, 9, 12)
    truth = torch.stack([torch.randperm(3, generator=generator) for _ in range(4)])  # kind of each head of each layer
    rows: dict[HeadPattern, list[torch.Tensor]] = {FRAME: [], NEAR: []}
    for kinds in truth:
        q, k = (x[:, :, kinds] for x in heads_of_each_kind(grid, generator))
        kl = localisation_kl(q, k, grid, WINDOW, torch.randperm(grid.length, generator=generator)[:100])
        for pattern, row in rows.items():
            row.append(kl[pattern])
    spec = assign({pattern: torch.stack(row) for pattern, row in rows.items()}, 1 / 3, 1 / 3, WINDOW)
    assert spec.layers == tuple(tuple((GLOBAL, FRAME, NEAR)[kind] for kind in kinds) for kinds in truth.tolist())


@pytest.mark.parametrize(
    ("global_share", "intra_share"), [(0, 0), (0.25, 0.25), (0.5, 0.5), (1, 0), (0, 1), (0.1, 0.3)]
)
def test_assign_keeps_to_the_shares(global_share: float, intra_share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    kl = {p: torch.rand(5, 8, generator=generator) for p in (FRAME, NEAR)}
    spec = assign(kl, global_share, intra_share, (1, 3, 3))
    assert (spec.depth, spec.heads, spec.window) == (5, 8, (1, 3, 3))
    assert spec.share(GLOBAL) == round(global_share * 40) / 40
    assert spec.share(FRAME) <= round(intra_share * 40) / 40
    loss = torch.minimum(kl[FRAME], kl[NEAR])
    kept = torch.tensor([[p is GLOBAL for p in layer] for layer in spec.layers])
    if kept.any() and not kept.all():
        assert loss[kept].min() >= loss[~kept].max()
    gain = kl[NEAR] - kl[FRAME]
    assert all(gain[i, n] > 0 for i in range(5) for n in spec.heads_of(i, FRAME))  # dearer only where it is better


def tiny_model() -> OasisModel:
    torch.manual_seed(0)
    model = OasisModel(
        OasisConfig(
            name="tiny",
            unshuffle=(1, 4, 4),
            latent_channels=4,
            dim=24,
            depth=2,
            heads=3,
            ffn_dim=16,
            freq_dim=8,
            decoder=PixelDecoderConfig(width=2, blocks=0, hr_width=1, hr_blocks=0),
        )
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def test_measure_a_model() -> None:
    model = tiny_model()
    clips = [torch.rand(1, 3, 3, 32, 40) * 2 - 1 for _ in range(2)]
    kl = measure(model, clips, queries=16)
    assert set(kl) == {FRAME, NEAR}
    assert all(x.shape == (2, 3) and x.isfinite().all() and (x > 0).all() for x in kl.values())
    assert all(torch.equal(a, b) for a, b in zip(kl.values(), measure(model, clips, queries=16).values(), strict=True))
    every = [measure(model, [clip], queries=10**6) for clip in clips]
    together = measure(model, clips, queries=10**6)
    for p in kl:
        torch.testing.assert_close(together[p], (every[0][p] + every[1][p]) / 2)
    assign(kl, 0.2, 0.3).check_fits(2, 3)


def test_measure_without_clips_is_refused() -> None:
    refused("calibration got no clips", lambda: measure(tiny_model(), []))

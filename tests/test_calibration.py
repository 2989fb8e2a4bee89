"""How a head's pattern is found: divergences from log-sum-exps, their confidence, and the assignments."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from oasis_core.attention import TokenGrid
from oasis_core.attention.reference import pattern_mask
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.routing import Extent, HeadPattern, RoutingSpec, divergence
from oasis_core.routing.assignment import assign_by_budget, assign_by_shares, assign_by_threshold
from oasis_core.routing.budget import cheapest_within
from oasis_core.routing.calibration import Divergences, check_dense, measure
from oasis_core.routing.divergence import localisation_kl
from oasis_core.routing.spec import extent_of

GLOBAL, FRAME, NEAR = HeadPattern.GLOBAL, HeadPattern.INTRA_FRAME, HeadPattern.WINDOW
WINDOW = (3, 5, 5)
GRID = TokenGrid(4, 9, 12)
EXTENTS = [extent_of(p, WINDOW) for p in (FRAME, NEAR)] + [
    Extent.parse(t) for t in ("3xallxall", "allx3x3", "1x3x3", "allxallx1")
]


def measured(mean: torch.Tensor, patterns: tuple[object, ...] = (FRAME, NEAR), grid: TokenGrid = GRID) -> Divergences:
    """As if ``mean`` ``(P, depth, heads)`` had been measured."""
    return Divergences(patterns, WINDOW, mean.double(), torch.zeros_like(mean), mean[None].double(), (grid,))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 7), (2, 9, 1), (5, 3, 3)])
@pytest.mark.parametrize("scores", [7, 60, 2**20])
def test_localisation_kl_is_the_kl_of_the_attention_matrices(
    shape: tuple[int, int, int], scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp64, to 1e-10; however few scores are held at a time."""
    monkeypatch.setitem(divergence.SCORES, "cpu", scores)
    grid = TokenGrid(*shape)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, grid.length, 3, 8, generator=generator, dtype=torch.float64) * 1.5 for _ in range(2))
    queries = torch.randperm(grid.length, generator=generator)[: 1 + grid.length // 2]
    got = localisation_kl(q, k, grid, EXTENTS, queries)
    assert got.shape == (len(EXTENTS), 2, len(queries), 3)
    whole = (torch.einsum("bqnd,blnd->bqnl", q[:, queries], k) * 8**-0.5).softmax(-1)
    for extent, kl in zip(EXTENTS, got, strict=True):
        seen = pattern_mask(grid, extent, WINDOW)[queries][:, None]
        local = torch.where(seen, whole, 0)
        local = local / local.sum(-1, keepdim=True)
        expected = torch.where(seen, local * (local.clamp_min(1e-300) / whole).log(), 0).sum(-1)
        assert (kl - expected).abs().max() < 1e-10
        if not bool(seen.all()):
            assert expected.max() > 0.1
    again = divergence.Localisation(grid, EXTENTS, queries)
    assert torch.equal(again.kl(k, q), localisation_kl(k, q, grid, EXTENTS, queries))
    assert torch.equal(again.kl(q, k), got)  # nothing of another layer is left
    single = localisation_kl(q.float(), k.float(), grid, EXTENTS, queries)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), got, atol=1e-5, rtol=1e-5)


def heads_of_each_kind(grid: TokenGrid, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k ``(1, L, 4, D)``: head 0 looks for tokens anywhere, head 1 at its frame, 2 at its neighbourhood, 3 at its columns.

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
    pairs = (anywhere, near(t), near(t, h, w), near(w))
    return torch.stack([q for q, _ in pairs], 1)[None], torch.stack([k for _, k in pairs], 1)[None]


@pytest.mark.parametrize("seed", range(5))
def test_heads_built_to_a_pattern_are_recovered(seed: int) -> None:
    """By threshold, by the budget that the truth costs, and (of the paper's three) by shares."""
    generator = torch.Generator().manual_seed(seed)
    grid = TokenGrid(4, 9, 12)
    kinds: tuple[object, ...] = (GLOBAL, FRAME, NEAR, Extent.parse("allxallx3"))
    truth = torch.stack([torch.randperm(4, generator=generator) for _ in range(4)])
    rows = []
    for order in truth:
        q, k = (x[:, :, order] for x in heads_of_each_kind(grid, generator))
        chosen = torch.randperm(grid.length, generator=generator)[:100]
        extents = [extent_of(p, WINDOW) for p in kinds[1:]]  # type: ignore[arg-type]
        rows.append(localisation_kl(q, k, grid, extents, chosen).mean((1, 2)))
    found = measured(torch.stack(rows, 1), kinds[1:], grid)
    expected = RoutingSpec(tuple(tuple(kinds[i] for i in order) for order in truth.tolist()), WINDOW)  # type: ignore[misc]
    assert assign_by_threshold(found, 0.2) == expected
    assert assign_by_budget(found, expected.cost((4, 9, 12)) + 1e-9) == expected
    three = truth[truth != 3].reshape(4, 3)
    of_three = torch.stack([row[:2, order != 3] for row, order in zip(rows, truth, strict=True)], 1)
    spec = assign_by_shares(measured(of_three), 1 / 3, 1 / 3)
    assert spec.layers == tuple(tuple(kinds[i] for i in order) for order in three.tolist())


@pytest.mark.parametrize(
    ("global_share", "intra_share"), [(0, 0), (0.25, 0.25), (0.5, 0.5), (1, 0), (0, 1), (0.1, 0.3)]
)
def test_assignment_by_shares_keeps_to_them(global_share: float, intra_share: float) -> None:
    kl = torch.rand(2, 5, 8, generator=torch.Generator().manual_seed(0))
    spec = assign_by_shares(measured(kl), global_share, intra_share)
    assert (spec.depth, spec.heads, spec.window) == (5, 8, WINDOW)
    assert spec.share(GLOBAL) == round(global_share * 40) / 40
    assert spec.share(FRAME) <= round(intra_share * 40) / 40
    loss = kl.min(0).values
    kept = torch.tensor([[p is GLOBAL for p in layer] for layer in spec.layers])
    if kept.any() and not kept.all():
        assert loss[kept].min() >= loss[~kept].max()
    gain = kl[1] - kl[0]
    assert all(gain[i, n] > 0 for i in range(5) for n in spec.heads_of(i, FRAME))  # dearer only where it is better


def test_assignment_by_threshold_takes_the_cheapest_that_holds() -> None:
    kl = torch.tensor([[[0.1, 0.1, 0.9, 0.9]], [[0.2, 0.9, 0.2, 0.9]]])
    assert assign_by_threshold(measured(kl), 0.5).layers == ((NEAR, FRAME, NEAR, GLOBAL),)
    assert assign_by_threshold(measured(kl), 0).layers == ((GLOBAL,) * 4,)
    assert assign_by_threshold(measured(kl), 1).layers == ((NEAR,) * 4,)
    small = TokenGrid(1, 3, 3)  # both see everything: the better one of equally cheap ones
    assert assign_by_threshold(measured(kl, grid=small), 0.5).layers == ((GLOBAL,) * 4,)


# The budget.


@pytest.mark.parametrize("seed", range(60))
def test_the_budget_is_solved_exactly(seed: int) -> None:
    """Against every assignment there is. Some losses are ties, some costs equal."""
    g = np.random.default_rng(seed)
    heads, options = int(g.integers(1, 7)), int(g.integers(1, 5))
    loss = g.random((heads, options)) if seed % 3 else g.integers(0, 4, (heads, options)).astype(float)
    cost = g.integers(0, 12, options)
    budget = int(g.integers(int(cost.min()) * heads, int(cost.max()) * heads + 2))
    every = [c for c in product(range(options), repeat=heads) if cost[list(c)].sum() <= budget]
    best = min(loss[range(heads), list(c)].sum() for c in every)
    choice = cheapest_within(loss, cost, budget)
    assert cost[choice].sum() <= budget
    assert loss[range(heads), choice].sum() == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("options", [3, 6])
@pytest.mark.parametrize("like", [False, True])
def test_the_budget_of_a_large_model_is_solved_too(options: int, like: bool) -> None:
    """360 heads, as in the full size; ``like``: heads that hardly differ. Never above the Lagrangian's own solution."""
    g = np.random.default_rng(options)
    loss = np.sort(g.random((360, options)) ** 3, 1)
    loss = loss[:1] * (1 + 1e-3 * g.random((360, 1))) if like else loss
    cost = np.sort(g.integers(1, 10**9, options))[::-1].copy()
    budget = int(cost.min() * 360 + 0.3 * (cost.max() - cost.min()) * 360)
    choice = cheapest_within(loss, cost, budget)
    assert cost[choice].sum() <= budget
    value = loss[range(360), choice].sum()
    bound = max(float((loss + p * cost).min(1).sum() - p * budget) for p in np.geomspace(1e-12, 1e-7, 400))
    assert bound - 1e-9 <= value <= bound + float(loss.max())


def test_a_budget_below_the_cheapest_is_refused() -> None:
    found = measured(torch.rand(2, 2, 3))
    least = RoutingSpec.uniform(2, 3, NEAR).cost((4, 9, 12))
    assert assign_by_budget(found, least + 1e-9).share(NEAR) == 1
    assert assign_by_budget(found, 1).share(GLOBAL) == 1
    with pytest.raises(ValueError, match=r"attention budget is 0.01 of dense; .* it must be at least 0\.\d+"):
        assign_by_budget(found, 0.01)
    for share in (0, -1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="must be above 0 and at most 1"):
            assign_by_budget(found, share)
    for threshold in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="KL threshold is"):
            assign_by_threshold(found, threshold)


# A model.


def tiny_model() -> OasisModel:
    torch.manual_seed(0)
    decoder = PixelDecoderConfig(width=2, blocks=0, hr_width=1, hr_blocks=0)
    model = OasisModel(OasisConfig(
        name="tiny", unshuffle=(1, 4, 4), latent_channels=4, dim=24, depth=2, heads=3, ffn_dim=16, freq_dim=8,
        decoder=decoder,
    ))  # fmt: skip
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def test_measure_a_model() -> None:
    model = tiny_model()
    clips = [torch.rand(1, 3, 3, 32, 40) * 2 - 1 for _ in range(2)]
    found = measure(model, clips, queries=16)
    assert found.patterns == (FRAME, NEAR)
    assert found.mean.shape == found.half_width.shape == (2, 2, 3)
    assert (found.mean > 0).all()
    assert (found.half_width > 0).all()
    assert found.grids == (TokenGrid(3, 4, 5),) * 2
    assert torch.equal(found.mean, measure(model, clips, queries=16).mean)
    assert not torch.equal(found.mean, measure(model, clips, queries=16, seed=1).mean)
    every = [measure(model, [clip], queries=0) for clip in clips]
    together = measure(model, clips, queries=10**6)
    torch.testing.assert_close(together.mean, (every[0].mean + every[1].mean) / 2)
    torch.testing.assert_close(together.per_clip, torch.stack([e.mean for e in every]))
    assert (together.half_width == 0).all()
    assign_by_shares(found, 0.2, 0.3).check_fits(2, 3)


def test_the_confidence_interval_holds_the_truth_19_times_in_20() -> None:
    model = tiny_model()
    clips = [torch.rand(1, 3, 2, 32, 40, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(2)]
    truth = measure(model, clips, queries=0).mean
    held = []
    for seed in range(60):
        found = measure(model, clips, queries=20, seed=seed)
        held.append(((found.mean - truth).abs() <= found.half_width).double().mean())
    assert 0.9 < float(torch.stack(held).mean()) < 0.99


def test_candidates_of_any_extent() -> None:
    model, clip = tiny_model(), torch.rand(1, 3, 3, 32, 40) * 2 - 1
    patterns = (Extent(3, None, None), GLOBAL, Extent(1, None, None), Extent(None, 3, 3), FRAME)
    found = measure(model, [clip], queries=0, patterns=patterns)
    assert found.patterns == (Extent(3, None, None), FRAME, Extent(None, 3, 3))
    assert (found.mean[0] <= found.mean[1] + 1e-6).all()  # what sees more loses less
    with pytest.raises(ValueError, match="no local pattern"):
        measure(model, [clip], patterns=(GLOBAL,))


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(ValueError, match="calibration got no clips"):
        measure(tiny_model(), [])
    with pytest.raises(ValueError, match="queries is -1"):
        measure(tiny_model(), [], queries=-1)
    broken = tiny_model()
    broken.dit.blocks[0].self_attn.q.weight.data.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="scores that are not finite"):
        measure(broken, [torch.zeros(1, 3, 1, 16, 16)])
    check_dense(RoutingSpec.uniform(2, 3, GLOBAL), "dense")
    with pytest.raises(
        ValueError, match="model routed cannot be calibrated: only 25% of its heads .* give the dense one"
    ):
        check_dense(RoutingSpec.by_ratio(2, 4, 0.25, 0.5), "routed")

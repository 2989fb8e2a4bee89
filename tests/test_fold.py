"""Folded weights compute what the unfolded ones do: random odd configs, every routing, with and without context."""

from __future__ import annotations

import copy
import random
from itertools import groupby

import pytest
import torch

from oasis_core.model import OasisConfig
from oasis_core.model.dit import DiT
from oasis_core.routing import Extent, HeadPattern, RoutingSpec

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.06}
"""Largest error as a share of the output's standard deviation. bf16: two ways to round; the bound against fp32 is tighter."""


def random_config(rng: random.Random) -> OasisConfig:
    """Any sizes that the config allows, small."""
    heads, head_dim = rng.randint(1, 5), 2 * rng.randint(3, 9)
    patch = rng.randint(1, 3)
    return OasisConfig(
        name="odd", unshuffle=(rng.choice([1, 2, 4]), 8, 8), latent_channels=rng.randint(1, 7), patch=(1, patch, patch),
        dim=heads * head_dim, depth=rng.randint(1, 3), heads=heads, ffn_dim=rng.randint(1, 50), freq_dim=2 * rng.randint(1, 9),
        context_length=rng.choice([0, 1, 5]), timestep=rng.uniform(0, 1000), sigma=rng.uniform(-1, 1),
        faithful_timestep=rng.choice([None, rng.uniform(0, 1000)]),
    )  # fmt: skip


def random_routing(rng: random.Random, config: OasisConfig) -> RoutingSpec:
    patterns = [*HeadPattern, Extent(3, None, None), Extent(1, 3, None), Extent(None, 3, 3)]
    layers = tuple(tuple(rng.choice(patterns) for _ in range(config.heads)) for _ in range(config.depth))
    return RoutingSpec(layers, (rng.choice([1, 3]), rng.choice([1, 3, 5]), rng.choice([1, 3])))


def random_dit(config: OasisConfig, seed: int) -> DiT:
    torch.manual_seed(seed)
    dit = DiT(config).eval().requires_grad_(False)
    for name, p in dit.named_parameters():
        spread = 0.3 if p.ndim == 1 or "modulation" in name else p[0].numel() ** -0.5
        p.copy_(torch.randn_like(p) * spread + (0.7 if "norm" in name else 0))
    return dit


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_folded_equals_unfolded(seed: int) -> None:
    rng = random.Random(seed)
    config = random_config(rng)
    dit, routing = random_dit(config, seed), random_routing(rng, config)
    fidelity = 0.0 if config.faithful_timestep is None else rng.random()
    z = torch.randn(rng.randint(1, 2), config.latent_channels, 3, *(config.patch[1] * n for n in (4, 3)))
    timestep = dit.timestep(fidelity, z.device)
    plain = dit(z, routing, timestep=timestep)
    dit.fold(routing, fidelity)
    folded = dit(z, routing, timestep=timestep)
    assert plain.std() > 0.01
    assert (folded - plain).abs().max() < TOLERANCE[torch.float32] * plain.std()


@torch.no_grad()
def test_in_bf16_folding_costs_no_more_than_bf16_does() -> None:
    rng = random.Random(3)
    config = random_config(rng)
    exact, routing = random_dit(config, 3), random_routing(rng, config)
    z = torch.randn(1, config.latent_channels, 3, *(config.patch[1] * n for n in (4, 3)))
    truth = exact(z, routing)
    plain = copy.deepcopy(exact).to(torch.bfloat16)
    folded = copy.deepcopy(plain)
    folded.fold(routing)
    errors = [(m(z.bfloat16(), routing).float() - truth).abs().mean() / truth.std() for m in (plain, folded)]
    assert errors[1] < 1.5 * errors[0]
    assert errors[1] < TOLERANCE[torch.bfloat16]


@torch.no_grad()
def test_heads_of_a_pattern_lie_together() -> None:
    rng = random.Random(1)
    config = random_config(rng)
    dit, routing = random_dit(config, 1), random_routing(rng, config)
    dit.fold(routing)
    assert dit.folded is not None
    for grouped, patterns in zip(dit.folded.grouped.layers, routing.layers, strict=True):
        assert sorted(map(str, grouped)) == sorted(map(str, patterns))
        assert len([p for p, _ in groupby(grouped)]) == len(set(patterns))


@torch.no_grad()
def test_refuses_what_it_was_not_folded_for() -> None:
    config = OasisConfig("x", dim=16, depth=1, heads=2, ffn_dim=8, freq_dim=8, latent_channels=2, faithful_timestep=5.0)
    dit, routing = random_dit(config, 0), RoutingSpec.uniform(1, 2, HeadPattern.WINDOW)
    z = torch.randn(1, 2, 1, 4, 4)
    with pytest.raises(ValueError, match="another model"):
        dit.fold(RoutingSpec.uniform(2, 2, HeadPattern.WINDOW))
    dit.fold(routing)
    dit(z, routing, timestep=dit.timestep(0.0, z.device))
    with pytest.raises(ValueError, match="folded for another routing"):
        dit(z, RoutingSpec.uniform(1, 2, HeadPattern.GLOBAL))
    with pytest.raises(ValueError, match="folded for fidelity 0"):
        dit(z, routing, timestep=dit.timestep(1.0, z.device))
    with pytest.raises(ValueError, match="folded already"):
        dit.fold(routing)

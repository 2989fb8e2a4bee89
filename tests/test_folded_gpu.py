"""The folded transformer on CUDA: kernels against fp64, blocks against the unfolded on the CPU, graphs, fp8 (`pytest -m gpu`)."""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oasis_core.attention import TokenGrid
from oasis_core.attention.backends import backend_for
from oasis_core.attention.window_plan import TABLES, key_bits, plan_window
from oasis_core.device import missing_fp8
from oasis_core.model import OasisConfig, layers, rows
from oasis_core.model.dit import DiT
from oasis_core.model.folded_linear import FoldedLinear, Fp8Linear
from oasis_core.model.graphs import Graphs
from oasis_core.routing import RoutingSpec

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of the norm of a result: fp32 by summation order, halves by their own rounding."""
CONFIG = OasisConfig(
    "x", dim=192, depth=7, heads=3, ffn_dim=320, freq_dim=32, latent_channels=8, context_length=11,
    faithful_timestep=900.0,
)  # fmt: skip
ROUTING = RoutingSpec.by_ratio(7, 3, 1 / 3, 1 / 3)
LATENT = (1, 8, 4, 20, 26)


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double().cpu() - expected.double().cpu()).norm() / expected.double().norm())


def random_dit(config: OasisConfig = CONFIG) -> DiT:
    torch.manual_seed(0)
    dit = DiT(config).eval().requires_grad_(False)
    for name, p in dit.named_parameters():
        spread = 0.3 if p.ndim == 1 or "modulation" in name else p[0].numel() ** -0.5
        p.copy_(torch.randn_like(p) * spread + (0.7 if "norm" in name else 0))
    return dit


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("seed", range(6))
def test_kernels_equal_fp64(seed: int, dtype: torch.dtype) -> None:
    rng = random.Random(seed)
    count, channels = rng.randint(1, 700), 8 * rng.choice([1, 6, 32, 192, 321, 1120])
    wide = (torch.randn(count, channels + 16, device=CUDA) * rng.uniform(0.1, 30) + rng.uniform(-2, 2)).to(dtype)
    x, bias = wide[:, 8 : channels + 8], torch.randn(channels, device=CUDA)
    weight = torch.randn(channels, device=CUDA).to(dtype)
    exact, shape = x.double(), (channels,)
    normed = F.layer_norm(exact + bias.double(), shape, eps=1e-6)
    assert error(rows.layer_norm(x, bias), normed) < TOLERANCE[dtype]
    assert error(rows.rms_norm(x, weight), F.rms_norm(exact, shape, weight.double(), 1e-6)) < TOLERANCE[dtype]
    if missing_fp8(CUDA):
        return
    for (values, scale), expected in (
        (rows.layer_norm_fp8(x, bias), normed),
        (rows.to_fp8(x), exact),
        (rows.to_fp8(x, gelu=True), F.gelu(exact, approximate="tanh")),
    ):
        assert values.dtype == rows.E4M3
        assert scale.shape == (count, 1)
        assert error(values.float() * scale, expected) < 0.035  # 3 bits of mantissa


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gelu_in_the_product_is_the_tanh_form(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(*s, device=CUDA).to(dtype) for s in ((300, 64), (160, 64), (160,)))
    expected = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    assert error(rows.linear_gelu(x, weight, bias), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.inference_mode()
def test_folded_equals_the_unfolded_on_the_cpu(
    dtype: torch.dtype, triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_has_triton", lambda device: triton)
    dit, z = random_dit(), torch.randn(2, *LATENT[1:])
    expected = dit(z, ROUTING, timestep=dit.timestep(0.5, z.device))
    folded = copy.deepcopy(dit).to(CUDA, dtype)
    folded.fold(ROUTING, 0.5)
    got = folded(z.to(CUDA, dtype), ROUTING, timestep=dit.timestep(0.5, CUDA))
    assert error(got, expected) < 4 * TOLERANCE[dtype]


def folded_dit(fp8: bool = False) -> DiT:
    dit = random_dit().to(CUDA, torch.bfloat16)
    dit.attention = backend_for("auto", CUDA)
    dit.fold(ROUTING, fp8=fp8)
    return dit


@torch.inference_mode()
def test_graphs_give_the_same_and_can_be_interrupted() -> None:
    plain, graphed = folded_dit(), folded_dit()
    graphed.graphs = Graphs(blocks=3)
    latent = torch.empty(LATENT, device=CUDA, dtype=torch.bfloat16)
    assert graphed._fits_graphs(latent, graphed.grid(latent), ROUTING.window)
    other = (1, 8, 2, 14, 30)
    for shape in (LATENT, LATENT, LATENT, other, LATENT, other, other):
        z = torch.randn(shape, device=CUDA, dtype=torch.bfloat16)
        calls: list[int] = []
        got = graphed(z, ROUTING, poll=lambda: calls.append(0))  # noqa: B023
        assert torch.equal(got, plain(z, ROUTING))
        assert len(calls) == CONFIG.depth

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        graphed(z, ROUTING, poll=stop)
    assert torch.equal(graphed(z, ROUTING), plain(z, ROUTING))
    for p in (p for dit in (plain, graphed) for p in dit.parameters()):
        p.data = p.data.mul(1.01).clone()  # to another place
    assert torch.equal(graphed(z, ROUTING), plain(z, ROUTING))
    assert torch.equal(graphed(z, ROUTING), plain(z, ROUTING))


@torch.inference_mode()
def test_graphs_keep_the_tables_that_they_read() -> None:
    """Other sizes' tables push them out of the cache, and other tensors take their place in memory."""
    plain, graphed = folded_dit(), folded_dit()
    graphed.graphs = Graphs(blocks=3)
    z = torch.randn(LATENT, device=CUDA, dtype=torch.bfloat16)
    expected = plain(z, ROUTING)

    def crowd() -> list[Tensor]:
        for keys in range(1000, 1001 + TABLES):
            key_bits(plan_window(TokenGrid(3, 8, 8), (3, 5, 5), 32, 32), keys, CUDA)
        gc.collect()
        return [torch.full((size,), -1, dtype=torch.int32, device=CUDA) for size in (128, 512, 1024, 2048) * 200]

    for _ in range(4):  # seen, recorded, replayed
        assert torch.equal(graphed(z, ROUTING), expected)
        rubbish = crowd()
    del rubbish


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("fp8", [False, True])
@torch.inference_mode()
def test_a_device_that_is_not_the_current_one(fp8: bool) -> None:
    """Kernels are launched, and graphs recorded, where the tensors are."""
    if fp8 and missing_fp8(CUDA):
        pytest.skip("no fp8 units")
    here, there = folded_dit(fp8), folded_dit(fp8).to("cuda:1")
    there.attention = backend_for("auto", torch.device("cuda:1"))
    here.graphs, there.graphs = Graphs(blocks=3), Graphs(blocks=3)
    z = torch.randn(LATENT, device=CUDA, dtype=torch.bfloat16)
    for _ in range(3):
        z = torch.randn_like(z)
        got, expected = there(z.to("cuda:1"), ROUTING), here(z, ROUTING)
        assert got.device == torch.device("cuda:1")
        assert torch.equal(got.cpu(), expected.cpu())
    assert torch.cuda.current_device() == 0


@pytest.mark.skipif(torch.cuda.is_available() and missing_fp8(CUDA) is not None, reason="no fp8 units")
@torch.inference_mode()
def test_fp8_is_near() -> None:
    z = torch.randn(LATENT, device=CUDA, dtype=torch.bfloat16)
    expected, got = (folded_dit(fp8)(z, ROUTING) for fp8 in (False, True))
    assert 1e-4 < error(got, expected) < 0.1


@pytest.mark.skipif(torch.cuda.is_available() and missing_fp8(CUDA) is not None, reason="no fp8 units")
@pytest.mark.parametrize("use", [Fp8Linear.after_norm, Fp8Linear.hidden])
@torch.inference_mode()
def test_the_fp8_product_is_what_it_says(use: Callable[[FoldedLinear, Tensor, Tensor], Tensor]) -> None:
    x, carried = torch.randn(300, 64, device=CUDA).bfloat16(), torch.randn(64, device=CUDA)
    layer = Fp8Linear(torch.randn(96, 64, device=CUDA), torch.randn(96, device=CUDA), torch.bfloat16)
    expected = layer.to("cpu")
    values = use(copy.deepcopy(layer).to(CUDA), x, carried)
    assert error(values, use(expected, x.cpu(), carried.cpu())) < 1e-2

"""On CUDA: every backend and the kernels on random shapes against the reference in fp64 (`pytest -m gpu`)."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oasis_core.attention import TokenGrid, routed_attention
from oasis_core.attention.backend import is_hopper
from oasis_core.attention.backends import BACKENDS, NAMES, backend_for
from oasis_core.attention.problem import EVERYTHING, OWN_FRAME, Problem
from oasis_core.attention.reference import reference_attention
from oasis_core.model import layers
from oasis_core.routing import Extent, HeadPattern

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
# Largest relative error (Frobenius): probabilities and outputs are rounded to the dtype once each.
ERROR = {torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}


def random_inputs(grid: TokenGrid, heads: int, head_dim: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    """q, k, v as slices of one projection, as the model has them."""
    g = torch.Generator("cuda").manual_seed(seed)
    whole = torch.randn(2, grid.length, 3, heads, head_dim, generator=g, device=CUDA).to(dtype)
    return whole.unbind(2)


def relative(got: Tensor, truth: Tensor) -> float:
    return float((got.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("head_dim", [32, 64, 80, 128])
def test_the_window_kernel_on_random_grids_and_windows(head_dim: int, dtype: torch.dtype) -> None:
    from oasis_core.attention.triton_window import window_attention

    rng = random.Random(head_dim)
    for seed in range(4):
        grid = TokenGrid(rng.randint(1, 7), rng.randint(1, 24), rng.randint(1, 33))
        window = (2 * rng.randint(0, 2) + 1, 2 * rng.randint(0, 9) + 1, 2 * rng.randint(0, 9) + 1)
        q, k, v = random_inputs(grid, 3, head_dim, dtype, seed)
        out = torch.full(q.shape, float("nan"), dtype=dtype, device=CUDA)
        _, lse = window_attention(q, k, v, grid, window, out=out, with_lse=True)
        truth, true_lse = reference_attention(*(x.double() for x in (q, k, v)), grid, HeadPattern.WINDOW, window)
        assert relative(out, truth) < ERROR[dtype], (grid, window)
        assert lse is not None
        assert relative(lse, true_lse) < 1e-5, (grid, window)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("extent", [EVERYTHING, OWN_FRAME, Extent(3, 5, 5)], ids=str)
def test_every_backend_equals_the_reference_or_says_why_not(name: str, dtype: torch.dtype, extent: Extent) -> None:
    backend, ran = BACKENDS[name], 0
    for shape, head_dim in (
        ((1, 1, 1), 64),
        ((3, 1, 1), 32),
        ((1, 1, 7), 32),
        ((3, 9, 10), 32),
        ((2, 17, 19), 64),
        ((5, 16, 16), 128),
        ((2, 31, 33), 128),
    ):
        grid = TokenGrid(*shape)
        q, k, v = random_inputs(grid, 3, head_dim, dtype, head_dim)
        problem = Problem.of(q, k, v, grid, extent)
        if backend.supports(problem):
            continue
        ran += 1
        out = torch.full(q.shape, float("nan"), dtype=dtype, device=CUDA)
        truth, _ = reference_attention(*(x.double() for x in (q, k, v)), grid, extent, (3, 5, 5))
        assert relative(backend.run(problem, q, k, v, out), truth) < ERROR[dtype], shape
        assert relative(out, truth) < ERROR[dtype], shape
        assert relative(backend.run(problem, q, k, v), truth) < ERROR[dtype], shape
    if not ran:
        pytest.skip(f"{name}: {backend.supports(problem)}")


@pytest.mark.parametrize("name", NAMES)
def test_mixed_heads_whatever_is_chosen(name: str) -> None:
    try:
        backend = backend_for(name, CUDA)
    except ValueError as e:
        pytest.skip(str(e))
    extents = (
        HeadPattern.WINDOW,
        HeadPattern.GLOBAL,
        Extent(3, None, None),
        HeadPattern.INTRA_FRAME,
        Extent(None, 3, 3),
    )
    grid = TokenGrid(4, 18, 21)
    q, k, v = random_inputs(grid, len(extents), 64, torch.bfloat16, 0)
    got = routed_attention(q, k, v, grid, extents, (3, 5, 5), backend)
    for n, extent in enumerate(extents):
        one = [x[:, :, n : n + 1].double() for x in (q, k, v)]
        truth, _ = reference_attention(*one, grid, extent, (3, 5, 5))
        assert relative(got[:, :, n : n + 1], truth) < ERROR[torch.bfloat16], extent


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1), (1, 2, 3)])
def test_auto_on_the_smallest_grids(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Every kind of head, even sizes that no fast kernel takes."""
    extents = (
        HeadPattern.WINDOW,
        HeadPattern.GLOBAL,
        Extent(3, None, None),
        HeadPattern.INTRA_FRAME,
        Extent(None, 3, 3),
    )
    grid = TokenGrid(*shape)
    for head_dim in (18, 64, 160):
        q, k, v = random_inputs(grid, len(extents), head_dim, dtype, 0)
        got = routed_attention(q, k, v, grid, extents, (3, 5, 5), backend_for("auto", CUDA))
        for n, extent in enumerate(extents):
            one = [x[:, :, n : n + 1].double() for x in (q, k, v)]
            truth, _ = reference_attention(*one, grid, extent, (3, 5, 5))
            assert relative(got[:, :, n : n + 1], truth) < ERROR[dtype], (extent, head_dim)


def test_auto_takes_the_fastest() -> None:
    grid = TokenGrid(9, 45, 80)
    q = torch.empty(1, grid.length, 4, 128, dtype=torch.bfloat16, device=CUDA)
    auto = backend_for("auto", CUDA)
    chosen = [auto.chosen(Problem.of(q, q, q, grid, e)).name for e in (EVERYTHING, OWN_FRAME, Extent(3, 5, 5))]
    problem = Problem.of(q, q, q, grid, EVERYTHING)
    able = (n for n in ("flash-attn", "cudnn", "sdpa") if BACKENDS[n].supports(problem) is None)
    dense = next(n for n in able if BACKENDS[n].preferred(problem))
    assert chosen == [dense, dense, "triton"]
    if is_hopper(CUDA):
        assert dense in ("flash-attn", "cudnn")


def test_a_window_beyond_two_thousand_million_numbers() -> None:
    """Offsets past 2^31 elements: slices of one projection far into memory."""
    from oasis_core.attention.triton_window import window_attention

    grid = TokenGrid(2, 4, 16)
    row = 2**31 // grid.length + 2**20
    free, _ = torch.cuda.mem_get_info()
    if free < 1.2 * row * grid.length * 2:
        pytest.skip("needs 5 GiB of free memory")
    far = torch.empty(1, grid.length, row, dtype=torch.bfloat16, device=CUDA)
    far[..., :64].normal_()
    q = far[..., :64].unflatten(-1, (2, 32))
    got, _ = window_attention(q, q, q, grid, (3, 5, 5))
    truth, _ = reference_attention(*(q.double(),) * 3, grid, HeadPattern.WINDOW, (3, 5, 5))
    assert relative(got, truth) < ERROR[torch.bfloat16]


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize(("heads", "head_dim"), [(12, 128), (8, 32), (3, 18)])
def test_norm_and_rotation_as_one_kernel(heads: int, head_dim: int, dtype: torch.dtype) -> None:
    grid, dim = TokenGrid(3, 7, 11), heads * head_dim
    g = torch.Generator("cuda").manual_seed(0)
    whole = torch.randn(2, grid.length, 3 * dim, generator=g, device=CUDA).to(dtype)
    gains = [torch.randn(dim, generator=g, device=CUDA).to(dtype) for _ in range(2)]
    rope = layers.rope_table(grid, head_dim, 10000.0, CUDA)
    q, k, v = whole.clone().chunk(3, -1)
    truth = [
        layers.apply_rope(F.rms_norm(x.float(), (dim,), w.float(), layers.EPS).unflatten(-1, (heads, -1)), rope)
        for x, w in ((q, gains[0]), (k, gains[1]))
    ]
    with torch.inference_mode():
        assert layers.fused(whole)
        q, k, rest = whole.chunk(3, -1)
        for got, true in zip(layers.norm_rope(q, k, *gains, rope, heads), truth, strict=True):
            assert relative(got, true.double()) < ERROR[dtype]
    assert torch.equal(rest, v)

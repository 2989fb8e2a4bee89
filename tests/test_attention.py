"""Every operation against the fp32 reference with explicit masks."""

from __future__ import annotations

import pytest
import torch

from oasis_core.attention import TokenGrid, cpu_window, routed_attention, sdpa, window_tiles
from oasis_core.attention.backends import Sdpa
from oasis_core.attention.problem import Operation
from oasis_core.attention.reference import pattern_mask, reference_attention
from oasis_core.routing import Extent, HeadPattern, RoutingSpec

# fp32 differs by summation order only; bf16 and fp16 carry their own rounding of inputs, scores and output.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}
GRIDS = [(1, 1, 1), (1, 1, 7), (1, 9, 1), (4, 1, 1), (2, 3, 4), (3, 8, 8), (2, 9, 17), (5, 11, 3), (1, 16, 16)]
WINDOWS = [(3, 5, 5), (1, 1, 1), (1, 3, 7), (5, 1, 3), (9, 25, 25)]


EXTENTS = [
    "3xallxall",
    "5xallxall",
    "allx3x3",
    "allx1x1",
    "1x3x3",
    "3x7x5",
    "1xallx3",
    "3x3xall",
    "allxallx5",
    "9xallxall",
]


def qkv(grid: TokenGrid, heads: int, dim: int, dtype: torch.dtype, batch: int = 1, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, grid.length, heads, dim, generator=g, dtype=torch.float64).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("small_frame", [0, 256])
def test_window_equals_reference(
    shape: tuple[int, int, int], window: tuple[int, int, int], small_frame: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_tiles, "SMALL_FRAME", small_frame)
    grid = TokenGrid(*shape)
    q, k, v = qkv(grid, 2, 8, torch.float32, batch=2)
    expected, _ = reference_attention(q, k, v, grid, HeadPattern.WINDOW, window)
    torch.testing.assert_close(sdpa.window_attention(q, k, v, grid, window), expected, atol=2e-6, rtol=2e-6)
    out = torch.full_like(q, torch.nan)
    assert cpu_window.gathered_window_attention(q, k, v, grid, window, out) is out
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("pattern", HeadPattern)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 9, 10)])
def test_routed_equals_reference_in_every_dtype(
    shape: tuple[int, int, int], pattern: HeadPattern, dtype: torch.dtype
) -> None:
    grid = TokenGrid(*shape)
    q, k, v = qkv(grid, 3, 16, dtype)
    expected, _ = reference_attention(q, k, v, grid, pattern, (3, 5, 5))
    got = routed_attention(q, k, v, grid, (pattern,) * 3, (3, 5, 5))
    assert got.dtype == dtype
    torch.testing.assert_close(got.to(expected.dtype), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_window_in_bounded_groups_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = TokenGrid(5, 9, 10)
    q, k, v = qkv(grid, 2, 8, torch.float32)
    monkeypatch.setitem(sdpa.WINDOW_KEY_BUDGET, "cpu", 2**40)
    whole = sdpa.window_attention(q, k, v, grid, (3, 5, 5))
    monkeypatch.setitem(sdpa.WINDOW_KEY_BUDGET, "cpu", 1)
    torch.testing.assert_close(sdpa.window_attention(q, k, v, grid, (3, 5, 5)), whole, atol=1e-6, rtol=1e-6)
    for budget in (1, 2000, 2**40):
        monkeypatch.setattr(cpu_window, "KEY_BUDGET", budget)
        got = cpu_window.gathered_window_attention(q, k, v, grid, (3, 5, 5), torch.empty_like(q))
        torch.testing.assert_close(got, whole, atol=1e-6, rtol=1e-6)


def test_window_gathered_from_joined_heads() -> None:
    """q, k and v as views of one tensor, an odd number of heads, into part of the output."""
    grid = TokenGrid(4, 9, 11)
    joined = torch.randn(2, grid.length, 3, 4, 8, generator=torch.Generator().manual_seed(3))
    q, k, v = (x[:, :, 1:] for x in joined.unbind(2))
    out = torch.zeros(2, grid.length, 4, 8)
    cpu_window.gathered_window_attention(q, k, v, grid, (3, 5, 5), out[:, :, 1:])
    expected, _ = reference_attention(q, k, v, grid, HeadPattern.WINDOW, (3, 5, 5))
    torch.testing.assert_close(out[:, :, 1:], expected, atol=2e-6, rtol=2e-6)
    assert not out[:, :, 0].any()


@pytest.mark.parametrize("seed", range(8))
def test_mixed_heads_keep_their_order(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    choices = list(HeadPattern)
    patterns = tuple(choices[i] for i in torch.randint(3, (6,), generator=g).tolist())
    grid = TokenGrid(*torch.randint(1, 12, (3,), generator=g).tolist())
    q, k, v = qkv(grid, 6, 8, torch.float32, seed=seed)
    got = routed_attention(q, k, v, grid, patterns, (3, 5, 5))
    for n, pattern in enumerate(patterns):
        one = slice(n, n + 1)
        expected, _ = reference_attention(q[:, :, one], k[:, :, one], v[:, :, one], grid, pattern, (3, 5, 5))
        torch.testing.assert_close(got[:, :, one], expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("text", EXTENTS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 5, 3), (5, 9, 17), (2, 25, 24)])
def test_any_extent_equals_reference(text: str, shape: tuple[int, int, int]) -> None:
    """The last grid is cut into tiles, the others are not."""
    grid, extent = TokenGrid(*shape), Extent.parse(text)
    q, k, v = qkv(grid, 2, 8, torch.float32, batch=2)
    expected, _ = reference_attention(q, k, v, grid, extent, (3, 5, 5))
    got = routed_attention(q, k, v, grid, (extent,) * 2, (3, 5, 5))
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_extents_of_every_kind_beside_each_other_in_every_dtype(dtype: torch.dtype) -> None:
    grid = TokenGrid(3, 25, 24)
    patterns = (
        Extent.parse("3x7x7"),
        HeadPattern.WINDOW,
        Extent.parse("allx3x3"),
        HeadPattern.GLOBAL,
        *map(Extent.parse, EXTENTS),
    )
    q, k, v = qkv(grid, len(patterns), 8, dtype)
    got = routed_attention(q, k, v, grid, patterns, (1, 3, 3))
    for n, pattern in enumerate(patterns):
        one = slice(n, n + 1)
        expected, _ = reference_attention(q[:, :, one], k[:, :, one], v[:, :, one], grid, pattern, (1, 3, 3))
        torch.testing.assert_close(
            got[:, :, one].to(expected.dtype), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )


def test_an_extents_pairs_are_those_of_its_mask() -> None:
    for shape in GRIDS:
        for text in (*EXTENTS, "3x5x5", "allxallxall", "1xallxall"):
            extent = Extent.parse(text)
            assert extent.pairs(shape) == int(pattern_mask(TokenGrid(*shape), extent, (3, 5, 5)).sum()), (shape, text)


def test_backends_need_no_more_than_their_three_operations_for_any_extent() -> None:
    """So each runs them all: ``everywhere`` with fewer queries than keys, ``window`` with extents beyond the grid."""
    grid, seen = TokenGrid(3, 4, 5), []

    class Spy(Sdpa):
        def run(self, problem, q, k, v, out=None):  # type: ignore[no-untyped-def]
            is_window = problem.operation is Operation.WINDOW
            seen.append(("window", problem.window) if is_window else ("everywhere", q.shape[1], k.shape[1]))
            return super().run(problem, q, k, v, out)

    spy = Spy()
    q, k, v = qkv(grid, 2, 8, torch.float32)
    routed_attention(q, k, v, grid, (Extent(3, None, None), Extent(None, 3, None)), (3, 5, 5), spy)
    assert seen == [("everywhere", 20, 40), ("everywhere", 20, 60), ("everywhere", 20, 40), ("window", (5, 3, 9))]


def test_all_global_is_plain_attention() -> None:
    grid = TokenGrid(2, 4, 5)
    q, k, v = qkv(grid, 4, 8, torch.float32)
    plain = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert torch.equal(routed_attention(q, k, v, grid, (HeadPattern.GLOBAL,) * 4, (3, 5, 5)), plain)


@pytest.mark.parametrize("small_frame", [0, 256])
def test_gradients_flow_through_the_window(small_frame: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_tiles, "SMALL_FRAME", small_frame)
    grid = TokenGrid(2, 9, 10)
    leaves = [x.requires_grad_() for x in qkv(grid, 1, 8, torch.float64)]
    twin = [x.detach().clone().requires_grad_() for x in leaves]
    weight = torch.randn(1, grid.length, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (sdpa.window_attention(*leaves, grid, (3, 5, 5)) * weight).sum().backward()
    (reference_attention(*twin, grid, HeadPattern.WINDOW, (3, 5, 5))[0] * weight).sum().backward()
    for a, b in zip(leaves, twin, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-10, rtol=1e-8)


def test_kl_of_localising_is_the_difference_of_lse() -> None:
    grid = TokenGrid(2, 4, 5)
    q, k, v = qkv(grid, 2, 8, torch.float64)
    _, lse_global = reference_attention(q, k, v, grid, HeadPattern.GLOBAL, (3, 5, 5))
    _, lse_local = reference_attention(q, k, v, grid, HeadPattern.WINDOW, (3, 5, 5))
    mask = pattern_mask(grid, HeadPattern.WINDOW, (3, 5, 5))
    scores = torch.einsum("blnd,bmnd->bnlm", q, k) * 8**-0.5
    full = scores.softmax(-1)
    local = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    kl = torch.where(mask, local * (local.clamp_min(1e-300).log() - full.log()), torch.zeros(())).sum(-1)
    torch.testing.assert_close(lse_global - lse_local, kl, atol=1e-10, rtol=1e-8)


def test_wrong_shapes_are_named() -> None:
    q = torch.zeros(1, 10, 2, 4)
    with pytest.raises(ValueError, match=r"expected \(B, 12, 2, D\)"):
        routed_attention(
            q, q, q, TokenGrid(1, 3, 4), RoutingSpec.uniform(1, 2, HeadPattern.GLOBAL).layers[0], (3, 5, 5)
        )
    with pytest.raises(ValueError, match="at least 1"):
        TokenGrid(0, 3, 4)

"""Log-sum-exps of sampled queries by the Triton kernel, and the KL that comes of them, against explicit attention in fp64: in
Triton's interpreter (this file in a process of its own: the switch is read at import), and with ``-m gpu`` on a GPU."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from oasis_core.attention import TokenGrid
from oasis_core.attention.reference import pattern_mask
from oasis_core.routing import Extent, divergence
from oasis_core.routing.divergence import Localisation

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

CLOSE = {"cpu": 1e-4, "cuda": 5e-4}
"""In nats. The interpreter differs by 2e-6 (1e-4 as in test_triton_window.py); matrix units cut off what they sum."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GRIDS = [(1, 1, 1), (1, 1, 7), (1, 13, 9), (3, 9, 11), (5, 3, 3), (2, 9, 16), (7, 1, 5), (2, 31, 1)]
REACHES = [(0, 0), (2, 2), (4, 0), (1, 40), (60, 60)]
"""Some beyond every frame."""
EXTENTS = [Extent.parse(t) for t in ("1xallxall", "3x5x5", "3xallxall", "allx3x3", "1x3x3", "allxallx1", "9x41x41")]


def made(shape: tuple[int, int, int], heads: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q, k, as slices of one projection, and some queries."""
    length, g = TokenGrid(*shape).length, torch.Generator().manual_seed(channels)
    q, k, _ = (torch.randn(2, length, 3, heads, channels, generator=g) * 1.5).to(dtype).unbind(2)
    return q, k, torch.randperm(length, generator=g)[: min(70, 1 + length // 2)]


def scores(q: Tensor, k: Tensor, queries: Tensor) -> Tensor:
    """``(B, N, S, L)`` in fp64."""
    return torch.einsum("bsnd,blnd->bnsl", q[:, queries].double(), k.double()) * q.shape[-1] ** -0.5


def check_lse(device: str, shape: tuple[int, int, int], heads: int, channels: int, dtype: torch.dtype) -> None:
    """Frames in one piece and in several."""
    from oasis_core.routing import triton_lse

    usual = triton_lse.PIECE
    try:
        for triton_lse.PIECE in (usual, 25):
            check_pieces(device, shape, heads, channels, dtype)
    finally:
        triton_lse.PIECE = usual


def check_pieces(device: str, shape: tuple[int, int, int], heads: int, channels: int, dtype: torch.dtype) -> None:
    from oasis_core.routing.triton_lse import PIECE, lse_of_parts

    grid, (q, k, queries) = TokenGrid(*shape), made(shape, heads, channels, dtype)
    reaches = torch.tensor(REACHES, dtype=torch.int32)
    got = lse_of_parts(q.to(device), k.to(device), grid, queries.to(device), reaches.to(device)).cpu()
    assert got.dtype == torch.float32
    assert got.shape == (len(REACHES), 2, heads, len(queries), grid.t, max(1, round(grid.frame / PIECE)))
    y, x = torch.arange(grid.frame) // grid.w, torch.arange(grid.frame) % grid.w
    place = queries % grid.frame
    far_y, far_x = ((axis - axis[place, None]).abs() for axis in (y, x))  # (S, frame)
    by_frame = scores(q, k, queries).unflatten(-1, (grid.t, grid.frame))
    for lse, (h, w) in zip(got.logsumexp(-1), REACHES, strict=True):
        unseen = ((far_y > h) | (far_x > w))[:, None]
        expected = by_frame.masked_fill(unseen, float("-inf")).logsumexp(-1)
        torch.testing.assert_close(lse.double(), expected, atol=CLOSE[device], rtol=0)


def check_kl(device: str, shape: tuple[int, int, int], heads: int, channels: int, dtype: torch.dtype) -> None:
    """Against attention matrices, and against the way without the kernel."""
    grid, (q, k, queries) = TokenGrid(*shape), made(shape, heads, channels, dtype)
    assert divergence.kernel_missing(torch.device(device, 0), dtype, channels) is None
    there = q.to(device), k.to(device)
    got = Localisation(grid, EXTENTS, queries.to(device)).kl(*there).cpu()
    plain = Localisation(grid, EXTENTS, queries)
    table = plain._by_scores(q, k)
    every = divergence._logsumexp(table[plain._which].masked_fill_(plain._beyond, float("-inf")).flatten(-2))
    torch.testing.assert_close(got, (every[0] - every[1:]).transpose(2, 3), atol=2 * CLOSE[device], rtol=0)
    whole = scores(q, k, queries)
    for extent, kl in zip(EXTENTS, got, strict=True):
        seen = pattern_mask(grid, extent, (3, 5, 5))[queries]
        expected = whole.logsumexp(-1) - whole.masked_fill(~seen, float("-inf")).logsumexp(-1)  # (B, N, S)
        torch.testing.assert_close(kl.double(), expected.transpose(1, 2), atol=2 * CLOSE[device], rtol=0)


def check_what_is_not_finite(device: str) -> None:
    """It is told, not hidden."""
    grid, (q, k, queries) = TokenGrid(2, 5, 4), made((2, 5, 4), 2, 16, torch.float32)
    for bad in (float("nan"), float("inf")):
        spoilt = k.clone()
        spoilt[0, 3, 1, 2] = bad
        kl = Localisation(grid, EXTENTS, queries.to(device)).kl(q.to(device), spoilt.to(device)).mean((1, 2))
        assert not kl[:, 1].isfinite().all()
        assert kl[:, 0].isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [16, 20, 64, 128, 256])
@pytest.mark.parametrize("shape", GRIDS)
def test_they_are_exact_on_a_gpu(shape: tuple[int, int, int], channels: int, dtype: torch.dtype) -> None:
    check_lse("cuda", shape, 3, channels, dtype)
    check_kl("cuda", shape, 3, channels, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_exact_at_full_size(dtype: torch.dtype) -> None:
    check_lse("cuda", (3, 45, 80), 12, 128, dtype)


@pytest.mark.gpu
def test_what_is_not_finite_is_told_on_a_gpu() -> None:
    check_what_is_not_finite("cuda")


def test_they_are_exact_in_the_interpreter() -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=env, timeout=300)
    assert done.stdout.strip() == "all equal", done.stderr[-2000:]


def interpret() -> None:
    """Every check on the CPU. The interpreter keeps bf16 as whole numbers and multiplies those: it is taught better."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    class Wide:
        def __init__(self, x) -> None:  # type: ignore[no-untyped-def]
            self.dtype, self.data = tl.float32, (x.data.astype(np.uint32) << 16).view(np.float32)

    real = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):  # type: ignore[no-untyped-def]
        return real(self, *((Wide(x) if x.dtype.scalar == tl.bfloat16 else x) for x in (a, b)), *rest)

    InterpreterBuilder.create_dot = create_dot
    divergence.kernel_missing = lambda device, dtype, head_dim: None  # type: ignore[assignment]
    draw = random.Random(0)
    more = [(draw.randint(1, 4), draw.randint(1, 14), draw.randint(1, 14)) for _ in range(4)]
    for number, shape in enumerate([*GRIDS, *more]):
        heads, channels, dtype = 1 + number % 2, draw.choice((16, 20, 24, 48, 130)), DTYPES[number % 3]
        check_lse("cpu", shape, heads, channels, dtype)
        check_kl("cpu", shape, heads, channels, dtype)
    check_what_is_not_finite("cpu")
    print("all equal")


if __name__ == "__main__":
    interpret()

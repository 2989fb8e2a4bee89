"""Norm and rotation of q and k as one kernel, in Triton's interpreter (a process of its own: the switch is read at import)."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

SCRIPT = """
import torch
from oasis_core.attention import TokenGrid
from oasis_core.model import OasisConfig, layers
from oasis_core.model import fold as folding
from oasis_core.model.dit import DiT
from oasis_core.model.triton_norm_rope import norm_rope
from oasis_core.routing import RoutingSpec

g = torch.Generator().manual_seed(0)
for n, d, shape, dtype, tolerance in (
    (12, 128, (1, 1, 3), torch.float32, 2e-6), (3, 18, (2, 3, 2), torch.float32, 2e-6), (1, 6, (1, 1, 1), torch.float32, 2e-6),
    (8, 32, (2, 2, 2), torch.bfloat16, 2e-2), (5, 64, (1, 2, 2), torch.float16, 3e-3),
):
    grid = TokenGrid(*shape)
    rope = layers.rope_table(grid, d, 10000.0, torch.device("cpu"))
    part = slice(grid.length // 2, grid.length)
    rope = tuple(table[part] for table in rope)
    whole = torch.randn(2, grid.length, 3 * n * d, generator=g).to(dtype)[:, part]
    gains = [torch.randn(n * d, generator=g).to(dtype) for _ in range(2)]
    q, k, v = (x.clone() for x in whole.chunk(3, -1))
    expected = []
    for x, gain in ((q, gains[0]), (k, gains[1])):
        y = torch.nn.functional.rms_norm(x.double(), (n * d,), gain.double(), layers.EPS).unflatten(-1, (n, d))
        swapped = torch.stack((-y[..., 1::2], y[..., 0::2]), dim=-1).flatten(-2)
        expected.append((y * rope[0] + swapped * rope[1]).float())
    got = whole.chunk(3, -1)
    norm_rope(got[0], got[1], *gains, rope, n, layers.EPS)
    for a, b in zip(got, (*expected, v), strict=True):
        torch.testing.assert_close(a.float(), b.reshape(a.shape).float(), atol=tolerance, rtol=tolerance)

config = OasisConfig("x", dim=36, depth=2, heads=3, ffn_dim=8, freq_dim=8, latent_channels=2)
dit = DiT(config).eval().requires_grad_(False)
for p in dit.parameters():
    p.normal_(generator=g, std=0.3)
routing = RoutingSpec.by_ratio(2, 3, 0.34, 0.34)
z = torch.randn(1, 2, 2, 4, 6, generator=g)
with torch.inference_mode():
    plain = dit(z, routing)
    layers.fused = folding.fused = lambda x: True
    torch.testing.assert_close(dit(z, routing), plain, atol=1e-4, rtol=1e-4)
    dit.fold(routing)
    torch.testing.assert_close(dit(z, routing), plain, atol=1e-4, rtol=1e-4)
print("all equal")
"""


def test_it_equals_torch_alone_and_in_the_transformer() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env, timeout=300)
    assert done.stdout.strip() == "all equal", done.stderr[-2000:]

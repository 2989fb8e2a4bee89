"""The transformer's Triton kernels against torch, in Triton's interpreter (in a process of its own)."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

SCRIPT = """
import torch
import torch.nn.functional as F
from oasis_core.model.triton_rows import norm, to_fp8

g = torch.Generator().manual_seed(0)
TINY = 1e-6
# bf16 and e4m3: the interpreter cuts off where GPUs round.
for rows, channels in ((5, 48), (33, 20), (3, 1536), (7, 256), (2, 2100)):
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.bfloat16, 2e-2)):
        wide = torch.randn(rows, channels + 8, generator=g).to(dtype)
        x, plus = wide[:, :channels], torch.randn(rows, channels, generator=g).to(dtype)
        bias, weight = torch.randn(channels, generator=g), torch.randn(channels, generator=g).to(dtype)
        got, _ = norm(x, TINY, bias=bias, weight=weight)
        expected = F.layer_norm(x.float() + bias, (channels,), weight.float(), None, TINY)
        torch.testing.assert_close(got.float(), expected, atol=tolerance, rtol=tolerance)
        total = x.float() + plus.float()
        got, _ = norm(x, TINY, centred=False, plus=plus)
        torch.testing.assert_close(x.float(), total, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(got.float(), F.rms_norm(total, (channels,), None, TINY), atol=tolerance, rtol=tolerance)
        for (values, scale), expected in (
            (norm(x, TINY, fp8=True), F.layer_norm(x.float(), (channels,), None, None, TINY)),
            (to_fp8(x), x.float()),
            (to_fp8(x, gelu=True), F.gelu(x.float(), approximate="tanh")),
        ):
            assert values.float().abs().max() <= 448 and scale.shape == (rows, 1)
            assert (values.float() * scale - expected).norm() < 0.1 * expected.norm()
for empty in (torch.zeros(3, 64), torch.zeros(3, 64).bfloat16()):
    assert to_fp8(empty)[0].float().abs().max() == 0 and norm(empty, TINY, fp8=True)[0].float().abs().max() == 0
print("all equal")
"""


def test_they_equal_torch() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env, timeout=300)
    assert done.stdout.strip() == "all equal", done.stderr[-2000:]

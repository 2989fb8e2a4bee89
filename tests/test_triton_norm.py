"""The decoder's Triton kernel against torch, in Triton's interpreter (a process of its own: the switch is read at import)."""

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
from oasis_core.model.decoders import DecoderState, WanDecoder, wan_layers
from oasis_core.model.decoders.triton_norm import norm_silu
from oasis_core.model.vae_config import WanDecoderConfig

g = torch.Generator().manual_seed(0)
for shape, dtype, tolerance in (
    ((2, 3, 5, 96), torch.float32, 2e-6), ((7, 12), torch.float32, 2e-6), ((1, 33, 384), torch.float16, 2e-3),
    ((17, 1), torch.float32, 2e-6), ((3, 192), torch.bfloat16, 1e-2),
):
    x, gamma = torch.randn(shape, generator=g).to(dtype), torch.randn(shape[-1], generator=g).to(dtype)
    x[0] = 0  # a position of zeros stays zeros
    out = torch.full_like(x, 9.0)
    norm_silu(x, gamma, out, wan_layers.TINY)
    expected = F.silu(F.rms_norm(x.float(), shape[-1:], gamma.float(), wan_layers.TINY))
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)

config = WanDecoderConfig(width=4, latent_mean=(0.0,) * 4, latent_std=(1.0,) * 4)
decoder = WanDecoder(config).eval()
for p in decoder.parameters():
    p.data.normal_(generator=g, std=0.3)
z = torch.randn(2, 4, 3, 2, 2, generator=g)
with torch.inference_mode():
    plain = decoder(z)
    wan_layers.fused = lambda x: True
    state = DecoderState()
    fused = torch.cat([decoder(part, state) for part in z.split((1, 2), dim=2)], dim=2)
torch.testing.assert_close(fused, plain, atol=1e-4, rtol=1e-4)
print("all equal")
"""


def test_it_equals_torch_alone_and_in_the_decoder() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env, timeout=300)
    assert done.stdout.strip() == "all equal", done.stderr[-2000:]

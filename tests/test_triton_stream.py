"""The decoder's streamed path against the plain one, in Triton's interpreter (in a process of its own)."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

SCRIPT = """
import sys
import torch
from oasis_core.model.decoders import DecodePlan, DecoderState, WanDecoder, triton_stream, wan
from oasis_core.model.vae_config import WanDecoderConfig

triton_stream.ELEMENTS = 2**15  # a program takes the interpreter as long whatever its size
folded = bool(int(sys.argv[1]))
g = torch.Generator().manual_seed(0)
config = WanDecoderConfig(width=12, latent_mean=(0.1, -0.2, 0.0), latent_std=(1.0, 1.5, 0.5))  # padded to 16 channels
decoder = WanDecoder(config).eval()
for name, p in decoder.named_parameters():
    p.data.normal_(generator=g, std=(p.shape[0] / p.numel()) ** 0.5 if p.ndim > 1 else 0.2)
    p.data += 0.8 * name.endswith("gamma")
if folded:
    decoder.fold()

def decoded(z, split):
    state = DecoderState()
    return torch.cat([decoder(part, state) for part in z.split(split, dim=2)], dim=2)

for batch, height, width, split, plan in (
    (1, 3, 2, (3,), DecodePlan()),  # in fours
    (2, 2, 1, (1, 1), DecodePlan()),  # and one by one, where the first stage has no products
    (1, 2, 2, (2,), DecodePlan(frames=2)),  # in pairs
    (1, 2, 2, (1, 2), DecodePlan(frames=3)),  # three and one, three and two
    (1, 9, 1, (1, 1), DecodePlan(40, frames=4, keep_on=torch.device("cpu"))),
):
    z = torch.randn(batch, 3, sum(split), height, width, generator=g)
    decoder.plan = DecodePlan()
    with torch.inference_mode():
        wan.streams = lambda x: False
        plain = decoded(z, split)
        wan.streams, decoder.plan = lambda x: True, plan
        streamed = decoded(z, split)
    error = (streamed - plain).abs().max() / plain.std()
    assert error < 1e-5, (split, plan, error)
z, decoder.plan = z[:, :, :1], DecodePlan()
with torch.no_grad():
    decoder.conv_out.weight.mul_(2)  # what was derived from weights follows them
    wan.streams = lambda x: False
    plain = decoder(z)
    wan.streams = lambda x: True
    assert (decoder(z) - plain).abs().max() < 1e-5 * plain.std()
print("all equal")
"""


@pytest.mark.parametrize("folded", [0, 1])
def test_streamed_equals_plain(folded: int) -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT, str(folded)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.stdout.strip() == "all equal", done.stderr[-2000:]

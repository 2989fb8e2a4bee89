"""Tiled against untiled decoding by distance from the seam, for several halos: python benchmarks/decoder_seams.py

The Wan decoder at width 16 with random weights in fp64, two tiles side by side, three latent frames. Writes
``results/decoder_seams.json`` and prints the table of docs/full_size.md. The reach of the convolutions does not depend on
weights or width; the size of the error does.
"""

from __future__ import annotations

import json
import subprocess
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from oasis_core.model.decoders import DecodePlan, WanDecoder
from oasis_core.model.vae_config import WanDecoderConfig

HALOS = (0, 4, 8, 12, 16, 20, 24)
DISTANCES = (0, 2, 4, 8, 12, 16, 20, 24)
TILE = 64


def random_decoder() -> WanDecoder:
    decoder = WanDecoder(WanDecoderConfig(width=16)).double().eval()
    torch.manual_seed(0)
    for name, p in decoder.named_parameters():
        spread = (p.shape[0] / p.numel()) ** 0.5 if p.ndim > 1 else 0.2
        p.data.normal_(std=spread).add_(0.8 if name.endswith("gamma") else 0)
    return decoder


@torch.inference_mode()
def errors(decoder: WanDecoder, z: Tensor, halo: int) -> Tensor:
    """Largest error of the pixels at each distance from the seam, as a share of the output's standard deviation."""
    decoder.plan = DecodePlan()
    whole = decoder(z)
    decoder.plan = DecodePlan(TILE, halo)
    by_column = (decoder(z) - whole).abs().amax((0, 1, 2, 3)) / whole.std()
    right, left = by_column[TILE:], by_column[:TILE].flip(0)
    return torch.maximum(right, left)


def main() -> None:
    decoder = random_decoder()
    z = torch.randn(1, 16, 3, 6, 2 * TILE // 8, dtype=torch.float64)
    table = {halo: [float(errors(decoder, z, halo)[d]) for d in DISTANCES] for halo in HALOS}
    print("| halo | " + " | ".join(f"{d} px" for d in DISTANCES) + " |")
    print("|---|" + "---|" * len(DISTANCES))
    for halo, row in table.items():
        print(f"| {halo} | " + " | ".join(f"{e:.0e}" if e > 1e-12 else "0" for e in row) + " |")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    record = {
        "date": date.today().isoformat(), "commit": commit, "command": "python benchmarks/decoder_seams.py",
        "what": "largest error at a distance (pixels) from the seam / output's standard deviation, random weights, fp64",
        "distances": DISTANCES, "by_halo": table,
    }  # fmt: skip
    path = Path(__file__).parent / "results" / "decoder_seams.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

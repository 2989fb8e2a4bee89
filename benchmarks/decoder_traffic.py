"""What plans of the Wan decoder for little memory should cost, by arithmetic: python benchmarks/decoder_traffic.py

For each plan the memory beside the weights (``oasis_core/memory.py``), what its past and what waits at the cut carry between
device and host in a chunk of 33 frames inside a long clip, and the time that this and the tiles' halos take, from what one H100
measured for whole frames and for copies (docs/full_size.md). Copies are not hidden behind work. No GPU is needed, and nothing is
measured.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch

from oasis_core.jobs.fit import RESERVE, told
from oasis_core.memory import decoder_traffic, wan_decoder_memory
from oasis_core.model.decoders import DecodePlan
from oasis_core.model.decoders.streaming import COARSE
from oasis_core.model.vae_config import WanDecoderConfig

GIB, HOST, LATENTS = 2**30, torch.device("cpu"), 9
WEIGHTS = 2.8
"""GiB."""
SIZES = {(720, 1280): (375, 282, 110), (1088, 1920): (934, 900, 117)}
"""Decode of 33 whole frames, transformer, all else, in ms on one H100."""
SPEED = 46.0
"""GiB a second between pinned memory and that H100, either way."""
LARGE = 2 / 3
"""Share of the stages that run in tiles."""
PRODUCTS = {4: 1.0, 2: 4 / 3, 1: 2.0}
"""Convolutions in time of so many frames at once, against four (``winograd``)."""
LEFT = 30
"""Bytes for each pixel of a call that finishing needs beside the decoder (``working_memory``)."""


def milliseconds(height: int, width: int, plan: DecodePlan) -> float:
    """Of decoding."""
    decode, *_ = SIZES[height, width]
    seen = 1.0
    for size in (height, width):
        spans = [span.times(COARSE) for span in plan.spans(size // COARSE)]
        seen *= sum(min(s.stop + plan.halo, size) - max(0, s.start - plan.halo) for s in spans) / size
    work = decode * (1 - LARGE + LARGE * seen * PRODUCTS[plan.frames or 4])
    return work + 1000 * decoder_traffic(WanDecoderConfig(), height, width, LATENTS, plan, 2) / GIB / SPEED


def main() -> None:
    old = [DecodePlan(tile, frames=2, keep_on=HOST) for tile in (1024, 512)]
    new = [
        DecodePlan(tile, frames=frames, keep_on=HOST, latents=latents, turn=turn, resident=resident)
        for tile, frames, latents, turn, resident in product((1024, 768, 512, 384), (4, 2), (2, 1), (0, LATENTS), range(25))
    ]  # fmt: skip
    stay = [DecodePlan(tile, frames=frames) for tile, frames in product((1024, 768, 512), (4, 2, 1))]
    for (height, width), (decode, transformer, rest) in SIZES.items():
        whole = decode + transformer + rest
        for limit in (8, 12):
            found = []
            for plan in (*old, *new, *stay):
                tiles = len(plan.spans(height // COARSE)) * len(plan.spans(width // COARSE))
                if plan.resident >= tiles:
                    continue
                state, work = wan_decoder_memory(WanDecoderConfig(), height, width, plan.latents, plan, 2)
                need = (state + work + LEFT * 4 * plan.latents * height * width) / GIB
                if need <= RESERVE * (limit - WEIGHTS - 0.5) or plan in old:  # 0.5: torch's own and the system's
                    found.append((milliseconds(height, width, plan), need, plan))
            print(f"{height}x{width}, {limit} GiB; whole frames: {whole} ms")
            best = sorted(found, key=lambda f: f[0])[:6]
            for ms, need, plan in [f for f in found if f[2] in old] + best:
                traffic = decoder_traffic(WanDecoderConfig(), height, width, LATENTS, plan, 2) / GIB
                ratio = (ms + transformer + rest) / whole
                once = replace(plan, resident=0)
                print(f"  {need:5.2f} GiB, {traffic:6.1f} GiB moved, decode {ms:5.0f} ms, whole {ratio:.2f} x, "
                      f"{plan.resident} resident: {told(once)}")  # fmt: skip


if __name__ == "__main__":
    main()

"""Arithmetic of the models' parts (a multiplication and an addition are two operations), and what a device reaches at best."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from clock import milliseconds
from torch.utils.flop_counter import FlopCounterMode

from oasis_core.attention import TokenGrid
from oasis_core.device import missing_fp8
from oasis_core.model import OasisConfig, PixelDecoderConfig
from oasis_core.model.decoders import DecoderState, PixelDecoder, WanDecoder
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.routing import RoutingSpec

SIDE = {"cuda": 8192, "cpu": 2048}
"""Of the square matrices that tell what a device multiplies."""
BYTES = {"cuda": 2**30, "cpu": 2**28}
"""Of the memory that is copied."""
CELLS = (8, 12)
"""Latent rows and columns of the small frame on which a decoder's operations are counted: they grow with its pixels."""


def transformer_flops(config: OasisConfig, grid: TokenGrid, routing: RoutingSpec) -> float:
    """Of one step, folded: products of the blocks, the routed attention, the attention to the context."""
    dim, tokens = config.dim, grid.length
    linear = 4 * dim * dim + 2 * dim * config.ffn_dim + (2 * dim * dim if config.context_length else 0)
    sizes = (grid.t, grid.h, grid.w)
    attended = routing.cost(sizes) * tokens**2 * dim + tokens * config.context_length * dim
    return config.depth * (2 * tokens * linear + 4 * attended)


@lru_cache
def decoder_flops_per_pixel(config: OasisConfig) -> float:
    """For each output pixel of a frame, as the convolutions are published: neither Winograd's nor folded upsampling."""
    h, w = CELLS
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        if isinstance(config.decoder, PixelDecoderConfig):
            _, cell, _ = config.unshuffle
            z, pixels = torch.empty(1, config.latent_channels, 1, h, w), torch.empty(1, 3, 1, cell * h, cell * w)
            out = PixelDecoder(config)(z, pixels)
        else:
            assert isinstance(config.decoder, WanDecoderConfig)
            decoder, state = WanDecoder(config.decoder), DecoderState()
            decoder(torch.empty(1, config.latent_channels, 1, h, w), state)
            before = counter.get_total_flops()
            out = decoder(torch.empty(1, config.latent_channels, 1, h, w), state)
            return (counter.get_total_flops() - before) / (out.numel() / 3)
    return counter.get_total_flops() / (out.numel() / 3)


def ceilings(device: torch.device) -> dict[str, float]:
    """TFLOP/s of square products by number format, GB/s of copies: in memory, and on CUDA to the host and back."""
    side, done = SIDE[device.type], {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        done[f"{name} TFLOP/s"] = 2 * side**3 / milliseconds(partial(torch.mm, a, b), device, 11) / 1e9
    if missing_fp8(device) is None:
        a8, b8 = (torch.randn(side, side, device=device).to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device=device)
        product = partial(torch._scaled_mm, a8, b8.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        done["fp8 TFLOP/s"] = 2 * side**3 / milliseconds(product, device, 11) / 1e9
    size = BYTES[device.type]
    x = torch.zeros(size, dtype=torch.uint8, device=device)
    y = torch.zeros_like(x)
    copies: dict[str, tuple[Callable[[], object], int]] = {"memory": (partial(y.copy_, x), 2)}
    if device.type == "cuda":
        host = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
        copies |= {"to the host": (partial(host.copy_, x), 1), "from the host": (partial(x.copy_, host), 1)}
    for name, (work, times) in copies.items():
        done[f"{name} GB/s"] = times * size / milliseconds(work, device) / 1e6
    return done

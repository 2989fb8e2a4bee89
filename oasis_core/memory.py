"""What a job needs on the device beside the weights, so that a host can make room for it."""

from __future__ import annotations

from .attention.sdpa import WINDOW_KEY_BUDGET_ELSE
from .model.config import OasisConfig, PixelDecoderConfig
from .model.decoders import DecodePlan, TaehvDecoder, WanDecoder
from .model.decoders.streaming import COARSE
from .model.decoders.wan_layers import PAST
from .model.dit import DEVICE_TOKENS
from .model.vae_config import TaehvConfig, WanDecoderConfig
from .patchify import latent_length
from .pipeline import Upscaler
from .routing.auto import ShotRoutings
from .routing.spec import HeadPattern, RoutingSpec

TOKEN_WIDTHS = 16
"""Tensors of the model's width alive at once for each token, measured on oasis-tiny in fp32 (5 and 33 frames)."""
WINDOW_COPIES = 4
"""Tensors of the window operation's key budget alive at once: gathered keys and values, and what they are gathered from."""
PIXEL_BYTES = 72
"""For each output pixel of a frame group: six fp32 RGB images (upsampled, decoded, reference, colour correction)."""


def working_memory(upscaler: Upscaler, frames: int, height: int, width: int) -> int:
    """Bytes for a clip of that size: the transformer works on one tile of a chunk, the decoder on a whole frame group.

    A stateful decoder's memory of earlier frames stays while the transformer works.
    """
    config = upscaler.model.config
    geometry = upscaler.geometry(height, width)
    element = upscaler.model.project.weight.element_size()
    pixels = geometry.pad_h * geometry.pad_w
    times = latent_length(min(frames, upscaler.settings.chunk_frames), config.unshuffle[0])
    rows, columns = geometry.pad_h // config.pixel_multiple[0], geometry.pad_w // config.pixel_multiple[1]
    tile, _ = upscaler.tiling(rows, columns)
    tokens = times * min(rows, tile or rows) * min(columns, tile or columns)
    images = config.unshuffle[0] * pixels * PIXEL_BYTES
    if isinstance(config.decoder, PixelDecoderConfig):
        transformer = tokens * (2 * config.ffn_dim + TOKEN_WIDTHS * config.dim) * element
        return transformer + images + config.unshuffle[0] * pixels * 2 * config.decoder.hr_width * element
    transformer = transformer_memory(config, tokens, element, upscaler.routing)
    decoder = upscaler.model.decoder
    if isinstance(decoder, TaehvDecoder):
        state, work = tiny_decoder_memory(decoder.config, geometry.pad_h, geometry.pad_w, 1, decoder.plan, element)
    else:
        assert isinstance(decoder, WanDecoder)
        state, work = wan_decoder_memory(decoder.config, geometry.pad_h, geometry.pad_w, 1, decoder.plan, element)
    return state + max(transformer, work + images)


def transformer_memory(config: OasisConfig, tokens: int, element: int, routing: RoutingSpec | ShotRoutings) -> int:
    """Bytes of activations of one step on ``tokens`` tokens, in numbers of ``element`` bytes, off the CPU.

    The residual stream, q, k, v, and the heads' outputs before and after they are joined, for every token; norms, RoPE in fp32
    and the feed-forward layer for ``DEVICE_TOKENS`` at a time; the copies of the window operation.
    """
    few = min(tokens, DEVICE_TOKENS)
    rope = 5 * 4 // element  # five fp32 tensors of q's shape, in numbers
    by_token = max((6 + rope) * config.dim, 3 * config.dim + 2 * config.ffn_dim)
    plain = {HeadPattern.GLOBAL, HeadPattern.INTRA_FRAME}
    window = isinstance(routing, ShotRoutings) or not all(plain.issuperset(layer) for layer in routing.layers)
    return (tokens * 6 * config.dim + few * by_token + window * WINDOW_COPIES * WINDOW_KEY_BUDGET_ELSE) * element


def tiny_decoder_memory(
    config: TaehvConfig, height: int, width: int, latents: int, plan: DecodePlan, element: int
) -> tuple[int, int]:
    """``wan_decoder_memory`` for the tiny decoder."""
    pixel = height * width * config.width * element  # one frame at full resolution
    many = 4 * latents
    at_once = min(plan.frames or many, many)
    state = 3 * pixel * (4 / 64 + 2 / 16 + 1 / 4)
    half = 2 * latents * 6 / 4  # at half the resolution: input, its past beside it, hidden layers
    return int(state), int(pixel * max(half, 2 * latents / 4 + 3 * at_once) + many * height * width * 3 * element)


def wan_decoder_memory(
    config: WanDecoderConfig, height: int, width: int, latents: int, plan: DecodePlan, element: int
) -> tuple[int, int]:
    """Bytes of the Wan decoder's state between calls, and of a call beside it.

    Args:
        height, width: of the output, in pixels. latents: latent frames in a call.
        element: bytes of a number.
    """
    pixel = height * width * config.width * element  # one frame at full resolution
    # Inputs that the convolutions in time keep, in channels of ``width`` for each pixel of their resolution.
    small, large = 11 * 4 / 64 + 26 / 16, 6 * 2 / 4 + 7
    keeps = plan.keep_on is None
    tiles = [_with_halos(size, plan) for size in (height, width)]
    with_halos = sum(tiles[0]) * sum(tiles[1]) / (height * width)
    state = PAST * pixel * (small + large * with_halos) * keeps
    area = max(tiles[0]) * max(tiles[1]) / (height * width)
    many = 4 * latents
    at_once = min(plan.frames or many, many)
    # Residual stream, its new value, and the convolution's input with its past and one frame between norm and SiLU.
    second = (3 * 2 * latents + PAST + 1) * 4 / 16 + PAST * small * (not keeps)
    features = many * 4 / COARSE**2
    last = area * (3.5 * at_once + PAST + 1 + PAST * large * (not keeps))
    out = many * 3 / config.width * (1 if not plan.tile else 2)
    return int(state), int(pixel * (max(second, features + last) + out))


def _with_halos(size: int, plan: DecodePlan) -> list[int]:
    """Pixels of a side that each tile sees."""
    tile = plan.tile or size
    return [min(start + tile + plan.halo, size) - max(0, start - plan.halo) for start in range(0, size, tile)]

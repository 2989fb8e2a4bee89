"""What a job needs on the device beside the weights, so that a host can make room for it."""

from __future__ import annotations

from .model.config import OasisConfig, PixelDecoderConfig
from .model.decoders import DecodePlan
from .model.decoders.wan import COARSE, PAST
from .model.vae_config import WanDecoderConfig
from .patchify import latent_length
from .pipeline import Upscaler

TOKEN_WIDTHS = 16
"""Tensors of the model's width alive at once for each token, measured on oasis-tiny in fp32 (5 and 33 frames)."""
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
    transformer = transformer_memory(config, tokens, element)
    images = config.unshuffle[0] * pixels * PIXEL_BYTES
    if isinstance(config.decoder, PixelDecoderConfig):
        return transformer + images + config.unshuffle[0] * pixels * 2 * config.decoder.hr_width * element
    plan = getattr(upscaler.model.decoder, "plan", DecodePlan())
    state, work = wan_decoder_memory(config.decoder, geometry.pad_h, geometry.pad_w, 1, plan, element)
    return state + max(transformer, work + images)


def transformer_memory(config: OasisConfig, tokens: int, element: int) -> int:
    """Bytes of activations for ``tokens`` tokens at a time in numbers of ``element`` bytes."""
    return tokens * (2 * config.ffn_dim + TOKEN_WIDTHS * config.dim) * element


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
    state = PAST * pixel * (small + (large if plan.keep_on is None else 0))
    side = plan.tile + 2 * plan.halo if plan.tile else max(height, width)
    area = min(side, height) * min(side, width) / (height * width)
    many = 4 * latents
    at_once = min(plan.frames or many, many)
    # Residual stream, its new value, and the convolution's input with its past and one frame between norm and SiLU.
    second = (3 * 2 * latents + PAST + 1) * 4 / 16
    features = many * 4 / COARSE**2
    last = area * (3.5 * at_once + PAST + 1 + (PAST * large if plan.keep_on is not None else 0))
    out = many * 3 / config.width * (1 if not plan.tile else 2)
    return int(state), int(pixel * (max(second, features + last) + out))

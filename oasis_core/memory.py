"""What a job needs on the device beside the weights, so that a host can make room for it."""

from __future__ import annotations

from .patchify import latent_length
from .pipeline import Upscaler

TOKEN_WIDTHS = 16
"""Tensors of the model's width alive at once for each token, measured on oasis-tiny in fp32 (5 and 33 frames)."""
PIXEL_BYTES = 72
"""For each output pixel of a frame group: six fp32 RGB images (upsampled, decoded, reference, colour correction)."""


def working_memory(upscaler: Upscaler, frames: int, height: int, width: int) -> int:
    """Bytes for a clip of that size: the transformer works on one tile of a chunk, the decoder on a whole frame group."""
    config = upscaler.model.config
    geometry = upscaler.geometry(height, width)
    element = upscaler.model.project.weight.element_size()
    pixels = geometry.pad_h * geometry.pad_w
    times = latent_length(min(frames, upscaler.settings.chunk_frames), config.unshuffle[0])
    rows, columns = geometry.pad_h // config.pixel_multiple[0], geometry.pad_w // config.pixel_multiple[1]
    tile, _ = upscaler.tiling(rows, columns)
    tokens = times * min(rows, tile or rows) * min(columns, tile or columns)
    transformer = tokens * (2 * config.ffn_dim + TOKEN_WIDTHS * config.dim) * element
    decoder = config.unshuffle[0] * pixels * (2 * config.decoder.hr_width * element + PIXEL_BYTES)
    return transformer + decoder

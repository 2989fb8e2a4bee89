"""What to do when the device's memory runs out: the same job in smaller bites."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..patchify import latent_length
from ..pipeline import Upscaler, UpscaleSettings

LEAST_TILE = 128
"""Smallest tile side, in output pixels: under it the overlap is most of the work."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory ran out (Apple's MPS says so in a plain RuntimeError)."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


def free_memory() -> None:
    """Give back what the allocators hold."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def with_plan(upscaler: Upscaler, chunk_frames: int | None, tile: int | None, at_once: int | None = None) -> Upscaler:
    """The same with another chunk or tile, or other latent frames at once (None: as it is).

    Overlaps that no longer fit are cut down.
    """
    s, cell = upscaler.settings, upscaler.model.config.pixel_multiple[0]
    at_once = s.at_once if at_once is None else at_once
    chunk_frames, tile = s.chunk_frames if chunk_frames is None else chunk_frames, s.tile if tile is None else tile
    overlap, tile_overlap = s.chunk_overlap, s.tile_overlap
    if overlap is not None:
        overlap = min(overlap, latent_length(chunk_frames, upscaler.model.config.unshuffle[0]) - 1)
    if tile_overlap is not None and tile:
        tile_overlap = min(tile_overlap, tile // 2 // cell * cell)
    settings = replace(
        s, chunk_frames=chunk_frames, chunk_overlap=overlap, tile=tile, tile_overlap=tile_overlap, at_once=at_once
    )
    return Upscaler(upscaler.model, upscaler.routing, settings)


def smaller(upscaler: Upscaler, height: int, width: int) -> Upscaler | None:
    """With half the chunk; of single frames with half the tile. Both draw one at a time. None where nothing smaller is left.

    ``height`` and ``width`` are the input's.
    """
    if upscaler.settings.chunk_frames > 1:
        return with_plan(upscaler, upscaler.settings.chunk_frames // 2, None, at_once=1)
    geometry, cell = upscaler.geometry(height, width), upscaler.model.config.pixel_multiple
    tokens, _ = upscaler.tiling(geometry.pad_h // cell[0], geometry.pad_w // cell[1])
    longest = max(geometry.pad_h, geometry.pad_w)
    side = min(tokens * cell[0] or longest, longest)
    least, half = (pixels // cell[0] * cell[0] for pixels in (LEAST_TILE + cell[0] - 1, side // 2))  # whole tokens
    return with_plan(upscaler, None, max(least, half), at_once=1) if side > least else None


def shrunk(upscaler: Upscaler, height: int, width: int) -> Upscaler:
    """``smaller``. Raises MemoryError, one line, where there is nothing smaller."""
    result = smaller(upscaler, height, width)
    if result is None:
        raise MemoryError(
            f"out of memory even with {told(upscaler.settings)}: lower the output size (scale, or width and height)"
        )
    return result


def told(settings: UpscaleSettings) -> str:
    """Chunk and tile in words."""
    tile = {None: "tile by size", 0: "whole frames"}.get(settings.tile, f"tile {settings.tile}")
    return f"chunk {settings.chunk_frames}, {tile}"

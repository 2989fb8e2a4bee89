"""Sizes: from the input's to the output's, and the padding that the model needs. Integers, and one resampling call."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

MIN_SIDE = 16
"""Smallest input side, pixels."""
MIN_SCALE, MAX_SCALE = 1, 4
"""Output sides are 1 to 4 times the input's."""


@dataclass(frozen=True)
class Geometry:
    """One job's sizes, in pixels: input, output, and output padded (right and bottom) to the model's multiple."""

    in_h: int
    in_w: int
    out_h: int
    out_w: int
    pad_h: int
    pad_w: int


def plan_geometry(
    in_h: int,
    in_w: int,
    *,
    scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    multiple: tuple[int, int] = (1, 1),
) -> Geometry:
    """The output is exactly the size asked for: ``round(side * scale)``, or ``width`` and/or ``height``.

    With only one of width and height the other keeps the aspect ratio. ``multiple``: what the padded height and width
    must be multiples of.

    Raises:
        ValueError: input under 16x16, not exactly one way of naming the size, or a factor outside 1 to 4 (either axis).
    """
    if min(in_h, in_w) < MIN_SIDE:
        raise ValueError(f"input is {in_w}x{in_h} pixels; it must be at least {MIN_SIDE}x{MIN_SIDE}: enlarge it first")
    by_size = width is not None or height is not None
    if (scale is not None) == by_size:
        got = f"scale {scale}, width {width}, height {height}"
        raise ValueError(f"give either a scale or a target size, not both or neither ({got})")
    if scale is not None:
        if not (math.isfinite(scale) and MIN_SCALE <= scale <= MAX_SCALE):
            raise ValueError(
                f"scale is {scale}; it must be from {MIN_SCALE} to {MAX_SCALE} (for more, upscale the result once more)"
            )
        out_h, out_w = round(in_h * scale), round(in_w * scale)
    else:
        out_h, out_w = _target(in_h, in_w, width, height)
        # A side that follows from the other one is in range with it: rounding keeps the order.
        for name, asked, side in (("width", width, in_w), ("height", height, in_h)):
            if asked is not None and not side * MIN_SCALE <= asked <= side * MAX_SCALE:
                raise ValueError(
                    f"target {name} is {asked} for an input of {side}; it must be from {side * MIN_SCALE} to "
                    f"{side * MAX_SCALE} ({MIN_SCALE} to {MAX_SCALE} times)"
                )
    mh, mw = multiple
    return Geometry(in_h, in_w, out_h, out_w, -(-out_h // mh) * mh, -(-out_w // mw) * mw)


def _target(in_h: int, in_w: int, width: int | None, height: int | None) -> tuple[int, int]:
    if width is None:
        assert height is not None
        return height, round(in_w * height / in_h)
    if height is None:
        return round(in_h * width / in_w), width
    return height, width


def upsample_and_pad(frames: Tensor, geometry: Geometry) -> Tensor:
    """Frames on the target grid: bicubic with antialiasing, edges replicated into the padding.

    Args:
        frames: ``(T, in_h, in_w, 3)`` in [0, 1].

    Returns:
        ``(1, 3, T, pad_h, pad_w)`` in [-1, 1], float, on the frames' device.

    Raises:
        ValueError: frames of another size.
    """
    if tuple(frames.shape[1:]) != (geometry.in_h, geometry.in_w, 3):
        raise ValueError(f"frames are {tuple(frames.shape)}; expected (T, {geometry.in_h}, {geometry.in_w}, 3)")
    # Scaled while it is small: the weights of a bicubic sum to 1.
    x = _bicubic(frames.to(torch.float32) * 2 - 1, geometry.out_h, geometry.out_w).clamp_(-1, 1)
    right, bottom = geometry.pad_w - geometry.out_w, geometry.pad_h - geometry.out_h
    if right or bottom:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return rearrange(x, "t c h w -> 1 c t h w")


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing: ``(T, H, W, C)`` in [0, 1] -> ``(T, height, width, C)`` in [0, 1], fp32."""
    return rearrange(_bicubic(frames.to(torch.float32), height, width).clamp(0, 1), "t c h w -> t h w c")


def _bicubic(frames: Tensor, height: int, width: int) -> Tensor:
    """``(T, H, W, C)`` fp32 -> ``(T, C, height, width)``; the sharpest edges overshoot."""
    x = rearrange(frames, "t h w c -> t c h w").contiguous()  # half the time of strided channels
    if x.shape[-2:] != (height, width):
        x = F.interpolate(x, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return x


def crop(frames: Tensor, geometry: Geometry) -> Tensor:
    """Cut the padding off: ``(T, pad_h, pad_w, C)`` -> ``(T, out_h, out_w, C)``. ValueError for another size."""
    if tuple(frames.shape[1:3]) != (geometry.pad_h, geometry.pad_w):
        raise ValueError(f"frames are {tuple(frames.shape)}; expected (T, {geometry.pad_h}, {geometry.pad_w}, C)")
    return frames[:, : geometry.out_h, : geometry.out_w]


def to_unit_range(frames: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1], in place and in one pass."""
    return torch.add(torch.full((), 0.5, device=frames.device), frames, alpha=0.5, out=frames)

"""Colour correction: give the restored frames the colours of the input, frame by frame.

Written from the formulas, which each method states; every frame is treated alone, so streamed equals whole.
"""

from __future__ import annotations

from enum import Enum

import torch
import torch.nn.functional as F
from einops import rearrange
from kornia.color import lab_to_rgb, rgb_to_lab
from torch import Tensor

WAVELET_LEVELS = 5
"""Levels of the a-trous transform; the last low-pass spans 2^5 - 1 pixels to each side."""
FLAT = 1e-3
"""Standard deviation (a quarter of an 8-bit code value) below which a channel counts as flat: it is moved, and its
rounding noise is not stretched."""


class ColorMethod(str, Enum):
    """How colours are carried over from the (upsampled) input."""

    NONE = "none"
    """Leave the model's colours."""
    ADAIN = "adain"
    """Each channel gets the input's mean and standard deviation."""
    WAVELET = "wavelet"
    """Low frequencies come from the input, high ones from the model."""
    LAB = "lab"
    """In CIELAB (D65), a and b get the input's mean and standard deviation; lightness stays the model's."""

    @classmethod
    def of(cls, name: str) -> ColorMethod:
        """The method of that name. Raises ValueError that lists the names."""
        try:
            return cls(name)
        except ValueError:
            raise ValueError(f"colour method is {name!r}; allowed: {', '.join(m.value for m in cls)}") from None


def correct_color(sr: Tensor, reference: Tensor, method: ColorMethod) -> Tensor:
    """Frames ``(T, H, W, 3)`` in [0, 1] with the reference's colours.

    Args:
        sr: restored frames; values a little outside [0, 1] are fine.
        reference: the input, resampled to the same size.
        method: a ``ColorMethod`` or its name.

    Returns:
        fp32, clamped to [0, 1].

    Raises:
        ValueError: shapes differ, or no such method.
    """
    method = ColorMethod.of(method)
    if sr.shape != reference.shape or sr.ndim != 4 or sr.shape[-1] != 3:
        raise ValueError(f"frames are {tuple(sr.shape)}, reference {tuple(reference.shape)}; both must be (T, H, W, 3)")
    if method is ColorMethod.NONE:
        return sr.float().clamp(0, 1)
    correct = {ColorMethod.ADAIN: _adain, ColorMethod.WAVELET: _wavelet, ColorMethod.LAB: _lab}[method]
    out = torch.empty(sr.shape, dtype=torch.float32, device=sr.device)
    for frame, x, y in zip(out, sr, reference, strict=True):  # one at a time: working memory is a frame's
        planes = correct(*(rearrange(f.float(), "h w c -> c h w").contiguous() for f in (x, y)))
        frame.copy_(rearrange(planes.clamp_(0, 1), "c h w -> h w c"))
    return out


def _adain(x: Tensor, y: Tensor) -> Tensor:
    """(x - mean_x) / sd_x * sd_y + mean_y for each channel of ``(C, H, W)``."""
    mean_x, mean_y = x.mean((1, 2), keepdim=True), y.mean((1, 2), keepdim=True)
    x, y = x - mean_x, y - mean_y
    sd_x, sd_y = (d.square().mean((1, 2), keepdim=True).sqrt() for d in (x, y))
    return x * (sd_y.clamp_min(FLAT) / sd_x.clamp_min(FLAT)) + mean_y


def _wavelet(x: Tensor, y: Tensor) -> Tensor:
    """high(x) + low(y) = x - low(x - y), since the low-pass is linear."""
    return x - _low_pass(x - y)


def _low_pass(x: Tensor) -> Tensor:
    """The a-trous cascade on ``(C, H, W)``: [1 2 1] / 4 along rows and columns, dilated by 2^i, borders replicated.

    As shifted sums: on a CPU 3 to 20 times faster than as depthwise convolutions.
    """
    _, height, width = x.shape
    for step in (2**level for level in range(WAVELET_LEVELS)):
        padded = F.pad(x, (0, 0, step, step), mode="replicate")
        x = (padded[:, :height] + padded[:, 2 * step :]).mul_(0.25).add_(x, alpha=0.5)
        padded = F.pad(x, (step, step, 0, 0), mode="replicate")
        x = (padded[:, :, :width] + padded[:, :, 2 * step :]).mul_(0.25).add_(x, alpha=0.5)
    return x


def _lab(x: Tensor, y: Tensor) -> Tensor:
    """a and b of ``(3, H, W)`` by ``_adain`` in CIELAB, L as it is."""
    lab_x, lab_y = rgb_to_lab(x.clamp(0, 1)), rgb_to_lab(y.clamp(0, 1))
    return lab_to_rgb(torch.cat([lab_x[:1], _adain(lab_x[1:], lab_y[1:])]))

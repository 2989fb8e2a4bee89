"""Colour correction: give the restored frames the colours of the input, frame by frame.

Written from the formulas (DESIGN section 6); every method treats each frame alone, so streamed equals whole.
"""

from __future__ import annotations

from enum import Enum

import torch
import torch.nn.functional as F
from einops import rearrange
from kornia.color import lab_to_rgb, rgb_to_lab
from torch import Tensor

WAVELET_LEVELS = 5
"""Levels of the a-trous transform; the last low-pass spans about 2 * 2^5 pixels to each side."""


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

    Returns:
        fp32, clamped to [0, 1].

    Raises:
        ValueError: shapes differ.
    """
    if sr.shape != reference.shape or sr.shape[-1] != 3:
        raise ValueError(f"frames are {tuple(sr.shape)}, reference {tuple(reference.shape)}; both must be (T, H, W, 3)")
    if method is ColorMethod.NONE:
        return sr.float().clamp(0, 1)
    x, y = (rearrange(f.float(), "t h w c -> t c h w") for f in (sr, reference))
    correct = {ColorMethod.ADAIN: _adain, ColorMethod.WAVELET: _wavelet, ColorMethod.LAB: _lab}[method]
    return rearrange(correct(x, y), "t c h w -> t h w c").clamp(0, 1)


def _adain(x: Tensor, y: Tensor) -> Tensor:
    """(x - mean_x) / sd_x * sd_y + mean_y per frame and channel; a flat x channel just moves to y's mean."""
    sd_x, mean_x = torch.std_mean(x, (2, 3), correction=0, keepdim=True)
    sd_y, mean_y = torch.std_mean(y, (2, 3), correction=0, keepdim=True)
    return (x - mean_x) * (sd_y / sd_x.clamp_min(1e-5)) + mean_y


def _wavelet(x: Tensor, y: Tensor) -> Tensor:
    """high(x) + low(y) = x - low(x - y), since the low-pass is linear."""
    return x - _low_pass(x - y)


def _low_pass(x: Tensor) -> Tensor:
    """The a-trous cascade: [1 2 1] / 4 along rows and columns, dilated by 2^i, borders replicated."""
    channels = x.shape[1]
    kernel = x.new_tensor([0.25, 0.5, 0.25])
    for level in range(WAVELET_LEVELS):
        step = 2**level
        rows = kernel.view(1, 1, 3, 1).expand(channels, 1, 3, 1)
        columns = kernel.view(1, 1, 1, 3).expand(channels, 1, 1, 3)
        x = F.conv2d(F.pad(x, (0, 0, step, step), mode="replicate"), rows, dilation=step, groups=channels)
        x = F.conv2d(F.pad(x, (step, step, 0, 0), mode="replicate"), columns, dilation=step, groups=channels)
    return x


def _lab(x: Tensor, y: Tensor) -> Tensor:
    lab_x, lab_y = rgb_to_lab(x.clamp(0, 1)), rgb_to_lab(y.clamp(0, 1))
    return lab_to_rgb(torch.cat([lab_x[:, :1], _adain(lab_x[:, 1:], lab_y[:, 1:])], dim=1))

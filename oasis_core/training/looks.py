"""Looks of real video that blur, noise and codecs do not give: film grain, halos, colour bleeding, smear, bands, rescaling.

All but rescaling keep the mean colour of each frame (grain: on average): a model trained on casts would shift colours.
Frames are ``(S, 3, H, W)`` in [0, 1], parameters tensors ``(S,)``; results may leave [0, 1] a little, the caller clamps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .axis_filters import filter_axes, gaussian_matrix, rescale_matrix


def film_grain(x: Tensor, strength: Tensor, size: Tensor, grey: Tensor, generator: torch.Generator) -> Tensor:
    """Spatially correlated noise, new in each frame, strongest in the mid-tones, none in black and white.

    Deviation ``strength * 2 sqrt(u (1 - u))`` at luminance u: that of film's opaque grains (Boolean model, Newson et al.,
    "Realistic Film Grain Rendering", IPOL 2017).

    Args:
        strength: deviation at mid-grey, 0 to 1.
        size: standard deviation of the blur that correlates it, pixels.
        grey: bool; the same grain in all channels.
    """
    height, width = x.shape[-2:]
    white = torch.randn(x.shape, generator=generator, device=x.device)
    white = torch.where(_each(grey), white[:, :1], white)
    down, across = (_unit_variance(gaussian_matrix(n, size)) for n in (height, width))
    u = luma(x).clamp(0, 1)
    return x + filter_axes(white, down, across) * _each(strength) * 2 * (u * (1 - u)).sqrt()


def halo(x: Tensor, amount: Tensor, sigma: Tensor) -> Tensor:
    """Unsharp mask: ``x + amount * (x - blurred)``, of the luminance, as cameras and televisions do."""
    y = luma(x)
    return _keep_mean(x, x + _each(amount) * (y - _blurred(y, sigma, sigma)))


def bleed(x: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Colour blurred by ``across`` and ``down`` pixels (standard deviations), luminance kept: analogue tape, 4:1:1."""
    y = luma(x)
    return _keep_mean(x, y + _blurred(x - y, down, across))


def smear(x: Tensor, threshold: Tensor, sigma: Tensor) -> Tensor:
    """Denoised too strongly: texture whose local deviation is below ``threshold`` goes, edges stay.

    The guided filter of the picture by its own luminance (He, Sun and Tang, PAMI 2013), with a Gaussian window.
    """
    y = luma(x)
    mean, mean_y = _blurred(x, sigma, sigma), _blurred(y, sigma, sigma)
    variance = (_blurred(y.square(), sigma, sigma) - mean_y.square()).clamp_min(0)
    covariance = _blurred(x * y, sigma, sigma) - mean * mean_y
    slope = covariance / (variance + _each(threshold).square())
    offset = mean - slope * mean_y
    return _keep_mean(x, _blurred(slope, sigma, sigma) * y + _blurred(offset, sigma, sigma))


def bands(x: Tensor, levels: Tensor) -> Tensor:
    """Luminance rounded to ``levels`` steps between black and white; colour differences kept."""
    y = luma(x)
    steps = _each(levels) - 1
    return _keep_mean(x, x + (y * steps).round() / steps - y)


def rescaled(x: Tensor, down: Tensor, across: Tensor, nearest: Tensor) -> Tensor:
    """Reduced by the factors ``down`` and ``across`` (0 to 1) and magnified again, without antialiasing: jagged, uneven."""
    height, width = x.shape[-2:]
    return filter_axes(x, rescale_matrix(height, down, nearest), rescale_matrix(width, across, nearest))


def luma(x: Tensor) -> Tensor:
    """``(S, 1, H, W)``, BT.601."""
    return 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]


def _keep_mean(before: Tensor, after: Tensor) -> Tensor:
    """``after``, clamped to [0, 1], moved to the mean colour of ``before``."""
    after = after.clamp(0, 1)
    return after + (before - after).mean((2, 3), keepdim=True)


def _blurred(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return filter_axes(x, gaussian_matrix(x.shape[-2], down), gaussian_matrix(x.shape[-1], across))


def _unit_variance(matrix: Tensor) -> Tensor:
    """Rows of Euclidean length 1: white noise keeps its variance, at the border too."""
    return matrix / matrix.square().sum(2, keepdim=True).sqrt()


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]

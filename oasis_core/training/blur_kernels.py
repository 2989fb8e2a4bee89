"""Blur kernels of Real-ESRGAN's pipeline (arXiv 2107.10833, appendix), many at once from tensors of parameters."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 21
"""Side of every kernel, pixels."""


def gaussian_family(sigma_x: Tensor, sigma_y: Tensor, angle: Tensor, beta: Tensor, plateau: Tensor) -> Tensor:
    """Kernels ``(S, SIZE, SIZE)`` that sum to 1, from parameters ``(S,)``.

    With q the squared Mahalanobis distance: generalised Gaussian exp(-q^beta / 2) (beta 1: plain), or, where
    ``plateau`` is true, 1 / (1 + q^beta). Sigmas in pixels, angle in radians.
    """
    y, x = _coordinates(sigma_x.device)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    u, v = cos * x + sin * y, -sin * x + cos * y
    q = (u / sigma_x[:, None, None]).square() + (v / sigma_y[:, None, None]).square()
    power = q.clamp_min(1e-12).pow(beta[:, None, None])
    kernel = torch.where(plateau[:, None, None], 1 / (1 + power), torch.exp(-0.5 * power))
    return kernel / kernel.sum((1, 2), keepdim=True)


def sinc(omega: Tensor) -> Tensor:
    """Circular low-pass kernels ``(S, SIZE, SIZE)`` that sum to 1; cut-off ``omega`` ``(S,)`` in radians per pixel.

    Their overshoot makes the ringing that sharpening and resampling leave.
    """
    y, x = _coordinates(omega.device)
    r = (x.square() + y.square()).sqrt()
    w = omega[:, None, None]
    kernel = w * torch.special.bessel_j1(w * r) / (2 * torch.pi * r.clamp_min(1e-6))
    kernel = torch.where(r == 0, w.square() / (4 * torch.pi), kernel)
    return kernel / kernel.sum((1, 2), keepdim=True)


def filter_frames(frames: Tensor, kernels: Tensor) -> Tensor:
    """Each frame ``(S, C, H, W)`` with its own kernel ``(S, SIZE, SIZE)``; by FFT, borders reflected."""
    margin = SIZE // 2
    height, width = frames.shape[-2:]
    mode = "reflect" if min(height, width) > margin else "replicate"
    padded = torch.nn.functional.pad(frames, (margin,) * 4, mode=mode)
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels, s=size)[:, None]
    full = torch.fft.irfft2(spectrum, s=size)
    return full[..., 2 * margin : 2 * margin + height, 2 * margin : 2 * margin + width]


def _coordinates(device: torch.device) -> tuple[Tensor, Tensor]:
    axis = torch.arange(SIZE, device=device, dtype=torch.float32) - SIZE // 2
    return axis[:, None].expand(SIZE, SIZE), axis[None, :].expand(SIZE, SIZE)

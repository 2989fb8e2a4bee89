"""From clean to low quality: the second-order pipeline of Real-ESRGAN and RealBasicVSR, batched on the device.

blur -> resize -> noise -> JPEG, twice, to the low-resolution size; some clips are interlaced there, or get film grain,
halos and the like (``look_draws.py``); a real codec follows (``codec.py``).
Parameters are drawn once a clip (``consistent``) or walk from frame to frame (``walk``), with RealBasicVSR's steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .blur_kernels import filter_frames, gaussian_family, sinc
from .draw import STEPS, Draw, Mode, Range, check_range
from .interlace import interlaced
from .jpeg import jpeg
from .look_draws import LookConfig, give_looks

RESIZE_MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Order:
    """One round of the pipeline: probabilities (per clip) and ranges of its parameters.

    Real-ESRGAN's (arXiv 2107.10833, options/train_realesrgan_x4plus.yml), first / second round, for comparison:
    sigma 0.2-3 / 0.2-1.5, resize 0.15-1.5 / 0.3-1.2, gaussian 1-30 / 1-25, poisson 0.05-3 / 0.05-2.5, quality 30-95.
    """

    blur: float
    """Probability."""
    sigma: Range
    """Standard deviation of the blur, pixels."""
    resize: Range
    """Factor. The last round goes to the low-resolution size instead."""
    noise: float
    """Probability."""
    gaussian: Range
    """Standard deviation, 1/255."""
    poisson: Range
    """Standard deviation relative to that of photon noise of 255 photons at white."""
    compress: float
    """Probability of JPEG."""
    quality: Range
    """JPEG quality, libjpeg's scale."""

    def __post_init__(self) -> None:
        for name in ("blur", "noise", "compress"):
            check_range(name, (0.0, getattr(self, name)), 1.0)
        limits = {"sigma": 6.0, "resize": 4.0, "gaussian": 255.0, "poisson": 255.0, "quality": 100.0}
        for name, most in limits.items():
            check_range(name, getattr(self, name), most)


@dataclass(frozen=True)
class DegradationConfig:
    """Strengths. Milder than Real-ESRGAN's: real web video is cleaner than that, and every bit of excess is paid in
    sharpness on good inputs."""

    mild: float = 0.25
    """Share of clips that are only area-downscaled (and then coded)."""
    first: Order = Order(
        blur=0.85, sigma=(0.2, 2.4), resize=(0.4, 1.2), noise=0.8, gaussian=(0.5, 12), poisson=(0.05, 2.0),
        compress=0.85, quality=(40, 95),
    )  # fmt: skip
    """At the ground truth's scale."""
    second: Order = Order(
        blur=0.4, sigma=(0.2, 1.2), resize=(0.9, 1.1), noise=0.6, gaussian=(0.3, 5), poisson=(0.05, 0.7),
        compress=0.3, quality=(50, 95),
    )  # fmt: skip
    """Blur before, the rest after going to the low-resolution size."""
    sinc: float = 0.1
    """Share of blurs that are sinc kernels."""
    grey: float = 0.4
    """Share of noise that is the same in all channels."""
    looks: LookConfig = LookConfig()
    """What comes at the low-resolution size, around the second noise."""

    def __post_init__(self) -> None:
        for name in ("mild", "sinc", "grey"):
            check_range(name, (0.0, getattr(self, name)), 1.0)


def degrade(
    hr: Tensor,
    low: tuple[int, int],
    mode: Mode,
    rng: np.random.Generator,
    generator: torch.Generator,
    config: DegradationConfig = DegradationConfig(),
) -> Tensor:
    """Low-quality clips ``(B, 3, T, h, w)``, float in [0, 1], quantised to 1/255, before the codec.

    Args:
        hr: ``(B, 3, T, H, W)`` in [0, 1].
        low: (h, w) of the result.
        rng, generator: parameters come from the first (host), noise from the second (hr's device).
    """
    batch, _, frames = hr.shape[:3]
    mild = int(rng.binomial(batch, config.mild))
    x = rearrange(hr[mild:], "b c t h w -> (b t) c h w")
    parts = []
    if mild:
        parts.append(_resize(rearrange(hr[:mild], "b c t h w -> (b t) c h w"), low, "area"))
    if mild < batch:
        draw = Draw(batch - mild, frames, mode, rng, hr.device)
        x = _blur(x, config, config.first, draw)
        x = _resize_walking(x, config.first, draw)
        x = _noise(x, config, config.first, draw, generator)
        x = _compress(x, config.first, draw)
        x = _blur(x, config, config.second, draw)
        x = _resize(x, low, _any_mode(draw))
        x = draw.on_some(x, config.looks.interlace, interlaced)
        x = _noise(x, config, config.second, draw, generator)
        x = give_looks(x, config.looks, draw, generator)
        x = _compress(x, config.second, draw)
        parts.append(x)
    lq = (torch.cat(parts) * 255).round().clamp(0, 255) / 255
    return rearrange(lq, "(b t) c h w -> b c t h w", b=batch)


def _blur(x: Tensor, config: DegradationConfig, order: Order, draw: Draw) -> Tensor:
    return torch.where(draw.chance(order.blur)[:, None, None, None], filter_frames(x, _kernels(config, order, draw)), x)


def _noise(x: Tensor, config: DegradationConfig, order: Order, draw: Draw, generator: torch.Generator) -> Tensor:
    return torch.where(draw.chance(order.noise)[:, None, None, None], _noisy(x, config, order, draw, generator), x)


def _compress(x: Tensor, order: Order, draw: Draw) -> Tensor:
    x = x.clamp(0, 1)
    squeezed = jpeg(x, draw.value(*order.quality, STEPS["quality"]))
    return torch.where(draw.chance(order.compress)[:, None, None, None], squeezed, x)


def _kernels(config: DegradationConfig, order: Order, draw: Draw) -> Tensor:
    """Half the Gaussians isotropic; shapes as Real-ESRGAN mixes them: plain .7, generalised .15, plateau .15."""
    sigma_x = draw.value(*order.sigma, STEPS["sigma"])
    isotropic = draw.chance(0.5)
    sigma_y = torch.where(isotropic, sigma_x, draw.value(*order.sigma, STEPS["sigma"]))
    angle = draw.value(-np.pi, np.pi, STEPS["rotate"])
    shape = draw.rng.random((draw.clips, 1))
    generalised = draw.put(np.repeat((shape > 0.7) & (shape <= 0.85), draw.frames, 1))
    plateau = draw.put(np.repeat(shape > 0.85, draw.frames, 1))
    one = torch.ones_like(sigma_x)
    beta = torch.where(generalised, draw.value(0.5, 4, STEPS["beta_gaussian"]), one)
    beta = torch.where(plateau, draw.value(1, 2, STEPS["beta_plateau"]), beta)
    smooth = gaussian_family(sigma_x, sigma_y, angle, beta, plateau)
    ringing = sinc(draw.value(np.pi / 3, np.pi, STEPS["omega"]))
    return torch.where(draw.chance(config.sinc)[:, None, None], ringing, smooth)


def _resize_walking(x: Tensor, order: Order, draw: Draw) -> Tensor:
    """One factor for the whole batch; in walk mode each frame time goes to its own size and back to the first's."""
    factor = draw.walk(*order.resize, STEPS["resize"])[0]
    mode, height, width = _any_mode(draw), x.shape[-2], x.shape[-1]
    sizes = [(max(16, round(height * f)), max(16, round(width * f))) for f in factor]
    if len(set(sizes)) == 1:
        return _resize(x, sizes[0], mode)
    clips = rearrange(x, "(b t) c h w -> b t c h w", t=draw.frames)
    moved = [_resize(_resize(clips[:, t], size, mode), sizes[0], "bicubic") for t, size in enumerate(sizes)]
    return rearrange(torch.stack(moved, 1), "b t c h w -> (b t) c h w")


def _resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if mode == "area":
        return F.interpolate(x, size=size, mode="area")
    return F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=True).clamp(0, 1)


def _any_mode(draw: Draw) -> str:
    return RESIZE_MODES[draw.rng.integers(len(RESIZE_MODES))]


def _noisy(x: Tensor, config: DegradationConfig, order: Order, draw: Draw, generator: torch.Generator) -> Tensor:
    """Gaussian or Poisson noise (normal approximation: deviation = scale * sqrt(value / 255)), colour or grey."""
    colour = torch.randn(x.shape, generator=generator, device=x.device)
    grey = colour[:, :1].expand_as(colour)
    noise = torch.where(draw.chance(config.grey)[:, None, None, None], grey, colour)
    gaussian = draw.value(*order.gaussian, STEPS["gaussian"])[:, None, None, None] / 255
    poisson = draw.value(*order.poisson, STEPS["poisson"])[:, None, None, None]
    shot = poisson * (x.clamp(0, 1) / 255).sqrt()
    return x + noise * torch.where(draw.chance(0.6)[:, None, None, None], gaussian.expand_as(shot), shot)

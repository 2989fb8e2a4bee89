"""What a step is judged by; every term takes frames ``(B, 3, T, H, W)`` in [0, 1]."""

from __future__ import annotations

from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor

from .discriminator import FRAMES

CHARBONNIER_EPS = 1e-3
UNSEEN = 1e-3
"""Standard deviation of noise, a quarter of a code value, whose power ``grid`` adds to both: a logarithm's gradient has no bound
where there is little, and would drown all else while pictures are still smooth."""
PERIODS = 4
"""Periods of ``grid`` that a crop must hold, to tell its frequencies from others."""
CROP = 192
"""Side (pixels) of the random crop that the adversary sees. It lies elsewhere each step, so that
the network cannot hide a fixed pattern in the places where a metric's pooling does not look (DESIGN section 5)."""
LOOK, LEAST_LOOK = 128, 32
"""Side (pixels) of what the perceptual term sees, at most and at least: VGG halves it four times."""
SHARES = (1.0, 2 / 3, 1 / 2)
"""Sizes at which it looks, by chance. At one size alone the model learns what these features like: the distance at full size
went on falling where AlexNet's rose, and where its own rose at 2/3 and 1/2 (docs/training.md)."""
LOOKS = 2
"""Of each clip in a step."""


def charbonnier(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + eps^2)."""
    return ((sr - hr).float().square() + CHARBONNIER_EPS**2).sqrt().mean()


def low_pass(frames: Tensor) -> Tensor:
    """Area-downscaled by 4 in space."""
    return F.avg_pool3d(frames, (1, 4, 4))


def frequency(sr: Tensor, hr: Tensor) -> Tensor:
    """L1 of the difference's 2D spectrum (orthonormal): an error that sits in few frequencies costs as much as one
    spread over all (the loss of MIMO-UNet, arXiv 2108.05054, section 3.3)."""
    spectrum = torch.fft.rfft2((sr - hr).float(), norm="ortho")
    return torch.view_as_real(spectrum).abs().mean()


def grid(sr: Tensor, hr: Tensor, period: int) -> Tensor:
    """By how much the frames repeat more, or less, with a period of so many pixels (a token's side) than ``hr`` do.

    Compared are the mean logarithms of the power at the spectrum's multiples of that frequency over that half way between.
    A network that writes pictures in tokens leaves a weave of their period, which perceptual losses do not see and even like
    (docs/training.md). Sides are cut to a multiple of two periods, and must be ``PERIODS`` or more.
    """
    return (_comb(sr, period) - _comb(hr, period)).abs()


def _comb(frames: Tensor, period: int) -> Tensor:
    height, width = (size // (2 * period) * 2 * period for size in frames.shape[-2:])
    gray = frames[..., :height, :width].float().mean(1).flatten(0, 1)
    windows = [torch.hann_window(n, periodic=False, device=gray.device) for n in (height, width)]
    window = windows[0][:, None] * windows[1]
    flat = (gray - gray.mean((1, 2), keepdim=True)) * window
    power = torch.fft.fft2(flat).abs().square() + UNSEEN**2 * window.square().sum()
    steps = height // period, width // period
    rows, columns = (torch.arange(period, device=gray.device) * step for step in steps)

    def at(down: int, right: int) -> Tensor:
        return power[:, (rows + down) % height][:, :, (columns + right) % width]

    y, x = (step // 2 for step in steps)
    around = [at(a, b) for a in (-y, 0, y) for b in (-x, 0, x) if a or b]
    excess = at(0, 0).log() - torch.stack(around).mean(0).log()
    low = torch.tensor([k in (0, 1, period - 1) for k in range(period)], device=gray.device)
    return excess[:, ~(low[:, None] & low)].mean()  # the lowest are the picture's own


def motion(sr: Tensor, hr: Tensor) -> Tensor:
    """L1 of the frame-to-frame differences; 0 for stills."""
    if sr.shape[2] < 2:
        return sr.new_zeros(())
    return (sr.diff(dim=2) - hr.diff(dim=2)).abs().mean()


def looks(sr: Tensor, hr: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What the perceptual term compares: ``LOOKS`` images of each clip, ``(LOOKS * B, 3, side, side)`` of both alike.

    Each is a random crop of a random frame at a random one of ``SHARES`` of its size (area-downscaled), alike for all clips.
    """
    pairs = [_look(sr, hr, generator) for _ in range(LOOKS)]
    ours, theirs = zip(*pairs, strict=True)
    return torch.cat(ours), torch.cat(theirs)


def _look(sr: Tensor, hr: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    least = min(sr.shape[-2:])
    side = min(LOOK, max(least // 2 // 8 * 8, min(LEAST_LOOK, least // 8 * 8)))
    frame, share = _one_of(sr.shape[2], generator), SHARES[_one_of(len(SHARES), generator)]
    window = _window(sr, min(round(side / share), least), generator)
    ours, theirs = (F.interpolate(x[:, :, frame][window], size=(side, side), mode="area") for x in (sr, hr))
    return ours, theirs


def stacked_frames(sr: Tensor, hr: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same random crop of consecutive frames of both, stacked in channels: what the discriminator sees.

    Clips shorter than the run repeat their last frame.
    """
    start = _one_of(max(1, sr.shape[2] - FRAMES + 1), generator)
    index = [min(start + i, sr.shape[2] - 1) for i in range(FRAMES)]
    window = random_crop(sr, generator)
    ours, theirs = (torch.cat([x[:, :, i][window] for i in index], dim=1) for x in (sr, hr))
    return ours, theirs


def random_crop(frames: Tensor, generator: torch.Generator) -> tuple[EllipsisType, slice, slice]:
    """Index of a random square of at most ``CROP`` pixels, a multiple of 8, in the last two dimensions."""
    return _window(frames, min(CROP, *(s // 8 * 8 for s in frames.shape[-2:])), generator)


def _window(frames: Tensor, side: int, generator: torch.Generator) -> tuple[EllipsisType, slice, slice]:
    top, left = (_one_of(s - side + 1, generator) for s in frames.shape[-2:])
    return ..., slice(top, top + side), slice(left, left + side)


def _one_of(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))


def fool(logits: Tensor) -> Tensor:
    """Generator's adversarial term: non-saturating logistic."""
    return F.softplus(-logits.float()).mean()


def tell_apart(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's loss: logistic."""
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def feature_match(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Mean L1 between discriminator features, each map scaled by the ground truth's mean size."""
    terms = [
        (a.float() - b.float()).abs().mean() / b.float().abs().mean().clamp_min(1e-3)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(terms).mean()

"""Colour correction: give the restored frames the colours of the input.

Written from the formulas, which each method states. ``correct_color`` treats every frame alone; ``ColorCorrector`` goes through a
shot and steadies what is measured on single frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

WAVELET_LEVELS = 5
"""Levels of the a-trous transform; the last low-pass spans 2^5 - 1 pixels to each side."""
FLAT = 1e-3
"""Standard deviation (a quarter of an 8-bit code value) below which a channel counts as flat: it is moved, and its
rounding noise is not stretched."""
CPU_BLOCK = 64
"""Rows or columns of a plane that each thread of a CPU takes through all levels at a time: of 720p a quarter of a megabyte, which
caches hold three times. Measured: 26 ms for 720p without, 16 with 64, 19 with 128."""

WINDOW = 8
"""Frames, the present one the last, that gains are averaged over: a third of a second at 24 frames per second."""
ALIKE = 0.05
"""Distance between the references' means (of 1) at which a frame of the window counts by 1/e: a flash has no echo."""


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

    @property
    def memory(self) -> int:
        """Frames before one that its correction hangs on, in a ``ColorCorrector``."""
        return WINDOW - 1 if self in (ColorMethod.ADAIN, ColorMethod.LAB) else 0

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
    return _corrected(sr, reference, method, lambda _, gains: gains, 1)


class ColorCorrector:
    """Corrects the frames of one shot in order; what it does to one depends on that and the ``method.memory`` before it.

    Means are matched frame by frame: brightness follows the input at once, in ramps and in flashes. Gains (ratios of
    standard deviations) also hang on noise, which comes and goes with the input's key frames: they are averaged, in
    the logarithm, over the last ``WINDOW`` frames of about the same colour.
    """

    def __init__(self, method: ColorMethod) -> None:
        self.method = ColorMethod.of(method)
        self._past: deque[tuple[Tensor, Tensor]] = deque(maxlen=WINDOW)

    def correct(self, sr: Tensor, reference: Tensor, at_once: int = 1) -> Tensor:
        """The shot's next frames; arguments, result and errors as ``correct_color``'s.

        ``at_once``: frames that are corrected together; working memory is theirs.
        """
        return _corrected(sr, reference, self.method, self._steady, at_once)

    def _steady(self, levels: Tensor, gains: Tensor) -> Tensor:
        """The window's gains ``(T, C, 1, 1)`` where the frames' own are ``gains``; ``levels``: the references' means (T, 3)."""
        return torch.stack([self._next(*pair) for pair in zip(levels, gains, strict=True)])

    def _next(self, level: Tensor, gain: Tensor) -> Tensor:
        self._past.append((level, gain.log()))
        levels, gains = (torch.stack(x) for x in zip(*self._past, strict=True))
        weights = (-((levels - level).abs().amax(1) / ALIKE).square()).exp()[:, None, None, None]
        return ((gains * weights).sum(0) / weights.sum(0)).exp()


Steady = Callable[[Tensor, Tensor], Tensor]
"""From references' means and frames' gains to the gains that are used."""


def _corrected(sr: Tensor, reference: Tensor, method: ColorMethod, steady: Steady, at_once: int) -> Tensor:
    if sr.shape != reference.shape or sr.ndim != 4 or sr.shape[-1] != 3:
        raise ValueError(f"frames are {tuple(sr.shape)}, reference {tuple(reference.shape)}; both must be (T, H, W, 3)")
    if method is ColorMethod.NONE:
        return sr.float().clamp(0, 1)
    out = torch.empty(sr.shape, dtype=torch.float32, device=sr.device)
    for frames, *pair in zip(*(f.split(at_once) for f in (out, sr, reference)), strict=True):
        x, y = (_planes(f.float()) for f in pair)
        if method is ColorMethod.WAVELET:
            planes = _wavelet(x, y)
        elif method is ColorMethod.ADAIN:
            planes = _adain(x, y, y, steady)
        else:
            planes = _lab(x, y, steady)
        frames.copy_(rearrange(planes.clamp_(0, 1), "t c h w -> t h w c"))
    return out


def _planes(x: Tensor) -> Tensor:
    """``(T, C, H, W)`` of ``(T, H, W, C)``, rows of a channel without gaps; on a CPU without any, which is faster there."""
    x = rearrange(x, "t h w c -> t c h w")
    return x.contiguous() if x.device.type == "cpu" or x.stride(3) != 1 else x


def _adain(x: Tensor, y: Tensor, rgb: Tensor, steady: Steady) -> Tensor:
    """(x - mean_x) / sd_x * sd_y + mean_y for each channel of ``(T, C, H, W)``; ``rgb``: the reference's own colours."""
    mean_x, mean_y = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
    x, y = x - mean_x, y - mean_y
    sd_x, sd_y = (d.square().mean((2, 3), keepdim=True).sqrt() for d in (x, y))
    return x * steady(rgb.mean((2, 3)), sd_y.clamp_min(FLAT) / sd_x.clamp_min(FLAT)) + mean_y


def _wavelet(x: Tensor, y: Tensor) -> Tensor:
    """high(x) + low(y) = x - low(x - y), since the low-pass is linear."""
    return x.sub(_sums(x - y), alpha=16.0**-WAVELET_LEVELS)


def _sums(x: Tensor) -> Tensor:
    """The a-trous cascade on ``(T, C, H, W)``: [1 2 1] along rows and columns, dilated by 2^i, borders replicated.

    The low-pass times 16 a level: powers of two change no rounding, and one factor at the end is less work than one a step.
    As shifted sums: on a CPU 3 to 20 times faster than as depthwise convolutions.
    """
    return _sums_in_blocks(x) if x.device.type == "cpu" else _sums_of_frames(x)


def _sums_of_frames(x: Tensor) -> Tensor:
    """Level after level."""
    height, width = x.shape[2:]
    for step in (2**level for level in range(WAVELET_LEVELS)):
        x = F.pad(x, (step, step, step, step), mode="replicate")
        x = (x[:, :, :height] + x[:, :, 2 * step :]).add_(x[:, :, step:-step], alpha=2)
        x = (x[..., :width] + x[..., 2 * step :]).add_(x[..., step:-step], alpha=2)
    return x


def _sums_in_blocks(x: Tensor) -> Tensor:
    """In blocks that stay in a CPU's cache through all levels: first every level along columns, then along rows."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    block = CPU_BLOCK * torch.get_num_threads()
    for plane, result in zip(x.flatten(0, 1), out.flatten(0, 1), strict=True):
        for source, target in zip(plane.split(block, 1), result.split(block, 1), strict=True):
            target.copy_(_cascade(source))
        for rows in result.split(block):
            rows.copy_(_cascade(rows.t()).t())
    return out


def _cascade(x: Tensor) -> Tensor:
    """All levels along the first dimension of a plane, which keeps its layout; borders replicated at each."""
    size, most = len(x), 2 ** (WAVELET_LEVELS - 1)
    inside = slice(most, most + size)
    padded, after = (_like(x, size + 2 * most) for _ in range(2))
    padded[inside].copy_(x)
    for step in (2**level for level in range(WAVELET_LEVELS)):
        padded[most - step : most] = padded[most]
        padded[most + size : most + size + step] = padded[most + size - 1]
        first, last = padded[most - step : most - step + size], padded[most + step : most + step + size]
        torch.add(first, last, out=after[inside]).add_(padded[inside], alpha=2)
        padded, after = after, padded
    return padded[inside]


def _like(x: Tensor, rows: int) -> Tensor:
    """Fresh memory ``(rows, columns)`` in the layout of the plane ``x`` or of its transpose."""
    if x.stride(0) == 1:
        return x.new_empty(x.shape[1], rows).t()
    return x.new_empty(rows, x.shape[1])


def _lab(x: Tensor, y: Tensor, steady: Steady) -> Tensor:
    """a and b of ``(T, 3, H, W)`` by ``_adain`` in CIELAB, L as it is."""
    from kornia.color import lab_to_rgb, rgb_to_lab  # takes seconds to import

    lab_x, lab_y = rgb_to_lab(x.clamp(0, 1)), rgb_to_lab(y.clamp(0, 1))
    return lab_to_rgb(torch.cat([lab_x[:, :1], _adain(lab_x[:, 1:], lab_y[:, 1:], y, steady)], dim=1))

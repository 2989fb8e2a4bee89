"""How often and how strongly clips get the looks of ``looks.py``."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from . import looks
from .draw import LOOK_STEPS, STEPS, Draw, Range, check_range


@dataclass(frozen=True)
class LookConfig:
    """Probabilities (of clips that are not mild) and ranges. Pixels are low-resolution ones.

    The ranges are ours, chosen by eye on the training clips (no published pipeline has these looks): from just visible
    at 400 % to what is common in old web video.
    """

    interlace: float = 0.07
    """Probability of combs or a deinterlacer's marks (``interlace.py``)."""
    grain: float = 0.12
    """Probability of film grain."""
    grain_strength: Range = (2.0, 9.0)
    """Deviation at mid-grey, 1/255."""
    grain_size: Range = (0.4, 1.1)
    """Deviation of the blur that correlates it, pixels: less is white noise, more is blotches."""
    grain_grey: float = 0.6
    """Share of grain that is the same in all channels."""
    phone: float = 0.08
    """Probability of an old phone's camera: smear, then a halo, then bands."""
    smear: Range = (4.0, 14.0)
    """Local deviation, 1/255, below which texture goes: the noise that a small sensor has to hide."""
    smear_size: Range = (1.0, 2.5)
    """Deviation of the smear's window, pixels."""
    halo: float = 0.08
    """Probability of an over-sharpened picture."""
    halo_amount: Range = (0.2, 1.1)
    """Share of what the blur removes that is added."""
    halo_size: Range = (0.6, 1.6)
    """Deviation of the unsharp mask's blur, pixels."""
    bleed: float = 0.08
    """Probability of colour that bleeds."""
    bleed_across: Range = (1.0, 3.5)
    """Deviation of the colour's blur along lines, pixels: tape keeps about an eighth of the luminance's bandwidth."""
    bleed_down: Range = (0.3, 1.2)
    """The same across lines."""
    bands: float = 0.07
    """Probability of banding."""
    levels: Range = (28.0, 80.0)
    """Steps of luminance from black to white: 5 to 6 bits."""
    rescale: float = 0.1
    """Probability of going down and up again without antialiasing."""
    rescale_factor: Range = (0.6, 0.97)
    """Size in between, relative."""
    rescale_nearest: float = 0.3
    """Share of it that takes the nearest sample, else linear."""
    rescale_width_only: float = 0.3
    """Share of it that keeps the height (1440 to 1920 pixels a line, and the like)."""

    def __post_init__(self) -> None:
        most = {"grain_strength": 255.0, "grain_size": 4.0, "smear": 255.0, "smear_size": 4.0, "halo_amount": 8.0,
                "halo_size": 4.0, "bleed_across": 4.0, "bleed_down": 4.0, "levels": 256.0}  # fmt: skip
        least = {"levels": 2.0, "rescale_factor": 0.1}
        for field in fields(self):
            value = getattr(self, field.name)
            values = value if isinstance(value, tuple) else (0.0, value)
            check_range(field.name, values, most.get(field.name, 1.0), least.get(field.name, 0.0))


def give_looks(x: Tensor, config: LookConfig, draw: Draw, generator: torch.Generator) -> Tensor:
    """Frames ``(S, 3, H, W)`` in [0, 1] with the looks that their clips draw, in the order in which cameras make them."""

    def grain(x: Tensor, draw: Draw) -> Tensor:
        strength = draw.value(*config.grain_strength, STEPS["gaussian"]) / 255
        size = draw.value(*config.grain_size, STEPS["sigma"])
        return looks.film_grain(x, strength, size, draw.chance(config.grain_grey), generator).clamp(0, 1)

    def halo(x: Tensor, draw: Draw) -> Tensor:
        amount = draw.value(*config.halo_amount, LOOK_STEPS["amount"])
        return looks.halo(x, amount, draw.value(*config.halo_size, STEPS["sigma"]))

    def bands(x: Tensor, draw: Draw) -> Tensor:
        return looks.bands(x, draw.value(*config.levels, LOOK_STEPS["levels"]))

    def phone(x: Tensor, draw: Draw) -> Tensor:
        threshold = draw.value(*config.smear, LOOK_STEPS["threshold"]) / 255
        x = looks.smear(x, threshold, draw.value(*config.smear_size, STEPS["sigma"]))
        return bands(halo(x, draw), draw)

    def bleed(x: Tensor, draw: Draw) -> Tensor:
        across = draw.value(*config.bleed_across, STEPS["sigma"])
        return looks.bleed(x, across, draw.value(*config.bleed_down, STEPS["sigma"]))

    def rescale(x: Tensor, draw: Draw) -> Tensor:
        down, across = (draw.walk(*config.rescale_factor, STEPS["resize"]) for _ in range(2))
        down = np.where(draw.rng.random((draw.clips, 1)) < config.rescale_width_only, 1.0, down)
        nearest = draw.chance(config.rescale_nearest)
        return looks.rescaled(x, draw.put(down), draw.put(across), nearest)

    x = draw.on_some(x.clamp(0, 1), config.grain, grain)
    x = draw.on_some(x, config.phone, phone)
    x = draw.on_some(x, config.bleed, bleed)
    x = draw.on_some(x, config.halo, halo)
    x = draw.on_some(x, config.bands, bands)
    return draw.on_some(x, config.rescale, rescale)

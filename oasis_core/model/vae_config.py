"""Sizes of the decoders of Wan 2.1's latent space, whose weights come from files of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass

TIME, SPACE = 4, 8
"""Frames and pixels per side of one latent position (the first latent frame is one frame)."""
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
"""Of Wan 2.1's latent channels. https://github.com/Wan-Video/Wan2.1/blob/7c81b2f/wan/modules/vae.py#L630"""
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
"""Their standard deviations, from the same place."""


@dataclass(frozen=True)
class WanDecoderConfig:
    """The Wan 2.1 VAE's decoder (``model/decoders/wan.py``): 8 x 8 pixels and, after the first, 4 frames to a position.

    Raises:
        ValueError: a width below 1, or means and deviations that are not one for each latent channel.
    """

    kind: str = "wan"
    """Tells it from other decoders in a checkpoint."""
    width: int = 96
    """Channels at the output's resolution; the other resolutions have 2 and 4 times as many."""
    latent_mean: tuple[float, ...] = LATENT_MEAN
    """Of each latent channel: the transformer's latents have mean 0 and deviation 1, the decoder's have these."""
    latent_std: tuple[float, ...] = LATENT_STD

    def __post_init__(self) -> None:
        if self.kind != "wan":
            raise ValueError(f"decoder kind is {self.kind!r}; this one is 'wan'")
        if type(self.width) is not int or self.width < 1:
            raise ValueError(f"decoder width is {self.width!r}; it must be a whole number of at least 1")
        if not self.latent_mean or len(self.latent_mean) != len(self.latent_std):
            raise ValueError(
                f"decoder has {len(self.latent_mean)} latent means and {len(self.latent_std)} deviations; "
                "it needs one of each for every latent channel"
            )
        values = (*self.latent_mean, *self.latent_std)
        if any(type(v) not in (int, float) or not math.isfinite(v) for v in values) or min(self.latent_std) <= 0:
            raise ValueError("decoder latent means and deviations must be finite numbers, deviations above 0")

    @property
    def latent_channels(self) -> int:
        return len(self.latent_mean)


@dataclass(frozen=True)
class TaehvConfig:
    """TAEHV, the tiny decoder (``model/decoders/taehv.py``), for a latent like ``WanDecoderConfig``'s."""

    width: int = 64
    """Channels at the output's resolution."""
    latent_channels: int = 16
    latent_mean: tuple[float, ...] = ()
    """Of latents as it was trained on them, where that is the VAE's scale (lighttaew2_1); empty: mean 0, deviation 1."""
    latent_std: tuple[float, ...] = ()

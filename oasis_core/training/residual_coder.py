"""Stands in for the transformer while the decoder learns to draw: codes what the sharp frames have and the others lack."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from ..model import OasisConfig
from ..patchify import replicate_first, unshuffle_groups


class ResidualCoder(nn.Module):
    """Linear, as the model's own projection: unshuffled residual -> z_H - z_L. Not part of the model."""

    def __init__(self, config: OasisConfig) -> None:
        super().__init__()
        self.unshuffle = config.unshuffle
        ft, fh, fw = config.unshuffle
        self.project = nn.Linear(3 * ft * fh * fw, config.latent_channels)

    def forward(self, residual: Tensor) -> Tensor:
        """Pixels ``(B, 3, T, H, W)``, a difference of frames in [-1, 1] -> ``(B, C, t, h, w)``."""
        cells = unshuffle_groups(replicate_first(residual, self.unshuffle[0]), self.unshuffle)
        return rearrange(self.project(rearrange(cells, "b c t h w -> b t h w c")), "b t h w c -> b c t h w")

"""Convolutional pixel-shuffle decoder: latent in; out, the upsampled low-quality frames and what they lack.

It draws, the transformer restores: it works on one frame at a time (2D convolutions), so streamed, chunked and whole
decoding are the same by construction; consistency in time is the transformer's work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import OasisConfig, PixelDecoderConfig
from ..onednn import onednn_takes


def zero(parameter: Tensor | None) -> None:
    """Fill with zeros, where there is one."""
    if parameter is not None:
        nn.init.zeros_(parameter)


def _conv(cin: int, cout: int) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, padding=1)


def _channels_last(x: Tensor) -> Tensor:
    """The layout in which convolutions are fastest, on CPUs (twice as fast as the other) and GPUs alike.

    Through rows of channels, so that a single image's stride is as it should be: ``contiguous`` leaves it as it is, and
    convolutions then take the image for one of the other layout.
    """
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(-1, c).view(n, h, w, c).permute(0, 3, 1, 2)


def _add_conv(x: Tensor, y: Tensor, conv: nn.Conv2d) -> Tensor:
    """x + conv(y); where nothing is kept for a backward pass, in place: in oneDNN in the convolution itself."""
    if torch.is_grad_enabled():
        return x + conv(y)
    if not onednn_takes(x):
        return conv(y).add_(x)
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        x, y, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups, "add", 1.0, None, [], None
    )


def _silu(x: Tensor) -> Tensor:
    """In place where nothing is kept for a backward pass: fresh memory costs more than the arithmetic."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(x))); at inference ``x`` may be overwritten."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return _add_conv(x, _silu(self.conv1(x)), self.conv2)


class PixelDecoder(nn.Module):
    """Latent cells of s x s pixels -> features at half the cell -> half the output's resolution -> pixels.

    The low-quality frames are added to the result (and come in as features where it is not ``residual``).
    """

    def __init__(self, config: OasisConfig) -> None:
        super().__init__()
        self.group, cell, _ = config.unshuffle
        self.coarse = cell // 2
        """Output pixels per side of one coarse position."""
        sizes = config.decoder
        assert isinstance(sizes, PixelDecoderConfig)
        self.residual = sizes.residual
        width, hr = sizes.width, sizes.hr_width
        self.conv_in = _conv(config.latent_channels, self.group * 4 * width)
        self.conv_skip = _conv(3 * self.coarse**2, width) if not sizes.residual else None
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(sizes.blocks)))
        self.up = _conv(width, hr * (self.coarse // 2) ** 2)
        self.hr_blocks = nn.Sequential(*(ResidualBlock(hr) for _ in range(sizes.hr_blocks)))
        self.conv_out = _conv(hr, 12)

    def init_weights(self) -> None:
        """Start of training from scratch: the output is the low-quality frames; sub-pixels start alike (ICNR)."""
        for block in [*self.blocks, *self.hr_blocks]:
            assert isinstance(block, ResidualBlock)
            block.conv2.weight.data.mul_(0.1)
            zero(block.conv2.bias)
        for conv, factor in ((self.conv_in, 2), (self.up, self.coarse // 2)):
            same = conv.weight.data[:: factor**2].repeat_interleave(factor**2, dim=0)
            conv.weight.data.copy_(same)
            zero(conv.bias)
        zero(self.conv_out.weight)
        zero(self.conv_out.bias)

    def forward(self, z: Tensor, lq: Tensor) -> Tensor:
        """Restore whole frame groups.

        Args:
            z: latent ``(B, C, t, h, w)``: z_H, of a residual decoder z_H - z_L.
            lq: upsampled low-quality pixels ``(B, 3, group * t, cell * h, cell * w)`` in [-1, 1].

        Returns:
            Pixels of ``lq``'s shape, about [-1, 1], not clamped.
        """
        b, _, frames = lq.shape[:3]
        frame = rearrange(lq, "b c t h w -> (b t) c h w")
        x = self.conv_in(_channels_last(rearrange(z, "b c t h w -> (b t) c h w")))
        if self.group > 1:  # of channels that lie last this is a copy, and a slow one
            x = rearrange(x, "s (g c) h w -> (s g) c h w", g=self.group)
        x = _channels_last(F.pixel_shuffle(x, 2))
        if self.conv_skip is not None:
            x = x + self.conv_skip(F.pixel_unshuffle(frame, self.coarse))
        x = self.blocks(x)
        x = self.hr_blocks(_channels_last(F.pixel_shuffle(_silu(self.up(x)), self.coarse // 2)))
        # ``pixel_shuffle`` would leave the channels last on a CPU, and the sum be of two layouts.
        out = frame + rearrange(self.conv_out(_silu(x)), "s (c p q) h w -> s c (h p) (w q)", p=2, q=2)
        assert out.shape[0] == b * frames
        return rearrange(out, "(b t) c h w -> b c t h w", b=b)

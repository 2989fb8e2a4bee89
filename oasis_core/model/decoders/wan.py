"""The decoder of the Wan 2.1 VAE: causal in time, streamed with an explicit state, exact in tiles.

All that it knows of earlier frames is the last two inputs of every convolution in time, which a ``DecoderState`` holds:
latent frames may come in any number at a time.

Written from https://github.com/Wan-Video/Wan2.1/blob/7c81b2f/wan/modules/vae.py; parity is tested against Diffusers and ComfyUI.
"""

from __future__ import annotations

from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...plan import Span
from ..vae_config import WanDecoderConfig
from .streaming import COARSE, DecodePlan, DecoderState, Past
from .wan_layers import CausalConv, FrameAttention, Norm, ResidualBlock, Upsample, identity
from .wan_stream import Stream, convolved, enlarged, streams, through

BLOCKS = 3
"""Residual blocks of a stage."""


class WanDecoder(nn.Module):
    """Latents of mean 0 and deviation 1 in, pixels in about [-1, 1] out."""

    def __init__(self, config: WanDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.plan = DecodePlan()
        number = count().__next__
        w, c = config.width, config.latent_channels
        self.post_quant = nn.Linear(c, c)
        self._first: tuple[object, Tensor, Tensor] | None = (
            None  # of ``_normalised``: made once, as it waits for a GPU's work
        )
        self.conv_in = CausalConv(c, 4 * w, 3, number())
        self.mid = nn.ModuleList(
            [ResidualBlock(4 * w, 4 * w, number), FrameAttention(4 * w), ResidualBlock(4 * w, 4 * w, number)]
        )
        self.up = nn.ModuleList()
        for cin, cout, upsample in ((4, 4, True), (2, 4, True), (2, 2, False), (1, 1, None)):
            for block in range(BLOCKS):
                self.up.append(ResidualBlock((cout if block else cin) * w, cout * w, number))
            if upsample is not None:
                self.up.append(Upsample(cout * w, upsample, number))
        self.norm_out, self.conv_out = Norm(w), CausalConv(w, 3, 3, number())
        self.last_whole = 2 * BLOCKS + 1
        """Index in ``up`` of the layer in whose midst the tiled part begins: the second upsampling."""

    def fold(self) -> None:
        """Fold the upsamplings into the convolutions after them, in place: the same pixels but for rounding, for less work."""
        for layer in self.up:
            if isinstance(layer, Upsample) and not layer.folded:
                layer.fold()

    def forward(self, z: Tensor, state: DecoderState | None = None) -> Tensor:
        """Pixels ``(B, 3, T, 8h, 8w)`` of latents ``(B, C, t, h, w)``, not clamped.

        T is 4t; 4t - 3 where ``state`` is new, or None: the first latent frame is one frame.

        Raises:
            ValueError: latents of another number of channels, or a state of frames of another size.
        """
        if z.ndim != 5 or z.shape[1] != self.config.latent_channels:
            raise ValueError(f"latent is {tuple(z.shape)}; expected (B, {self.config.latent_channels}, t, h, w)")
        state = DecoderState() if state is None else state
        known = state.whole.inputs.get(self.conv_in.number)
        if known is not None and known.shape[2:4] != z.shape[3:]:
            raise ValueError(
                f"latent is {tuple(z.shape)}, but the stream's frames are {tuple(known.shape[2:4])}; begin a new state"
            )
        if state.whole.first and z.shape[2] > 1 and streams(self.post_quant.weight):
            # The stream's first frame is alone; all others come in fours.
            return torch.cat([self(z[:, :, :1], state), self(z[:, :, 1:], state)], dim=2)
        if self.plan.keep_on is not None:
            state.whole.move(z.device)
        x = self._small_stages(self._normalised(z), state.whole)
        if self.plan.keep_on is not None:
            state.whole.move(self.plan.keep_on)
        state.whole.first = False
        tiles = self._tiles(x.shape[2], x.shape[3])
        if len(tiles) == 1:
            return self._tile(x, *tiles[0], state.tiles.setdefault(tiles[0], Past()))
        out = x.new_empty(x.shape[0], 3, x.shape[1], x.shape[2] * COARSE, x.shape[3] * COARSE)
        for rows, columns in tiles:
            piece = self._tile(x, rows, columns, state.tiles.setdefault((rows, columns), Past()))
            y, c = rows.times(COARSE), columns.times(COARSE)
            out[..., y.start : y.stop, c.start : c.stop] = piece
        return out

    def _normalised(self, z: Tensor) -> Tensor:
        """``(B, t, h, w, C)``: mean and deviation restored and the first 1x1 convolution, in one."""
        given = self.post_quant.weight, self.post_quant.bias
        key = tuple(map(identity, given))
        first = self._first
        if first is None or first[0] != key or torch.is_grad_enabled():
            mean, std = (
                z.new_tensor(v, dtype=torch.float32) for v in (self.config.latent_mean, self.config.latent_std)
            )
            weight, bias = (p.float() for p in given)
            first = key, (weight * std).to(given[0].dtype), (bias + weight @ mean).to(given[1].dtype)
            self._first = None if torch.is_grad_enabled() else first
        _, weight, bias = first
        return F.linear(z.movedim(1, -1).to(weight.dtype), weight, bias)

    def _small_stages(self, x: Tensor, past: Past) -> Tensor:
        """``(B, T, 2h, 2w, 4 width)``: all frames, at a quarter of the output's resolution."""
        x, layers = self.conv_in(x, past), (*self.mid, *self.up[: self.last_whole])
        if streams(x):
            x = through(layers, Stream.of(x), past).whole()
        else:
            for layer in layers:
                x = layer(x, past)
        second = self.up[self.last_whole]
        assert isinstance(second, Upsample)
        return second.more_frames(x, past)

    def _tiles(self, height: int, width: int) -> list[tuple[Span, Span]]:
        """Rows and columns of tiles without overlap, at the cut's resolution."""
        side = -(-self.plan.tile // COARSE) or max(height, width)
        rows, columns = ([Span(s, min(s + side, size)) for s in range(0, size, side)] for size in (height, width))
        return [(r, c) for r in rows for c in columns]

    def _tile(self, x: Tensor, rows: Span, columns: Span, past: Past) -> Tensor:
        """Pixels of one tile, its halo cut off."""
        halo = -(-self.plan.halo // COARSE)
        (top, bottom), (left, right) = (
            (max(0, s.start - halo), min(size, s.stop + halo))
            for s, size in zip((rows, columns), x.shape[2:4], strict=True)
        )
        y = Span(rows.start - top, rows.stop - top).times(COARSE)
        c = Span(columns.start - left, columns.stop - left).times(COARSE)
        if self.plan.keep_on is not None:
            past.move(x.device)
        pieces = []
        at_once = self.plan.frames or x.shape[1]
        for start in range(0, x.shape[1], at_once):
            piece = self._large_stages(x[:, start : start + at_once, top:bottom, left:right], past)
            pieces.append(piece[:, :, y.start : y.stop, c.start : c.stop])
        if self.plan.keep_on is not None:
            past.move(self.plan.keep_on)
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)).movedim(-1, 1)

    def _large_stages(self, x: Tensor, past: Past) -> Tensor:
        """``(B, T, 2h, 2w, 4 width)`` -> pixels ``(B, T, 8h, 8w, 3)``."""
        second = self.up[self.last_whole]
        assert isinstance(second, Upsample)
        layers = self.up[self.last_whole + 1 :]
        if streams(x):
            return convolved(through(layers, enlarged(second, x), past), self.norm_out, self.conv_out, past)
        x = second.enlarge(x)
        for layer in layers:
            x = layer(x, past)
        return self.conv_out.convolve(self.conv_out.joined(x, past, self.norm_out))

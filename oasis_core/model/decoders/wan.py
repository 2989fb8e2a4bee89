"""The decoder of the Wan 2.1 VAE: causal in time, streamed with an explicit state, exact in tiles.

All that it knows of earlier frames is the last two inputs of every convolution in time, which a ``DecoderState`` holds:
latent frames may come in any number at a time.

Written from https://github.com/Wan-Video/Wan2.1/blob/7c81b2f/wan/modules/vae.py; parity is tested against Diffusers and ComfyUI.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...plan import Span
from ...progress import Poll
from ..vae_config import WanDecoderConfig
from .streaming import COARSE, DecodePlan, DecoderState, Held, Past
from .wan_layers import CausalConv, FrameAttention, Norm, ResidualBlock, Upsample, identity
from .wan_stream import Stream, convolved, enlarged, streams, through

BLOCKS = 3
"""Residual blocks of a stage."""


def _nothing() -> None:
    """A poll where nobody asks."""


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

    def forward(self, z: Tensor, state: DecoderState | None = None, poll: Poll | None = None) -> Tensor:
        """Pixels ``(B, 3, T, 8h, 8w)`` of latents ``(B, C, t, h, w)``, not clamped.

        T is 4t; 4t - 3 where ``state`` is new, or None: the first latent frame is one frame.

        Args:
            poll: called before each piece of work; where it raises, ``state`` is good for nothing.

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
        poll = poll or _nothing
        frames = 4 * z.shape[2] - 3 * state.whole.first
        tiles = [(r, c) for r in self.plan.spans(2 * z.shape[3]) for c in self.plan.spans(2 * z.shape[4])]
        features = self._at_the_cut(z, state, tiles, poll)
        if self.plan.keep_on is None and len(tiles) == len(features) == 1 and (self.plan.frames or frames) >= frames:
            (piece,) = self._tile(features, tiles[0], z.device, state, poll)
            return piece
        out: Tensor | None = None  # where there are gradients, they flow through what is written into it
        for number, tile in enumerate(tiles):
            past, at = state.tiles.setdefault(tile, Past()), 0
            waits = self.plan.keep_on is not None and number >= self.plan.resident
            if waits:
                past.move(z.device)
            last = features if tile is tiles[-1] else list(features)  # the last one takes them away
            y, c = (span.times(COARSE) for span in tile)
            for piece in self._tile(last, tile, z.device, state, poll):
                if out is None:
                    out = piece.new_empty(*z.shape[:1], 3, frames, 8 * z.shape[3], 8 * z.shape[4])
                out[:, :, at : at + piece.shape[2], y.start : y.stop, c.start : c.stop] = piece
                at += piece.shape[2]
                del piece
            if waits:
                assert self.plan.keep_on is not None
                past.move(self.plan.keep_on)
        assert out is not None
        return out

    def _at_the_cut(
        self, z: Tensor, state: DecoderState, tiles: list[tuple[Span, Span]], poll: Poll
    ) -> list[Tensor | None]:
        """``(B, T, 2h, 2w, 4 width)`` of some latent frames each, in the order of time; None: they wait in ``state``."""
        keep_on, features = self.plan.keep_on, list[Tensor | None]()
        away = keep_on is not None and self.plan.turn > 0
        if keep_on is not None:
            state.whole.move(z.device)
        for number, some in enumerate(self._pieces(z, state.whole.first)):
            poll()
            x = self._small_stages(self._normalised(some), state.whole)
            state.whole.first = False
            for tile in tiles if away else ():
                assert keep_on is not None
                state.waiting.setdefault(tile, Held()).put(number, self._seen(x, tile).contiguous(), keep_on)
            features.append(None if away else x)
            del x
        if keep_on is not None:
            state.whole.move(keep_on)
        return features

    def _pieces(self, z: Tensor, first: bool) -> list[Tensor]:
        """Latent frames that go through the stages together."""
        alone = z.shape[2] > 1 and first and (self.plan.turn > 0 or streams(self.post_quant.weight))
        # The stream's first frame is alone; all others come in fours.
        rest = z[:, :, 1:] if alone else z
        return [*([z[:, :, :1]] if alone else []), *rest.split(self.plan.latents if self.plan.turn else z.shape[2], 2)]

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
        """``(B, T, 2h, 2w, 4 width)``: every second frame, at a quarter of the output's resolution."""
        x, layers = self.conv_in(x, past), (*self.mid, *self.up[: self.last_whole])
        if streams(x):
            x = through(layers, Stream.of(x), past).whole()
        else:
            for layer in layers:
                x = layer(x, past)
        return x

    def _seen(self, x: Tensor, tile: tuple[Span, Span]) -> Tensor:
        """The tile of ``(B, T, 2h, 2w, C)``, with its halo."""
        rows, columns = (self._with_halo(span, size) for span, size in zip(tile, x.shape[2:4], strict=True))
        return x[:, :, rows.start : rows.stop, columns.start : columns.stop]

    def _with_halo(self, span: Span, size: int) -> Span:
        halo = -(-self.plan.halo // COARSE)
        return Span(max(0, span.start - halo), min(size, span.stop + halo))

    def _tile(
        self, features: list[Tensor | None], tile: tuple[Span, Span], device: torch.device, state: DecoderState, poll: Poll
    ) -> Iterator[Tensor]:  # fmt: skip
        """Pixels ``(B, 3, T, height, width)`` of one tile, some frames each, its halo cut off; ``features`` is emptied."""
        past, second = state.tiles.setdefault(tile, Past()), self.up[self.last_whole]
        assert isinstance(second, Upsample)
        halo = -(-self.plan.halo // COARSE)
        y, c = (Span(min(halo, s.start), min(halo, s.start) + s.size).times(COARSE) for s in tile)
        for number in range(len(features)):
            poll()
            whole = features.pop(0)
            x = state.waiting[tile].take(number, device) if whole is None else self._seen(whole, tile)
            del whole
            x = second.more_frames(x, past)
            past.first = False
            for part in x.split(self.plan.frames or x.shape[1], dim=1):
                piece = self._large_stages(part, past)
                yield piece[:, :, y.start : y.stop, c.start : c.stop].movedim(-1, 1)
                del piece
            del x, part

    def _large_stages(self, x: Tensor, past: Past) -> Tensor:
        """``(B, T, 2h, 2w, 4 width)``, all frames -> pixels ``(B, T, 8h, 8w, 3)``."""
        second = self.up[self.last_whole]
        assert isinstance(second, Upsample)
        layers = self.up[self.last_whole + 1 :]
        if streams(x):
            return convolved(through(layers, enlarged(second, x), past), self.norm_out, self.conv_out, past)
        x = second.enlarge(x)
        for layer in layers:
            x = layer(x, past)
        return self.conv_out.convolve(self.conv_out.joined(x, past, self.norm_out))

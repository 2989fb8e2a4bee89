"""The decoder of the Wan 2.1 VAE: causal in time, streamed with an explicit state, exact in tiles.

All that it knows of earlier frames is the last two inputs of every convolution in time, which a ``DecoderState`` holds:
latent frames may come in any number at a time. Activations are ``(B, T, H, W, C)``, contiguous: what convolutions call
channels_last_3d. Each convolution's input is written once, behind its past, by the norm before it.

Written from https://github.com/Wan-Video/Wan2.1/blob/7c81b2f/wan/modules/vae.py; parity is tested against Diffusers and ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...plan import Span
from ..vae_config import WanDecoderConfig

PAST = 2
"""Frames that a convolution in time looks back."""
COARSE = 4
"""Output pixels per side of a position at the cut between what runs on whole frames and what may run in tiles."""
REACH = 6
"""Positions at the cut that the convolutions after it look to each side: (7 + 1 + 12 + 2) / 4 pixels (head and last stage,
its upsampling, the stage before, its upsampling)."""
BLOCKS = 3
"""Residual blocks of a stage."""
TINY = 1e-24
"""Under the norm's root: only a position of zeros sees it."""


def fused(x: Tensor) -> bool:
    """Whether norm and SiLU run as one Triton kernel: on NVIDIA GPUs with Triton, but for compilations, which fuse themselves."""
    return x.is_cuda and not torch.compiler.is_compiling() and _has_triton()


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None and torch.version.cuda is not None


@dataclass
class Past:
    """The last inputs ``(B, 2, H, W, C)`` of the convolutions in time, by their number."""

    first: bool = True
    """Nothing has been decoded: the next frame is the stream's first."""
    inputs: dict[int, Tensor] = field(default_factory=dict)

    def move(self, device: torch.device) -> None:
        self.inputs = {number: x.to(device) for number, x in self.inputs.items()}


@dataclass
class DecoderState:
    """What a stream leaves behind; begin with a new one, hand it to every call."""

    whole: Past = field(default_factory=Past)
    tiles: dict[tuple[Span, Span], Past] = field(default_factory=dict)


@dataclass(frozen=True)
class DecodePlan:
    """How much is worked on at a time; the result does not depend on it (tiles of a full halo are exact).

    Raises:
        ValueError: a number below its range.
    """

    tile: int = 0
    """Tile side in output pixels, rounded up to a multiple of 4; 0: whole frames."""
    halo: int = REACH * COARSE
    """Output pixels around a tile that are decoded with it and cut off; 24 make it exact."""
    frames: int = 0
    """Output frames that the large stages take at a time; 0: all that came in."""
    keep_on: torch.device | None = None
    """Where the past waits for its next turn, such as the host's memory; None: where it is used."""

    def __post_init__(self) -> None:
        for name in ("tile", "halo", "frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"decoder {name} is {getattr(self, name)}; it must be 0 or more")

    def to_text(self) -> str:
        """Short; ``of_text`` reads it back."""
        return ",".join(map(str, (self.tile, self.halo, self.frames, "" if self.keep_on is None else self.keep_on)))

    @classmethod
    def of_text(cls, text: str) -> DecodePlan:
        """Raises ValueError, one line, for what ``to_text`` did not write."""
        try:
            tile, halo, frames, place = text.split(",")
            return cls(int(tile), int(halo), int(frames), torch.device(place) if place else None)
        except (ValueError, RuntimeError):
            raise ValueError(f"decoder's plan is {text[:40]!r}; expected such as '1024,24,2,cpu'") from None


class Norm(nn.Module):
    """Each position's channels divided by their root mean square, times a learned gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.gamma, TINY)

    def silu_into(self, x: Tensor, out: Tensor) -> None:
        """``silu(norm(x))`` of ``(B, T, H, W, C)`` into ``out``; contiguous from T on. No backward pass."""
        if fused(x):
            from .triton_norm import norm_silu  # Triton may be missing

            for one, place in zip(x.contiguous(), out, strict=True):
                norm_silu(one, self.gamma, place, TINY)
            return
        for t in range(x.shape[1]):  # frame by frame: what lies between norm and SiLU stays small
            torch.ops.aten.silu.out(self(x[:, t]), out=out[:, t])


class CausalConv(nn.Module):
    """Convolution over (3, k, k) that sees its own frame and the two before it."""

    def __init__(self, cin: int, cout: int, side: int, number: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(cout, cin, PAST + 1, side, side))
        self.bias = nn.Parameter(torch.zeros(cout))
        self.number = number
        """Its key in the ``Past``."""

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """``(B, T, H, W, cin)`` -> ``(B, T, H, W, cout)``."""
        return self.convolve(self.joined(x, past, None))

    def joined(self, x: Tensor, past: Past, norm: Norm | None) -> Tensor:
        """The input, through ``norm`` and SiLU where there is one, behind its past: ``(B, 2 + T, H, W, cin)``."""
        before = past.inputs.get(self.number)
        if torch.is_grad_enabled():
            now = x if norm is None else F.silu(norm(x))
            blank = now.new_zeros(now.shape[0], PAST, *now.shape[2:])
            joined = torch.cat([blank if before is None else before, now], dim=1)
        else:
            joined = x.new_empty(x.shape[0], PAST + x.shape[1], *x.shape[2:])
            if before is None:
                joined[:, :PAST].zero_()
            else:
                joined[:, :PAST].copy_(before)
            if norm is None:
                joined[:, PAST:].copy_(x)
            else:
                norm.silu_into(x, joined[:, PAST:])
        past.inputs[self.number] = joined[:, -PAST:].clone(memory_format=torch.contiguous_format)
        return joined

    def convolve(self, joined: Tensor) -> Tensor:
        """``(B, 2 + T, H, W, cin)`` -> ``(B, T, H, W, cout)``."""
        side = self.weight.shape[-1] // 2
        x = joined.permute(0, 4, 1, 2, 3)
        return F.conv3d(x, self.weight, self.bias, padding=(0, side, side)).permute(0, 2, 3, 4, 1)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), through a 1x1 projection where the channels change."""

    def __init__(self, cin: int, cout: int, number: Callable[[], int]) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(cin), CausalConv(cin, cout, 3, number())
        self.norm2, self.conv2 = Norm(cout), CausalConv(cout, cout, 3, number())
        self.shortcut = nn.Linear(cin, cout) if cin != cout else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        joined = self.conv1.joined(x, past, self.norm1)
        y = self.conv1.convolve(joined)
        joined = self.conv2.joined(y, past, self.norm2)
        del y  # the largest stages decide how much memory the decoder needs
        y = self.conv2.convolve(joined)
        del joined
        x = x if self.shortcut is None else self.shortcut(x)
        return x + y if torch.is_grad_enabled() else y.add_(x)


class FrameAttention(nn.Module):
    """x + self-attention with one head among the positions of a frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.to_qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        b, t, h, w, c = x.shape
        q, k, v = self.to_qkv(self.norm(x)).reshape(b * t, 1, h * w, 3 * c).chunk(3, dim=-1)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v)).reshape(b, t, h, w, c)


class Upsample(nn.Module):
    """Twice the size by nearest neighbours and a 2D convolution to half the channels; before it, where asked, twice the
    frames: every frame but the stream's first becomes two, by a convolution in time."""

    def __init__(self, channels: int, in_time: bool, number: Callable[[], int]) -> None:
        super().__init__()
        self.time_conv = CausalConv(channels, 2 * channels, 1, number()) if in_time else None
        self.conv = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.folded = False

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return self.enlarge(self.more_frames(x, past))

    def more_frames(self, x: Tensor, past: Past) -> Tensor:
        """``(B, T, H, W, C)`` -> ``(B, 2T, H, W, C)``; one frame less if the first is the stream's."""
        if self.time_conv is None:
            return x
        kept, rest = (x[:, :1], x[:, 1:]) if past.first else (x[:, :0], x)
        if not rest.shape[1]:
            return kept
        b, t, h, w, c = rest.shape
        pairs = self.time_conv(rest, past).reshape(b, t, h, w, 2, c).movedim(4, 2).reshape(b, 2 * t, h, w, c)
        return torch.cat([kept, pairs], dim=1) if kept.shape[1] else pairs

    def fold(self) -> None:
        """Convolve before enlarging: each of the four pixels that a position becomes sees 2x2 positions, so that a 3x3
        convolution of the enlarged frame is four 2x2 ones of the small one: 4/9 of the work, and no enlarged input."""
        near = (((0,), (1, 2)), ((0, 1), (2,)))  # of even and odd pixels: the taps that meet in each of two positions
        weight, kernels = self.conv.weight.to(torch.promote_types(self.conv.weight.dtype, torch.float32)), []
        for rows in near:
            for columns in near:
                taps = [[weight[:, :, list(r)][..., list(c)].sum((2, 3)) for c in columns] for r in rows]
                kernels.append(torch.stack([torch.stack(line, dim=-1) for line in taps], dim=-2))
        folded = torch.cat(kernels).to(self.conv.weight.dtype).contiguous(memory_format=torch.channels_last)
        conv = nn.Conv2d(1, 1, 2, padding=1, device="meta")
        conv.weight = nn.Parameter(folded, requires_grad=False)
        conv.bias = (
            nn.Parameter(self.conv.bias.detach().repeat(4), requires_grad=False) if self.conv.bias is not None else None
        )
        self.conv, self.folded = conv, True

    def enlarge(self, x: Tensor) -> Tensor:
        """``(B, T, H, W, C)`` -> ``(B, T, 2H, 2W, C / 2)``."""
        if self.folded:
            return self._enlarge_folded(x)
        frames = F.interpolate(x.flatten(0, 1).permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest-exact")
        return self.conv(frames).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])

    def _enlarge_folded(self, x: Tensor) -> Tensor:
        b, t, h, w, c = x.shape
        four = self.conv(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).unflatten(-1, (2, 2, c // 2))
        out = x.new_empty(b * t, h, 2, w, 2, c // 2)
        for row in range(2):
            for column in range(2):
                out[:, :, row, :, column] = four[:, row : row + h, column : column + w, row, column]
        return out.reshape(b, t, 2 * h, 2 * w, c // 2)


class WanDecoder(nn.Module):
    """Latents of mean 0 and deviation 1 in, pixels in about [-1, 1] out."""

    def __init__(self, config: WanDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.plan = DecodePlan()
        number = count().__next__
        w, c = config.width, config.latent_channels
        self.post_quant = nn.Linear(c, c)
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
        mean, std = (z.new_tensor(v, dtype=torch.float32) for v in (self.config.latent_mean, self.config.latent_std))
        weight = self.post_quant.weight.float()
        bias = self.post_quant.bias.float() + weight @ mean
        dtype = self.post_quant.weight.dtype
        return F.linear(z.movedim(1, -1).to(dtype), (weight * std).to(dtype), bias.to(dtype))

    def _small_stages(self, x: Tensor, past: Past) -> Tensor:
        """``(B, T, 2h, 2w, 4 width)``: all frames, at a quarter of the output's resolution."""
        x = self.conv_in(x, past)
        for layer in (*self.mid, *self.up[: self.last_whole]):
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
        x = second.enlarge(x)
        for layer in self.up[self.last_whole + 1 :]:
            x = layer(x, past)
        return self.conv_out.convolve(self.conv_out.joined(x, past, self.norm_out))

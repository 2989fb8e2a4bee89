"""The layers of the Wan 2.1 VAE's decoder, on activations ``(B, T, H, W, C)`` that are contiguous: what convolutions call
channels_last_3d. Each convolution's input is written once, behind its past, by the norm before it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .streaming import Past

PAST = 2
"""Frames that a convolution in time looks back."""
TINY = 1e-24
"""Under the norm's root: only a position of zeros sees it."""


def fused(x: Tensor) -> bool:
    """Whether norm and SiLU run as one Triton kernel: on NVIDIA GPUs with Triton, but for compilations, which fuse themselves."""
    return x.is_cuda and not torch.compiler.is_compiling() and _has_triton()


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None and torch.version.cuda is not None


def identity(weight: Tensor) -> tuple[object, ...]:
    """Equal as long as a weight has the same values in the same place, to keep what is derived from it."""
    version = None if weight.is_inference() else weight._version
    return None if weight.is_meta else weight.data_ptr(), version, weight.device, weight.dtype


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
        self.derived: tuple[object, dict[object, tuple[list[Tensor], Tensor]]] | None = None
        """What ``wan_stream`` made of the weights, and of which."""

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """``(B, T, H, W, cin)`` -> ``(B, T, H, W, cout)``."""
        return self.convolve(self.joined(x, past, None))

    def joined(self, x: Tensor, past: Past, norm: Norm | None) -> Tensor:
        """The input, through ``norm`` and SiLU where there is one, behind its past: ``(B, 2 + T, H, W, cin)``."""
        before = past.inputs.pop(self.number, None)
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
        del before  # gone before its successor is made
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
        del joined  # the largest stages decide how much memory the decoder needs
        joined = self.conv2.joined(y, past, self.norm2)
        del y
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

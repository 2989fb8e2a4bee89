"""The tiny decoder TAEHV for Wan 2.1's latents (files taew2_1, lighttaew2_1): fast previews, little memory, less exact.

2D convolutions; some see the frame before too, which is all its memory of earlier frames. Written from
https://github.com/madebyollin/taehv (taehv.py); parity is tested against ComfyUI's class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..vae_config import TaehvConfig
from .streaming import DecodePlan, DecoderState, Past

CLAMP = 3.0
"""Latents are squeezed into (-3, 3)."""
TRIM = 3
"""Frames made of the first latent frame that are no frames of the clip."""
LARGE = 18
"""First of the layers that work at the output's resolution; none of them remembers."""


def _conv(cin: int, cout: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, padding=1, bias=bias)


class MemoryBlock(nn.Module):
    """relu(x + convolutions of x and of what came in for the frame before)."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )
        self.number = number

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """``(T, C, H, W)``, successive frames."""
        before = past.inputs.get(self.number)
        before = torch.zeros_like(x[:1]) if before is None else before
        past.inputs[self.number] = x[-1:].clone()
        return F.relu(self.conv(torch.cat([x, torch.cat([before, x[:-1]])], dim=1)) + x)


class Grow(nn.Module):
    """Every frame becomes ``factor`` frames, by a 1x1 convolution. The upsampling that precedes it in the file is done after
    it here: the same result for a quarter of the work."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * factor, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(T, C, H, W)`` -> ``(T * factor, C, 2H, 2W)``."""
        width = x.shape[1]
        x = self.conv(x).unflatten(1, (-1, width)).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return F.interpolate(x, scale_factor=2.0, mode="nearest-exact")


class TaehvDecoder(nn.Module):
    """Latents of mean 0 and deviation 1 in, pixels in about [-1, 1] out; layers have the numbers of the file."""

    def __init__(self, config: TaehvConfig) -> None:
        super().__init__()
        self.config = config
        self.plan = DecodePlan()
        w = config.width
        layers: dict[str, nn.Module] = {"1": _conv(config.latent_channels, 4 * w), "22": _conv(w, 3)}
        for stage, (cin, cout, factor) in enumerate(((4, 2, 1), (2, 1, 2), (1, 1, 2))):
            start = 6 * stage + 3
            layers |= {str(i): MemoryBlock(cin * w, i) for i in range(start, start + 3)}
            layers[str(start + 4)] = Grow(cin * w, factor)
            layers[str(start + 5)] = _conv(cin * w, cout * w, bias=False)
        self.layers = nn.ModuleDict({number: layers[number] for number in sorted(layers, key=int)})

    def fold(self) -> None:
        """Nothing to fold; as ``WanDecoder.fold``."""

    def forward(self, z: Tensor, state: DecoderState | None = None) -> Tensor:
        """Pixels ``(1, 3, T, 8h, 8w)`` of latents ``(1, C, t, h, w)``, not clamped.

        T is 4t; 4t - 3 where ``state`` is new, or None: the first latent frame is one frame.

        Raises:
            ValueError: latents of another shape, or a state of frames of another size.
        """
        if z.ndim != 5 or z.shape[0] != 1 or z.shape[1] != self.config.latent_channels:
            raise ValueError(f"latent is {tuple(z.shape)}; expected (1, {self.config.latent_channels}, t, h, w)")
        state = DecoderState() if state is None else state
        past, first = state.whole, state.whole.first
        known = past.inputs.get(3)
        if known is not None and known.shape[2:] != z.shape[3:]:
            raise ValueError(
                f"latent is {tuple(z.shape)}, but the stream's frames are {tuple(known.shape[2:])}; begin a new state"
            )
        x = self._scaled(z)[0].movedim(1, 0).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.layers["1"](torch.tanh(x / CLAMP) * CLAMP))
        for number, layer in self.layers.items():
            if 1 < int(number) < LARGE:
                x = layer(x, past) if isinstance(layer, MemoryBlock) else layer(x)
        past.first = False
        at_once = -(-self.plan.frames // 2) or len(x)  # a frame here becomes two
        pieces = [
            self.layers["22"](F.relu(self.layers["20"](self.layers["19"](part)))) * 2 - 1 for part in x.split(at_once)
        ]
        pixels = torch.cat(pieces)[TRIM if first else 0 :]
        return pixels.movedim(0, 1)[None]

    def _scaled(self, z: Tensor) -> Tensor:
        """In the file's number format, and in the VAE's scale where it was trained on that."""
        if self.config.latent_mean:
            mean, std = (
                z.new_tensor(v)[:, None, None, None] for v in (self.config.latent_mean, self.config.latent_std)
            )
            z = z * std + mean
        first = self.layers["1"]
        assert isinstance(first, nn.Conv2d)
        return z.to(first.weight.dtype)

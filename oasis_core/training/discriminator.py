"""The adversary: a U-Net that judges every pixel of three consecutive frames at once.

Shape after Real-ESRGAN's spectral-norm U-Net (arXiv 2107.10833, section 3.3), with three frames stacked in the channels
so that texture which flickers looks as fake as texture which is wrong.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

FRAMES = 3


class UNetDiscriminator(nn.Module):
    """Frames ``(S, 3 * FRAMES, H, W)`` in [0, 1], H and W multiples of 8 -> logits ``(S, 1, H, W)``."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        w = width

        def conv(cin: int, cout: int, kernel: int = 3, stride: int = 1) -> nn.Module:
            return spectral_norm(nn.Conv2d(cin, cout, kernel, stride, padding=1, bias=False))

        self.first = nn.Conv2d(3 * FRAMES, w, 3, padding=1)
        self.down = nn.ModuleList([conv(w, 2 * w, 4, 2), conv(2 * w, 4 * w, 4, 2), conv(4 * w, 8 * w, 4, 2)])
        self.up = nn.ModuleList([conv(8 * w, 4 * w), conv(4 * w, 2 * w), conv(2 * w, w)])
        self.tail = nn.ModuleList([conv(w, w), conv(w, w)])
        self.last = nn.Conv2d(w, 1, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and the intermediate maps (for feature matching)."""
        x = (x * 2 - 1).contiguous(memory_format=torch.channels_last)
        maps = [F.leaky_relu(self.first(x), 0.2)]
        for layer in self.down:
            maps.append(F.leaky_relu(layer(maps[-1]), 0.2))
        y = maps[-1]
        features = list(maps)
        for layer, skip in zip(self.up, reversed(maps[:-1]), strict=True):
            y = F.interpolate(y, scale_factor=2, mode="nearest")
            y = F.leaky_relu(layer(y), 0.2) + skip
            features.append(y)
        for layer in self.tail:
            y = F.leaky_relu(layer(y), 0.2)
        return self.last(y), features

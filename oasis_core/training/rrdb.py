"""Real-ESRGAN x4plus's network as published: a teacher (``teacher.py``), and what benchmarks compare with (random weights: its
cost does not depend on them).

23 blocks, 64 and 32 channels: https://github.com/xinntao/Real-ESRGAN/blob/a4abfb2/inference_realesrgan.py#L63
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dense(nn.Module):
    """RRDBNet's residual dense block."""

    def __init__(self, width: int = 64, grow: int = 32) -> None:
        super().__init__()
        outs = [grow] * 4 + [width]
        self.convs = nn.ModuleList(nn.Conv2d(width + i * grow, out, 3, padding=1) for i, out in enumerate(outs))

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in self.convs[:-1]:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), 0.2)], 1)
        return x + 0.2 * self.convs[-1](seen)


class RRDBNet(nn.Module):
    """``(S, 3, H, W)`` -> ``(S, 3, 4H, 4W)``."""

    def __init__(self, width: int = 64, blocks: int = 23) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(nn.Sequential(Dense(width), Dense(width), Dense(width)) for _ in range(blocks))
        self.after, self.up1, self.up2, self.hr = (nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.first(x)
        for block in self.body:
            x = x + 0.2 * block(x)
        x = first + self.after(x)
        for conv in (self.up1, self.up2):
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2.0)), 0.2)
        return self.last(F.leaky_relu(self.hr(x), 0.2))

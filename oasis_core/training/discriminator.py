"""The adversary: a U-Net that judges every pixel of three consecutive frames at once.

Shape after Real-ESRGAN's spectral-norm U-Net (arXiv 2107.10833, section 3.3), with three frames stacked in the channels
so that texture which flickers looks as fake as texture which is wrong.

The spectral norm is written out, not torch's parametrization: the normalised weights are computed once a step and serve
both passes (the adversary's own, and the restorer's with the weights detached).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAMES = 3
SETTLE = 15
"""Power iterations at the start, so that the first steps' norms are right."""


class UNetDiscriminator(nn.Module):
    """Frames ``(S, 3 * FRAMES, H, W)`` in [0, 1], H and W multiples of 8 -> logits ``(S, 1, H, W)``."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        w = width
        self.first = nn.Conv2d(3 * FRAMES, w, 3, padding=1)
        sizes = [
            (w, 2 * w, 4),
            (2 * w, 4 * w, 4),
            (4 * w, 8 * w, 4),
            (8 * w, 4 * w, 3),
            (4 * w, 2 * w, 3),
            (2 * w, w, 3),
        ]
        sizes += [(w, w, 3), (w, w, 3)]
        self.convs = nn.ModuleList(nn.Conv2d(cin, cout, kernel, bias=False) for cin, cout, kernel in sizes)
        self.last = nn.Conv2d(w, 1, 3, padding=1)
        for i, conv in enumerate(self.convs):
            assert isinstance(conv, nn.Conv2d)
            self.register_buffer(f"u{i}", F.normalize(torch.randn(conv.out_channels), dim=0))
        for _ in range(SETTLE):
            self.weights()

    def weights(self) -> list[Tensor]:
        """All weights as ``judge`` takes them, the inner convolutions' divided by their largest singular value."""
        inner = []
        for i, conv in enumerate(self.convs):
            weight: Tensor = conv.weight  # type: ignore[assignment]
            u: Tensor = getattr(self, f"u{i}")
            matrix = weight.flatten(1)
            with torch.no_grad():
                v = F.normalize(matrix.T @ u, dim=0)
                u.copy_(F.normalize(matrix @ v, dim=0))
            inner.append(weight / (u.clone() @ (matrix @ v)))
        return [self.first.weight, _given(self.first.bias), *inner, self.last.weight, _given(self.last.bias)]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and the intermediate maps (for feature matching)."""
        return judge(x, self.weights())


def judge(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The U-Net with the given ``UNetDiscriminator.weights``: logits ``(S, 1, H, W)`` and seven feature maps."""
    first, first_bias, *inner, last, last_bias = weights
    x = (x * 2 - 1).contiguous(memory_format=torch.channels_last)
    maps = [F.leaky_relu(F.conv2d(x, first, first_bias, padding=1), 0.2)]
    for weight in inner[:3]:
        maps.append(F.leaky_relu(F.conv2d(maps[-1], weight, stride=2, padding=1), 0.2))
    y = maps[-1]
    features = list(maps)
    for weight, skip in zip(inner[3:6], reversed(maps[:-1]), strict=True):
        y = F.leaky_relu(F.conv2d(_twice(y), weight, padding=1), 0.2) + skip
        features.append(y)
    for weight in inner[6:]:
        y = F.leaky_relu(F.conv2d(y, weight, padding=1), 0.2)
    return F.conv2d(y, last, last_bias, padding=1), features


def _twice(x: Tensor) -> Tensor:
    """Nearest upsampling by 2; autocast would take it to fp32 and back."""
    with torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x, scale_factor=2, mode="nearest")


def _given(bias: Tensor | None) -> Tensor:
    assert bias is not None
    return bias

"""Two versions of a frame in one picture: beside each other, wiped, or their difference."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from .geometry import resize

LINE = 2
"""Pixels of the line between the two."""


class CompareMode(str, Enum):
    """How two frames are shown."""

    WIPE = "wipe"
    """Left of the line the one, right of it the other."""
    SIDE_BY_SIDE = "side by side"
    DIFFERENCE = "difference"
    """Absolute difference times a gain, mean of the channels, grey."""

    @classmethod
    def of(cls, name: str) -> CompareMode:
        """Raises ValueError with the modes there are."""
        try:
            return cls(name)
        except ValueError:
            raise ValueError(f"compare mode is {name!r}; allowed: {', '.join(m.value for m in cls)}") from None


def compare_frames(
    before: Tensor, after: Tensor, mode: CompareMode, position: float = 0.5, gain: float = 4.0
) -> Tensor:
    """One picture ``(H, W or 2 W + LINE, 3)`` in [0, 1] at ``after``'s size.

    Args:
        before, after: ``(h, w, C)`` and ``(H, W, C)``, C 3 or more (a fourth channel is left out), in [0, 1]. ``before``
            is resized (bicubic) where its size is another.
        position: of the wipe's line, 0 (all ``after``) to 1 (all ``before``).
        gain: of the difference, above 0.

    Raises:
        ValueError: position or gain outside its range.
    """
    if not 0 <= position <= 1:
        raise ValueError(f"wipe position is {position}; it must be from 0 (all after) to 1 (all before)")
    if not gain > 0:
        raise ValueError(f"difference gain is {gain}; it must be above 0")
    before, after = (x[..., :3].float().clamp(0, 1) for x in (before, after))
    if before.shape != after.shape:
        before = resize(before[None], *after.shape[:2])[0].clamp(0, 1)
    if mode is CompareMode.DIFFERENCE:
        return ((after - before).abs().mean(-1, keepdim=True) * gain).clamp(0, 1).expand(-1, -1, 3).contiguous()
    if mode is CompareMode.SIDE_BY_SIDE:
        return torch.cat([before, after.new_ones(after.shape[0], LINE, 3), after], dim=1)
    width = after.shape[1]
    at = round(position * width)
    out = torch.cat([before[:, :at], after[:, at:]], dim=1)
    if 0 < at < width:
        start = min(max(0, at - LINE // 2), max(0, width - LINE))
        out[:, start : start + LINE] = 1.0
    return out

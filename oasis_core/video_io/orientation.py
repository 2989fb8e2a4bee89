"""How a stored picture is turned upright: the display matrix that phones and cameras write."""

from __future__ import annotations

import av
import numpy as np
import torch
from torch import Tensor

_TURNS = {
    (False, False, False): (0, False),
    (True, False, True): (90, False),
    (False, True, True): (180, False),
    (True, True, False): (270, False),
    (False, True, False): (0, True),
    (True, True, True): (90, True),
    (False, False, True): (180, True),
    (True, False, False): (270, True),
}
"""From (transpose, then flip x, then flip y) to (degrees counter-clockwise, then mirror left to right)."""


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Degrees counter-clockwise (0, 90, 180, 270; the nearest) and whether the turned picture is then mirrored.

    PyAV's ``frame.rotation`` alone does not do: it reads a mirrored picture as one that is turned by 180 degrees.
    """
    entries: list[object] = [frame.side_data[i] for i in range(len(frame.side_data))]  # type: ignore[literal-required]
    found = next((e for e in entries if getattr(e, "type", None) and e.type.name == "DISPLAYMATRIX"), None)  # type: ignore[attr-defined]
    if found is None:
        return 0, False
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(found), "<i4")[:5])  # type: ignore[call-overload]
    # x' = a x + c y and y' = b x + d y (libavutil/display.h); rows run downwards in both.
    transpose = abs(a) + abs(d) < abs(b) + abs(c)
    flip_x, flip_y = (c < 0, b < 0) if transpose else (a < 0, d < 0)
    return _TURNS[transpose, flip_x, flip_y]


def upright(rgb: Tensor, rotation: int, mirrored: bool) -> Tensor:
    """``(H, W, 3)`` turned as ``orientation`` says; contiguous."""
    turned = torch.rot90(rgb, rotation // 90, (0, 1)) if rotation else rgb  # else it copies
    return (turned.flip(1) if mirrored else turned).contiguous()

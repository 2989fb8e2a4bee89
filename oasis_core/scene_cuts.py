"""Where a new shot begins, found as the frames come by: each frame against the one before, both made very small.

A missed cut bleeds one shot into the next (up to 9.6 dB on the frames beside it, DESIGN section 6), a false one costs
almost nothing: where in doubt this splits. The adaptive threshold follows PySceneDetect's AdaptiveDetector
(https://www.scenedetect.com/docs/latest/api/detectors.html), with the median of the past in place of a mean of past and
future, so that nothing waits for frames to come.
"""

from __future__ import annotations

from collections import deque
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = (18, 32)
"""Rows and columns that a frame is averaged down to: motion moves little in it, grain and noise vanish."""
CUT = 0.45
"""Score from which a frame may begin a shot. Measured: neighbours in the bundled sample under 0.04, its every eighth
frame under 0.14; unrelated pictures 0.8 to 3, at a twentieth of the light 0.55 to 0.8."""
RATIO = 2.5
"""How far a cut stands out from the median score of the frames before it: steady commotion is no series of cuts."""
PAST = 8
"""Scores that the median is of."""
SAMPLES = 8
"""Pixels looked at along each side of a grid cell, at most: large frames take no longer than small ones."""
FLAT = 0.01
"""Contrast (mean distance from the mean, of 1) added to that of both frames, so that grain on black is no cut."""


class SceneCutDetector:
    """Fed a clip's frames in order. What it says of a frame depends on that one and the ``MEMORY`` frames before it."""

    MEMORY = PAST + 1
    """Frames before one that decide about it: fed these, a new detector says what one that saw the whole clip says."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._scores: deque[float] = deque(maxlen=PAST)

    def begins_shot(self, frame: Tensor) -> bool:
        """Whether ``frame`` ``(H, W, 3)`` (float, nominally [0, 1]) begins a new shot; the first one does.

        A single odd frame (a flash) is a shot of its own.
        """
        small = _small(frame)
        last, self._last = self._last, small
        if last is None:
            return True
        score = _difference(last, small)
        usual = median(self._scores) if self._scores else 0.0
        self._scores.append(score)
        return score > max(CUT, RATIO * usual)


def _small(frame: Tensor) -> Tensor:
    """``(3, rows, columns)`` fp32 on the CPU, rows and columns at most ``GRID``."""
    steps = [max(1, have // (want * SAMPLES)) for have, want in zip(frame.shape[:2], GRID, strict=True)]
    picked = frame[:: steps[0], :: steps[1]].detach().to("cpu", torch.float32).clamp(0, 1)
    rows, columns = (min(have, want) for have, want in zip(picked.shape[:2], GRID, strict=True))
    planes = picked.permute(2, 0, 1).contiguous()  # else channel by channel for each cell: twice the time
    return F.adaptive_avg_pool2d(planes[None], (rows, columns))[0]


def _difference(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference in units of the two frames' contrast: unrelated pictures have about 1, bright or dark."""
    if a.shape != b.shape:
        return float("inf")
    contrast = sum((x - x.mean((1, 2), keepdim=True)).abs().mean() for x in (a, b)) / 2
    return float((a - b).abs().mean() / (contrast + FLAT))

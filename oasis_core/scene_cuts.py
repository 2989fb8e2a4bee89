"""Where a new shot begins, found as the frames come by: each frame against the one before, both made very small.

A missed cut bleeds one shot into the next (up to 9.6 dB on the frames beside it, DESIGN section 6), a false one costs
almost nothing: where in doubt this splits. The adaptive threshold follows PySceneDetect's AdaptiveDetector
(https://www.scenedetect.com/docs/latest/api/detectors.html), with the median of the past in place of a mean of past and
future, so that nothing waits for frames to come.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import torch
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
        self._last: _Small | None = None
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


@dataclass(frozen=True)
class _Small:
    """A frame, made very small."""

    cells: Tensor
    """``(rows * columns, 3)`` fp32 on the CPU, rows and columns at most ``GRID``."""
    contrast: float
    """Mean distance from each channel's mean."""


def _small(frame: Tensor) -> _Small:
    """Of ``(H, W, 3)``; each cell the mean of its pixels, or of some of them."""
    steps = [max(1, have // (want * SAMPLES)) for have, want in zip(frame.shape[:2], GRID, strict=True)]
    picked = frame[:: steps[0], :: steps[1]].detach().to("cpu", torch.float32).clamp(0, 1)
    height, width = picked.shape[:2]
    rows, columns = _row_means(height), _column_means(width)
    cells = (rows @ picked.reshape(height, width * 3) @ columns).view(-1, 3)
    return _Small(cells, float((cells - cells.mean(0)).abs_().mean()))


@lru_cache
def _row_means(height: int) -> Tensor:
    """``(rows, height)``: what makes rows of cells of a picture's rows, in half the time that pooling takes."""
    return _means(height, GRID[0])


@lru_cache
def _column_means(width: int) -> Tensor:
    """``(width * 3, columns * 3)``: likewise, multiplied from the right, for three values a pixel."""
    return torch.kron(_means(width, GRID[1]).T.contiguous(), torch.eye(3))


def _means(have: int, want: int) -> Tensor:
    """Weights ``(cells, have)``; cells as those of ``adaptive_avg_pool2d``."""
    cells = min(have, want)
    weights = torch.zeros(cells, have)
    for cell in range(cells):
        start, stop = cell * have // cells, -(-(cell + 1) * have // cells)
        weights[cell, start:stop] = 1 / (stop - start)
    return weights


def _difference(a: _Small, b: _Small) -> float:
    """Mean absolute difference in units of the two frames' contrast: unrelated pictures have about 1, bright or dark."""
    if a.cells.shape != b.cells.shape:
        return float("inf")
    return float((a.cells - b.cells).abs_().mean()) / ((a.contrast + b.contrast) / 2 + FLAT)

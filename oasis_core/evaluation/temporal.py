"""How steady a clip is in time, given its ground truth. Lower is better, but a blurred clip is steady too."""

from __future__ import annotations

import cv2
import numpy as np


class WarpError:
    """``ewarp``: 1000 times the mean squared difference (levels in [0, 1]) of each frame and the one before it, moved onto it.

    The motion is the ground truth's, by DIS optical flow (Kroeger et al., ECCV 2016, OpenCV's medium preset), and only pixels
    count that both frames see: flow there and back must agree (Sundaram et al., "Dense Point Trajectories", ECCV 2010) and
    stay inside the frame. The measure: Lai et al., "Learning Blind Video Temporal Consistency", ECCV 2018.

    ``ewarp_truth``: the same of the ground truth itself: what its own noise, light and shadows come to.
    A clip of one frame has neither.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._errors: list[tuple[float, float]] = []
        self._last: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def add(self, truth: np.ndarray, output: np.ndarray) -> None:
        """One frame of each, ``(H, W, 3)`` uint8."""
        gray = cv2.cvtColor(truth, cv2.COLOR_RGB2GRAY)
        if self._last is not None:
            gray_before, truth_before, output_before = self._last
            x, y, seen = self._motion(gray, gray_before)
            self._errors.append(
                (_moved_error(output, output_before, x, y, seen), _moved_error(truth, truth_before, x, y, seen))
            )
        self._last = gray, truth, output

    def result(self) -> dict[str, float]:
        if not self._errors:
            return {}
        ours, truths = (1e3 * float(v) for v in np.mean(self._errors, axis=0))
        return {"ewarp": ours, "ewarp_truth": truths}

    def _motion(self, gray: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where in the frame before each pixel was (columns, rows, float32), and whether both frames see it."""
        height, width = gray.shape
        there = self._flow.calc(gray, before, None)  # type: ignore[call-overload]  # no first guess; the stubs forbid it
        back = self._flow.calc(before, gray, None)  # type: ignore[call-overload]
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        x, y = columns + there[..., 0], rows + there[..., 1]
        back = cv2.remap(back, x, y, cv2.INTER_LINEAR)
        size = np.square(there).sum(-1) + np.square(back).sum(-1)
        agree = np.square(there + back).sum(-1) < 0.01 * size + 0.5  # Sundaram et al., equation 5
        return x, y, agree & (x >= 0) & (x < width) & (y >= 0) & (y < height)


class Flicker:
    """``flicker``: mean absolute difference of the output's and the ground truth's changes from frame to frame, levels in [0, 1].

    A clip of one frame has none.
    """

    def __init__(self) -> None:
        self._differences: list[float] = []
        self._last: np.ndarray | None = None

    def add(self, truth: np.ndarray, output: np.ndarray) -> None:
        """One frame of each, ``(H, W, 3)`` uint8."""
        error = output.astype(np.int16) - truth  # its change is the difference of the changes
        if self._last is not None:
            self._differences.append(float(np.abs(error - self._last).mean()) / 255)
        self._last = error

    def result(self) -> dict[str, float]:
        return {"flicker": float(np.mean(self._differences))} if self._differences else {}


def _moved_error(frame: np.ndarray, before: np.ndarray, x: np.ndarray, y: np.ndarray, seen: np.ndarray) -> float:
    """Mean squared difference over the pixels that are seen; 0 where there are none."""
    if not seen.any():
        return 0.0
    moved = cv2.remap(before, x, y, cv2.INTER_CUBIC)  # in 8 bits: rounded and clipped as the frames themselves are
    return float(np.square(frame / 255.0 - moved / 255.0).mean(-1)[seen].mean())

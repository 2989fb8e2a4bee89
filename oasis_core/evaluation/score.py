"""Every measure of one clip, in one pass over its frames."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import numpy as np

from .clips import Clip
from .metrics import FrameQuality, LowResolution
from .perceptual import SLICES, STLPIPS, Perceptual
from .temporal import Flicker, WarpError
from .vmaf import Vmaf, why_not

log = logging.getLogger(__name__)

MULTIPLE = 8
"""Frames are cropped to a multiple of this from the lower right: 4:2:0 and the area downscaling then need no padding."""
SMALLEST = 64
"""Least side of a frame in pixels: below it the deepest maps of the perceptual networks and VMAF's coarsest scale are empty."""


class Measure(Protocol):
    """Takes a clip frame by frame, then tells its scores."""

    def add(self, truth: np.ndarray, output: np.ndarray) -> None: ...

    def result(self) -> dict[str, float]: ...


class Judge:
    """Scores clips; holds the perceptual networks. Runs on the CPU, so that scores do not depend on the machine.

    Raises:
        ModuleNotFoundError: the networks' package is not installed.
    """

    def __init__(self) -> None:
        self._networks: dict[str, STLPIPS] = {name: STLPIPS(name) for name in SLICES}
        self._without_vmaf = why_not()
        if self._without_vmaf:
            log.warning("VMAF is left out: %s", self._without_vmaf)

    def score(self, truth: Clip, output: Clip) -> dict[str, float]:
        """Scores by name (``report.COLUMNS``) over the frames that both have; constant memory.

        A clip of one frame has no ``ewarp`` and ``flicker``.

        Raises:
            ValueError: no frames, sizes that differ, or frames under 64 pixels. OSError: ffmpeg failed.
        """
        frames = min(len(truth), len(output))
        if not frames:
            raise ValueError("one of the clips has no frames")
        if len(truth) != len(output):
            log.warning("%d frames of truth, %d of output: the first %d count", len(truth), len(output), frames)
        with ExitStack() as stack:
            measures: list[Measure] = [FrameQuality(), LowResolution(), WarpError(), Flicker()]
            measures.append(Perceptual(self._networks, frames))
            if not self._without_vmaf:
                measures.append(stack.enter_context(Vmaf()))
            for hr, sr in _pairs(truth, output):
                for measure in measures:
                    measure.add(hr, sr)
            return {name: value for measure in measures for name, value in measure.result().items()}


def _pairs(truth: Clip, output: Clip) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames of both, cropped; as many as both have."""
    for hr, sr in zip(truth, output, strict=False):
        if hr.shape != sr.shape:
            raise ValueError(f"sizes differ: ground truth {_size(hr)}, output {_size(sr)}")
        if min(hr.shape[:2]) < SMALLEST:
            raise ValueError(f"frames are {_size(hr)}; measuring needs at least {SMALLEST} pixels a side")
        height, width = (side // MULTIPLE * MULTIPLE for side in hr.shape[:2])
        yield np.ascontiguousarray(hr[:height, :width]), np.ascontiguousarray(sr[:height, :width])


def _size(frame: np.ndarray) -> str:
    return f"{frame.shape[1]}x{frame.shape[0]}"

"""A stream of frames, cut into what the model takes: shots, and in each the frames of one latent frame after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .scene_cuts import SceneCutDetector


@dataclass(frozen=True)
class FrameGroup:
    """The frames of one latent frame, as they came in."""

    frames: Tensor
    """``(T, H, W, 3)``: one frame if ``first``, else a whole group (the last frame repeated to fill it)."""
    count: int
    """Frames that are really there."""
    first: bool
    """Whether it begins a shot."""
    ended: bool = False
    """Nothing in it: the stream is over."""

    def last_frame(self) -> FrameGroup:
        """Its last frame as if it began a shot."""
        return FrameGroup(self.frames[-1:], 1, first=True)


def frame_groups(frames: Iterable[Tensor], factor: int, *, begins_shot: bool = True) -> Iterator[FrameGroup]:
    """The first frame alone (where it begins the shot), then groups of ``factor``, then an empty group that says so."""
    held: list[Tensor] = []
    for number, frame in enumerate(frames):
        if number == 0 and begins_shot:
            yield FrameGroup(frame[None], 1, first=True)
            continue
        held.append(frame)
        if len(held) == factor:
            yield FrameGroup(frame[None] if factor == 1 else torch.stack(held), factor, first=False)
            held = []
    if held:
        filled = held + held[-1:] * (factor - len(held))
        yield FrameGroup(torch.stack(filled), len(held), first=False)
    yield FrameGroup(torch.empty(0), 0, first=False, ended=True)


def by_shot(
    frames: Iterable[Tensor], first: int, begin: int, shot: int, detector: SceneCutDetector | None
) -> Iterator[tuple[int, Tensor]]:
    """Each frame from number ``begin`` on, with the number of the frame that its shot begins with.

    Args:
        frames: those from number ``first`` on, ``(H, W, 3)``, float; the detector alone sees the ones before ``begin``.
        shot: where the shot of frame ``begin`` begins.
        detector: None: all of one shot.

    Raises:
        ValueError: what are no frames, frames of different sizes, or none at all.
    """
    shape: torch.Size | None = None
    for number, frame in enumerate(frames, first):
        if frame.ndim != 3 or frame.shape[-1] != 3 or not frame.is_floating_point():
            raise ValueError(
                f"frame is {tuple(frame.shape)} {frame.dtype}; expected (H, W, 3) of a float type in [0, 1]"
            )
        shape = shape or frame.shape
        if frame.shape != shape:
            raise ValueError(
                f"frame size changes from {tuple(shape)} to {tuple(frame.shape)} within the clip; split it there"
            )
        if detector is not None and detector.begins_shot(frame) and number > begin:
            shot = number
        if number >= begin:
            yield shot, frame
    if shape is None:
        raise ValueError("the clip has no frames; give at least one")

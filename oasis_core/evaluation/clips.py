"""Clips as 8-bit frames, and which output belongs to which ground truth."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ..video_io import VideoReader
from ..video_io.images import IMAGES, VIDEOS
from ..video_io.orientation import upright

log = logging.getLogger(__name__)

CLIPS = (*VIDEOS, ".y4m")
"""Endings of the files that are taken for clips; a folder of images (``oasis upscale --codec png``) is one too."""


class Clip(Protocol):
    """Frames ``(H, W, 3)`` uint8 RGB that can be gone through again and again: a list, or a file."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[np.ndarray]: ...


class ClipFile:
    """A video file or folder of images, read frame by frame each time it is gone through.

    RGB files give their very values. YUV is converted by FFmpeg, as other scoring tools do, so that scores compare with theirs;
    it rounds down (a level darker on average than ``VideoReader``, and PSNR up to 0.04 dB apart).

    Raises:
        FileNotFoundError, ValueError: not there, or not a video.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = VideoReader(path)

    @cached_property
    def _frames(self) -> int:
        frames = sum(1 for _ in self._reader.pictures())
        if self._reader.problem:
            log.warning("%s", self._reader.problem)
        return frames

    def __len__(self) -> int:
        return self._frames

    def __iter__(self) -> Iterator[np.ndarray]:
        info = self._reader.info
        for picture, _ in self._reader.pictures():
            rgb = torch.from_numpy(picture.to_ndarray(format="rgb24"))
            yield np.ascontiguousarray(upright(rgb, info.rotation, info.mirrored).numpy())


def pair_clips(truths: Path, outputs: Path, pattern: str = "*") -> dict[str, tuple[Path, Path]]:
    """Ground truth and output of each clip, by their common name (without ending), in order.

    Args:
        truths, outputs: folders; what only one of them holds is left out, and logged if it is an output that is missing.
        pattern: which clips: ``fnmatch`` on the name, with or without its ending.

    Raises:
        FileNotFoundError: no such folder. ValueError: nothing in common, or two files of one name.
    """
    wanted, made = clips_in(truths, pattern), clips_in(outputs)
    if not wanted:
        named = "" if pattern == "*" else f" that {pattern!r} names"
        raise ValueError(f"{truths} holds no clip{named}; give a folder of videos ({', '.join(CLIPS)})")
    pairs = {name: (path, made[name]) for name, path in wanted.items() if name in made}
    missing = [name for name in wanted if name not in made]
    if not pairs:
        raise ValueError(
            f"no clip of {truths} has an output of the same name in {outputs} (such as {missing[0]}{wanted[missing[0]].suffix})"
        )
    if missing:
        log.warning("no output, left out: %s", ", ".join(missing))
    return pairs


def clips_in(folder: Path, pattern: str = "*") -> dict[str, Path]:
    """Clips of a folder by name. Raises FileNotFoundError, or ValueError where two have one name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    clips: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not _is_clip(path) or not any(fnmatch(name, pattern) for name in (path.name, _name(path))):
            continue
        if other := clips.get(_name(path)):
            raise ValueError(f"{folder} holds two clips of one name: {other.name} and {path.name}; keep one")
        clips[_name(path)] = path
    return clips


def _name(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _is_clip(path: Path) -> bool:
    if path.is_dir():
        return any(p.suffix.lower() in IMAGES for p in path.iterdir())
    return path.suffix.lower() in CLIPS

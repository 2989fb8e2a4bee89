"""The training set on the host: decoded once, in memory that all data workers share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from .codec import to_rgb


@dataclass(frozen=True)
class Library:
    """Every clip and still, end to end in one tensor: a single block to share, and to bring to a device."""

    pixels: Tensor
    """uint8, one dimension, in shared memory."""
    clips: tuple[tuple[int, ...], ...]
    """Shapes ``(T, H, W, 3)``; the clips come first."""
    stills: tuple[tuple[int, ...], ...]
    """Shapes ``(H, W, 3)``."""

    @classmethod
    def read(
        cls,
        folder: Path,
        drop: Iterable[str] = (),
        licence: str | None = None,
        limit: int | None = None,
        only: Iterable[str] = ("*",),
    ) -> Library:
        """Decode ``folder/clips/*.mp4`` and ``folder/images/*.jpg``.

        Args:
            drop: glob patterns of file names to leave out.
            licence: regular expression that column 3 of ``folder/LICENCES.tsv`` must match for a file to be used.
            only: glob patterns of file names; the others are left out.
            limit: at most this many of each kind (tests).

        Raises:
            FileNotFoundError: nothing to read.
        """
        allowed = _licensed(folder, licence) if licence else None
        drop, only = tuple(drop), tuple(only)
        kept = {}
        for kind, pattern in (("clips", "*.mp4"), ("images", "*.jpg")):
            files = sorted((folder / kind).glob(pattern))
            files = [f for f in files if any(fnmatch(f.name, o) for o in only)]
            files = [f for f in files if not any(fnmatch(f.name, d) for d in drop)]
            kept[kind] = [f for f in files if allowed is None or f"{kind}/{f.name}" in allowed][:limit]
        if not kept["clips"] and not kept["images"]:
            raise FileNotFoundError(f"no training data in {folder}: expected clips/*.mp4 and images/*.jpg")
        with ThreadPoolExecutor() as pool:
            clips = list(pool.map(read_clip, kept["clips"]))
            stills = [x[0] for x in pool.map(read_clip, kept["images"])]
        pixels = torch.empty(sum(x.size for x in [*clips, *stills]), dtype=torch.uint8).share_memory_()
        start = 0
        for x in [*clips, *stills]:
            pixels[start : start + x.size] = torch.from_numpy(x).flatten()
            start += x.size
        return cls(pixels, tuple(x.shape for x in clips), tuple(x.shape for x in stills))

    def __str__(self) -> str:
        return f"{len(self.clips)} clips, {len(self.stills)} stills, {self.pixels.numel() / 2**30:.1f} GiB"

    def on(self, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """All clips and all stills as views of one tensor on ``device``."""
        shapes = [*self.clips, *self.stills]
        parts = self.pixels.to(device).split([int(np.prod(shape)) for shape in shapes])
        views = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return views[: len(self.clips)], views[len(self.clips) :]


def read_clip(path: Path) -> np.ndarray:
    """All frames of a video or image: ``(T, H, W, 3)`` uint8."""
    with av.open(str(path)) as container:
        return np.stack([to_rgb(f) for f in container.decode(video=0)])


def _licensed(folder: Path, pattern: str) -> set[str]:
    lines = (folder / "LICENCES.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return {r[0] for r in rows if len(r) >= 3 and re.search(pattern, r[2])}

"""The training set, held whole as uint8 on the training device and cropped there."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .library import Library

STILL_ZOOM = (1.2, 2.0)
"""Source pixels per output pixel: nothing is magnified, and the softness of single photograph pixels is averaged away
(mean Laplacian at 1.0 to 1.15 / 1.15 to 1.4 / above: 27 / 35 / 40)."""
ROOM = 1.1
"""A still is at least this many times larger than what the camera sees of it."""
SUPERSAMPLING = 2
"""Stills are sampled this much finer than the output and averaged, so that camera motion does not alias."""
CANDIDATES = 3
"""Crops drawn per sample; the most textured one is kept in ``TEXTURED`` of the cases."""
TEXTURED = 0.7
GAMMA, GAIN, SWAPPED = 1.35, 0.8, 0.25
"""Of recoloured samples: exponents from 1 / ``GAMMA`` to ``GAMMA``, each channel's factor from ``GAIN`` to 1, and the share whose
channels change places."""
EDGE_CELL = 32
"""Pixels per side of one cell of the edge map that tells textured crops from flat ones."""


class ClipStore:
    """Clips ``(T, H, W, 3)`` and stills ``(H, W, 3)``, uint8 on ``device``."""

    def __init__(
        self, library: Library, device: torch.device, still_share: float = 0.6, recolor_share: float = 0.0
    ) -> None:
        """
        Args:
            still_share: share of samples made from stills (all, or none, where there is only one kind).
            recolor_share: share of samples that get another light and other colours.
        """
        self.device, self.still_share, self.recolor_share = device, still_share, recolor_share
        self.clips, self.stills = library.on(device)
        self._clip_edges = [edge_map(clip[len(clip) // 2]) for clip in self.clips]
        self._still_edges = [edge_map(still) for still in self.stills]

    def sample(self, batch: int, frames: int, size: int, rng: np.random.Generator) -> Tensor:
        """Random crops ``(B, 3, frames, size, size)``, float in [0, 1], on the device; repeatable by ``rng``."""
        return torch.stack([self._one(frames, size, rng) for _ in range(batch)])

    def _one(self, frames: int, size: int, rng: np.random.Generator) -> Tensor:
        still = bool(self.stills) and (not self.clips or rng.random() < self.still_share)
        x = self._from_still(frames, size, rng) if still else self._from_clip(frames, size, rng)  # (T, 3, size, size)
        if rng.random() < 0.5:
            x = x.flip(3)
        if still:
            x = torch.rot90(x, int(rng.integers(4)), (2, 3))
        if rng.random() < 0.3:
            x = x.flip(0)
        if rng.random() < self.recolor_share:
            x = recolored(x, rng)
        return rearrange(x, "t c h w -> c t h w")

    def _from_clip(self, frames: int, size: int, rng: np.random.Generator) -> Tensor:
        """A crop of consecutive frames (every one or every second), at times area-downscaled."""
        which = int(rng.integers(len(self.clips)))
        clip = self.clips[which]
        length, height, width = clip.shape[:3]
        stride = 2 if rng.random() < 0.25 and length >= 2 * frames else 1
        start = int(rng.integers(max(1, length - stride * (frames - 1))))
        index = [min(start + stride * i, length - 1) for i in range(frames)]
        side = min(height, width, int(size * rng.uniform(1, 1.5))) if rng.random() < 0.4 else size
        side = max(size, side) if min(height, width) >= size else min(height, width)
        top, left = textured_corner(self._clip_edges[which], height, width, side, rng)
        x = clip[index, top : top + side, left : left + side]
        x = rearrange(x, "t h w c -> t c h w").float() / 255
        if side != size:
            x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return x

    def _from_still(self, frames: int, size: int, rng: np.random.Generator) -> Tensor:
        """A still seen by a moving camera: smooth pan, zoom, rotation and a little shake."""
        which = int(rng.integers(len(self.stills)))
        still = self.stills[which]
        height, width = still.shape[:2]
        largest = min(STILL_ZOOM[1], min(height, width) / (size * ROOM))
        zoom = float(rng.uniform(min(STILL_ZOOM[0], largest), largest))
        side = min(min(height, width), int(size * zoom * 1.25) + 2)
        top, left = textured_corner(self._still_edges[which], height, width, side, rng)
        patch = rearrange(still[top : top + side, left : left + side], "h w c -> 1 c h w").float() / 255
        theta = _camera_path(frames, size * zoom / side, side, rng).to(self.device)
        fine = size * SUPERSAMPLING
        grid = F.affine_grid(theta, [frames, 3, fine, fine], align_corners=False)
        moved = F.grid_sample(
            patch.expand(frames, -1, -1, -1), grid, mode="bicubic", padding_mode="reflection", align_corners=False
        )
        return F.avg_pool2d(moved, SUPERSAMPLING).clamp(0, 1)


def recolored(x: Tensor, rng: np.random.Generator) -> Tensor:
    """``(T, 3, H, W)`` in [0, 1], all frames alike, in another light."""
    gamma = float(GAMMA ** rng.uniform(-1, 1))
    gains = torch.tensor(rng.uniform(GAIN, 1, (3, 1, 1)), dtype=x.dtype).to(x.device)
    order = rng.permutation(3) if rng.random() < SWAPPED else np.arange(3)
    return x[:, torch.from_numpy(order).to(x.device)].pow(gamma) * gains


def edge_map(image: Tensor) -> np.ndarray:
    """Mean gradient of ``(H, W, 3)`` per cell of ``EDGE_CELL`` pixels, on the host."""
    gray = image.float().mean(-1)
    edges = gray.diff(dim=0)[:, :-1].abs() + gray.diff(dim=1)[:-1].abs()
    return F.avg_pool2d(edges[None, None], EDGE_CELL, ceil_mode=True)[0, 0].cpu().numpy()


def textured_corner(edges: np.ndarray, height: int, width: int, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top-left corner of a crop; in ``TEXTURED`` of the cases the one of ``CANDIDATES`` with the strongest edges."""
    corners = [(int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))) for _ in range(CANDIDATES)]
    if rng.random() > TEXTURED:
        return corners[0]
    cells = max(1, side // EDGE_CELL)

    def strength(corner: tuple[int, int]) -> float:
        y, x = corner[0] // EDGE_CELL, corner[1] // EDGE_CELL
        return float(edges[y : y + cells, x : x + cells].mean())

    return max(corners, key=strength)


def _camera_path(frames: int, extent: float, side: int, rng: np.random.Generator) -> Tensor:
    """Affine matrices ``(frames, 2, 3)`` for ``affine_grid``: what a camera sees of a patch of ``side`` source pixels.

    ``extent``: the view's share of the patch at zoom 1. The view stays inside the patch, zoom and rotation aside.
    """
    time = np.linspace(-0.5, 0.5, frames) if frames > 1 else np.zeros(1)
    speed = rng.choice([0.3, 1.0, 3.0])
    per_frame = 2 / side  # one source pixel, in the patch's coordinates
    room = max(0.0, 1 - extent)
    pan = np.clip(rng.normal(0, speed, 2) * per_frame * frames, -2 * room, 2 * room)
    shake = rng.normal(0, 0.3 * speed * per_frame, (frames, 2)) if rng.random() < 0.5 else np.zeros((frames, 2))
    zoom = extent * (1 + rng.normal(0, 0.02 * speed) * time)
    angle = rng.normal(0, 0.01 * speed) * time
    center = rng.uniform(-room, room, 2) * 0.5
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    shift = np.clip(center + time[:, None] * pan + shake, -room, room)
    matrices = np.stack([np.stack([cos, -sin, shift[:, 0]], -1), np.stack([sin, cos, shift[:, 1]], -1)], 1)
    return torch.from_numpy(matrices).float()

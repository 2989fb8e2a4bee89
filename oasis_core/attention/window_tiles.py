"""How the window operation cuts a frame into tiles of queries with their halos of keys, and a clip into runs of frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .grid import TokenGrid

SMALL_FRAME = 576
"""Tokens up to which a frame is one tile without a halo (training crops): no overlapping views, whose backward is slow."""


@dataclass(frozen=True)
class Tiling:
    """How a frame of h x w tokens is cut into query tiles, and what halo each needs; (row, column) pairs."""

    size: tuple[int, int]
    tile: tuple[int, int]
    radius: tuple[int, int]
    margin: tuple[int, int]
    """Tokens of halo on each side; none along an axis that one tile holds."""

    @classmethod
    def of(cls, grid: TokenGrid, window: tuple[int, int, int], most: tuple[int, int]) -> Tiling:
        """``most``: sides of a tile where the frame is not one."""
        size, radius = (grid.h, grid.w), (window[1] // 2, window[2] // 2)
        if grid.frame <= SMALL_FRAME:
            return cls(size, size, radius, (0, 0))
        # An axis that every query sees whole is not cut: its tile is the frame's side.
        whole = [r >= s - 1 for r, s in zip(radius, size, strict=True)]
        tile = [s if all_seen else min(t, s) for t, s, all_seen in zip(most, size, whole, strict=True)]
        margin = [0 if all_seen else r for r, all_seen in zip(radius, whole, strict=True)]
        return cls(size, (tile[0], tile[1]), radius, (margin[0], margin[1]))

    @property
    def counts(self) -> tuple[int, int]:
        return -(-self.size[0] // self.tile[0]), -(-self.size[1] // self.tile[1])

    @property
    def halo_size(self) -> int:
        """Tokens in one tile's halo, the tile itself included."""
        return (self.tile[0] + 2 * self.margin[0]) * (self.tile[1] + 2 * self.margin[1])

    def queries(self, x: Tensor, band: slice) -> Tensor:
        """``(b, t, n, h, w, d)`` -> ``(b, t, n, rows, y, columns, x, d)`` of the rows of tiles ``band``, a view if it can be."""
        x = self._rows(x, band, 0, 0)
        return rearrange(x, "b t n (r y) (c x) d -> b t n r y c x d", y=self.tile[0], x=self.tile[1])

    def halos(self, x: Tensor, band: slice) -> Tensor:
        """``(b, t, n, h, w, d)`` -> ``(b, n, tiles, t, halo, d)``: a tile's frames lie side by side."""
        if self.margin == (0, 0) and self.counts == (1, 1):
            return rearrange(x, "b t n h w d -> b n 1 t (h w) d")
        (th, tw), (mh, mw) = self.tile, self.margin
        x = self._rows(x, band, mh, mw).unfold(3, th + 2 * mh, th).unfold(4, tw + 2 * mw, tw)
        return rearrange(x, "b t n r c d y x -> b n (r c) t (y x) d")

    def _rows(self, x: Tensor, band: slice, mh: int, mw: int) -> Tensor:
        """The tokens of the rows of tiles ``band`` with their margins, zeros where the grid ends."""
        th, tw = self.tile
        top, bottom = band.start * th - mh, band.stop * th + mh
        inside = x[:, :, :, max(0, top) : min(self.size[0], bottom)]
        more = (mw, self.counts[1] * tw - self.size[1] + mw, max(0, -top), max(0, bottom - self.size[0]))
        return F.pad(inside, (0, 0, *more)) if any(more) else inside

    def frames(self, x: Tensor) -> Tensor:
        """``(b, t, n, tiles, queries, d)`` -> ``(b, t, n, h, w, d)``; the padding stays."""
        th, tw = self.tile
        return rearrange(x, "b t n (r c) (y x) d -> b t n (r y) (c x) d", c=self.counts[1], y=th, x=tw)


def frame_runs(length: int, extent: int, most: int) -> Iterator[tuple[slice, range]]:
    """Consecutive query frames that see equally many key frames, at most ``most`` at a time.

    With them, the key frames that the run's first frame sees; each later frame sees them shifted by one more.
    """
    radius = extent // 2

    def seen(frame: int) -> range:
        return range(max(0, frame - radius), min(length, frame + radius + 1))

    start = 0
    while start < length:
        first, stop = seen(start), start + 1
        while (
            stop < length
            and stop - start < most
            and seen(stop) == range(first.start + stop - start, first.stop + stop - start)
        ):
            stop += 1
        yield slice(start, stop), first
        start = stop


@lru_cache(maxsize=16)
def tile_mask(tiling: Tiling, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive mask ``(rows of tiles, tiles in a row, 1, queries, halo)`` for one key frame.

    0 inside the neighbourhood and the grid, else -inf.

    Queries in the padding stand in for the last row or column, so that no row is empty (their output is cut off).
    """
    with torch.inference_mode(False):
        sides = zip(tiling.size, tiling.tile, tiling.radius, tiling.margin, strict=True)
        rows, cols = (_axis_visible(*side, device) for side in sides)
        seen = rows[:, None, :, None, :, None] & cols[None, :, None, :, None, :]  # (r, c, y, x, key y, key x)
        seen = seen.flatten(4).flatten(2, 3)
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf")).unsqueeze(2)


def _axis_visible(size: int, tile: int, radius: int, margin: int, device: torch.device) -> Tensor:
    """Bool ``(tiles, tile, tile + 2 * margin)``: does query y of a tile see halo position k, along one axis?"""
    starts = torch.arange(-(-size // tile), device=device)[:, None] * tile
    query = (starts + torch.arange(tile, device=device)).clamp(max=size - 1)
    key = starts - margin + torch.arange(tile + 2 * margin, device=device)
    inside = (key >= 0) & (key < size)
    return ((query[:, :, None] - key[:, None, :]).abs() <= radius) & inside[:, None, :]

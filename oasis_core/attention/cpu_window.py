"""The window operation on a CPU, where nothing is trained: keys and values are gathered for one head and some tiles at a time.

What is gathered stays in a CPU's cache while each frame's queries read it: padding, unfolding and copying all heads' halos took
a third of the operation's time (docs/cpu_speed.md). A halo at the border is the tokens nearest to it, all inside the grid, so
that nothing is padded; an additive mask cuts the exact neighbourhood out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .grid import TokenGrid
from .window_tiles import frame_runs

CPU_TILE = (4, 4)
"""Rows and columns of a tile of queries. With a (3, 5, 5) window 16 queries share 3 x 8 x 8 = 192 keys, of which each uses 75."""
KEY_BUDGET = 2 * 2**20
"""Numbers of gathered keys at a time; as many again for values."""


@dataclass(frozen=True)
class Side:
    """One axis of a frame, cut into tiles of queries, each of which sees a halo; in tokens."""

    size: int
    tile: int
    halo: int
    reach: int

    @classmethod
    def of(cls, size: int, tile: int, extent: int) -> Side:
        reach = extent // 2
        tile = size if reach >= size - 1 else min(tile, size)  # a side that every query sees whole is not cut
        return cls(size, tile, min(size, tile + 2 * reach), reach)

    @property
    def tiles(self) -> int:
        return -(-self.size // self.tile)

    def start(self, tile: int) -> int:
        """Where the halo of a tile begins."""
        return min(max(0, tile * self.tile - self.reach), self.size - self.halo)

    def runs(self, tiles: range) -> Iterator[range]:
        """The tiles in runs whose halos begin ``tile`` after each other."""
        first = tiles.start
        for n in tiles:
            if n + 1 == tiles.stop or self.start(n + 1) - self.start(n) != self.tile:
                yield range(first, n + 1)
                first = n + 1

    def seen(self) -> Tensor:
        """Bool ``(tiles, tile, halo)``: whether a query sees a key; the queries beyond the side see what its last one sees."""
        query = (torch.arange(self.tiles)[:, None] * self.tile + torch.arange(self.tile)).clamp(max=self.size - 1)
        key = torch.tensor([self.start(n) for n in range(self.tiles)])[:, None] + torch.arange(self.halo)
        return (query[:, :, None] - key[:, None, :]).abs() <= self.reach


def gathered_window_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, window: tuple[int, int, int], out: Tensor
) -> Tensor:
    """``sdpa.window_attention`` into ``out``, which it returns; all ``(B, L, N, D)``."""
    high, wide = (Side.of(*side) for side in zip((grid.h, grid.w), CPU_TILE, window[1:], strict=True))
    runs = list(frame_runs(grid.t, window[0], grid.t))
    columns = max(1, KEY_BUDGET // (high.halo * wide.halo * grid.t * q.shape[3]))
    seen = _mask(high, wide, q.dtype)
    for row in range(high.tiles):
        for start in range(0, wide.tiles, columns):
            tiles = range(start, min(start + columns, wide.tiles))
            masks = [seen[row, tiles.start : tiles.stop].repeat(1, 1, 1, len(keys)) for _, keys in runs]
            for b in range(q.shape[0]):
                for n in range(q.shape[2]):
                    planes = [x[b, :, n].unflatten(0, (grid.t, grid.h, grid.w)) for x in (q, k, v, out)]
                    _one_head(planes, high, wide, row, tiles, runs, masks)
    return out


def _one_head(
    planes: list[Tensor], high: Side, wide: Side, row: int, tiles: range, runs: list[tuple[slice, range]],
    masks: list[Tensor],
) -> None:  # fmt: skip
    """Some tiles of a row. ``planes``: q, k, v and what the output goes into, ``(t, h, w, D)``."""
    q, k, v, out = planes
    near = [_halos(x, high, wide, row, tiles) for x in (k, v)]
    top, left, halo = row * high.tile, tiles.start * wide.tile, high.halo * wide.halo
    rows, columns = slice(top, top + high.tile), slice(left, left + len(tiles) * wide.tile)
    queries, place = _tiles(q[:, rows, columns], high, len(tiles) * wide.tile), out[:, rows, columns]
    queries = queries.unflatten(2, (len(tiles), wide.tile)).movedim(2, 0).flatten(2, 3)
    for (frames, keys), mask in zip(runs, masks, strict=True):
        # Each of the run's frames sees its keys where they lie: the views overlap.
        first = slice(keys.start, keys.start + frames.stop - frames.start)
        a, b = (x.unfold(1, len(keys) * halo, halo)[:, first].transpose(2, 3) for x in near)
        done = F.scaled_dot_product_attention(queries[:, frames], a, b, attn_mask=mask)
        done = done.unflatten(2, (high.tile, wide.tile)).permute(1, 2, 0, 3, 4)  # (t, y, tiles, x, D)
        _put(done[:, : place.shape[1]], place[frames])


def _put(done: Tensor, place: Tensor) -> None:
    """``(t, y, tiles, x, D)`` into ``(t, y, w, D)``, where the last tile may be cut off."""
    whole, width = place.shape[2] // done.shape[3], done.shape[3]
    place[:, :, : whole * width].unflatten(2, (whole, width)).copy_(done[:, :, :whole])
    if place.shape[2] > whole * width:
        place[:, :, whole * width :].copy_(done[:, :, whole, : place.shape[2] - whole * width])


def _tiles(q: Tensor, high: Side, width: int) -> Tensor:
    """Queries ``(t, y, x, D)`` of a row of tiles, the last ones repeated where the frame ends."""
    missing = (high.tile - q.shape[1], width - q.shape[2])
    if missing[0]:
        q = torch.cat([q, q[:, -1:].expand(-1, missing[0], -1, -1)], dim=1)
    if missing[1]:
        q = torch.cat([q, q[:, :, -1:].expand(-1, -1, missing[1], -1)], dim=2)
    return q


def _halos(x: Tensor, high: Side, wide: Side, row: int, tiles: range) -> Tensor:
    """Keys ``(tiles, t * halo, D)`` of ``(t, h, w, D)``."""
    out = x.new_empty(len(tiles), len(x), high.halo, wide.halo, x.shape[3])
    top = high.start(row)
    band = x[:, top : top + high.halo]
    for run in wide.runs(tiles):
        left, last = wide.start(run.start), wide.start(run.stop - 1) + wide.halo
        near = band[:, :, left:last].unfold(2, wide.halo, wide.tile)  # (t, y, tiles, D, x)
        out[run.start - tiles.start : run.stop - tiles.start].copy_(near.permute(2, 0, 1, 4, 3))
    return out.flatten(1, 3)


@lru_cache(maxsize=16)
def _mask(high: Side, wide: Side, dtype: torch.dtype) -> Tensor:
    """Additive mask ``(rows of tiles, tiles in a row, 1, queries, halo)`` for one frame of keys: 0 where seen, else -inf."""
    with torch.inference_mode(False):
        seen = high.seen()[:, None, :, None, :, None] & wide.seen()[None, :, None, :, None, :]
        seen = seen.flatten(4).flatten(2, 3)
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf")).unsqueeze(2)

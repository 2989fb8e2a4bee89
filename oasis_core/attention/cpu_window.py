"""The window operation on a CPU, where nothing is trained: keys and values are gathered for a few heads and tiles at a time.

What is gathered stays in a CPU's cache while each frame's queries read it, and is gathered by whole rows: padding, unfolding
and copying all heads' halos took a third of the operation's time (docs/cpu_speed.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .grid import TokenGrid
from .window_tiles import Tiling, frame_runs, tile_mask

CPU_TILE = (4, 4)
"""Rows and columns of a tile of queries."""
HEADS = 2
"""Whose keys are gathered together: with 32 channels each, two lines of a cache a row."""
KEY_BUDGET = 2 * 2**20
"""Numbers of gathered keys at a time; as many again for values."""


def gathered_window_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, window: tuple[int, int, int], out: Tensor
) -> Tensor:
    """``sdpa.window_attention`` into ``out``, which it returns; all ``(B, L, N, D)``."""
    tiling = Tiling.of(grid, window, CPU_TILE)
    mask = tile_mask(tiling, q.dtype, q.device)
    numbers = tiling.halo_size * grid.t * min(HEADS, q.shape[2]) * q.shape[3]
    columns = max(1, KEY_BUDGET // numbers)
    runs = list(frame_runs(grid.t, window[0], grid.t))
    for row in range(tiling.counts[0]):
        for start in range(0, tiling.counts[1], columns):
            tiles = slice(start, min(start + columns, tiling.counts[1]))
            masks = [mask[row, tiles].repeat(1, 1, 1, len(seen)) for _, seen in runs]
            queries, keys = (_places(tiling, grid, row, tiles, halo) for halo in (False, True))
            for heads in _groups(q.shape[0], q.shape[2]):
                near = [x[heads].flatten(1).index_select(0, at) for x, at in ((q, queries), (k, keys), (v, keys))]
                for n, place in enumerate(out[heads].unbind(1)):
                    own = slice(n * q.shape[3], (n + 1) * q.shape[3])
                    one = [x[:, own].unflatten(0, (tiles.stop - tiles.start, -1)) for x in near]
                    _one_head(one, runs, masks, tiling, row, tiles, place.unflatten(0, (grid.t, *tiling.size)))
    return out


def _groups(batch: int, heads: int) -> Iterator[tuple[int, slice, slice]]:
    """Index of each clip's groups of heads in ``(B, L, N, D)``."""
    for b in range(batch):
        yield from ((b, slice(None), slice(n, n + HEADS)) for n in range(0, heads, HEADS))


def _places(tiling: Tiling, grid: TokenGrid, row: int, tiles: slice, halo: bool) -> Tensor:
    """Raster places of the queries, or of the halos' keys, of tiles in one row of tiles, ``(tiles * t * tokens,)``; what lies
    outside the grid is its nearest token."""
    places = []
    for axis, first in ((0, row), (1, tiles.start)):
        tile, margin, size = tiling.tile[axis], tiling.margin[axis] * halo, tiling.size[axis]
        count = 1 if axis == 0 else tiles.stop - tiles.start
        starts = torch.arange(first, first + count)[:, None] * tile - margin
        places.append((starts + torch.arange(tile + 2 * margin)).clamp(0, size - 1))
    rows, columns = places
    frames = torch.arange(grid.t)[:, None, None] * grid.frame
    return (columns[:, None, None, :] + rows[0][:, None] * tiling.size[1] + frames).flatten()


def _one_head(
    near: list[Tensor], runs: list[tuple[slice, range]], masks: list[Tensor], tiling: Tiling, row: int, tiles: slice,
    place: Tensor,
) -> None:  # fmt: skip
    """q, k and v ``(tiles, t * tokens, D)`` of one head in some tiles of a row, into its part ``(t, h, w, D)`` of the output."""
    frames_of = len(place)
    q, (height, width) = near[0].unflatten(1, (frames_of, -1)), tiling.tile
    top, left, halo = row * height, tiles.start * width, near[1].shape[1] // frames_of
    place = place[:, top : top + height, left : tiles.stop * width]
    for (frames, seen), mask in zip(runs, masks, strict=True):
        # Each of the run's frames sees its keys where they lie: the views overlap.
        first = slice(seen.start, seen.start + frames.stop - frames.start)
        k, v = (x.unfold(1, len(seen) * halo, halo)[:, first].transpose(2, 3) for x in near[1:])
        done = F.scaled_dot_product_attention(q[:, frames], k, v, attn_mask=mask)
        done = done.unflatten(2, tiling.tile).permute(1, 2, 0, 3, 4)[:, : place.shape[1]]  # (t, y, tiles, x, D)
        whole = place.shape[2] // width
        place[frames, :, : whole * width].unflatten(2, (whole, width)).copy_(done[:, :, :whole])
        if place.shape[2] > whole * width:
            place[frames, :, whole * width :].copy_(done[:, :, whole, : place.shape[2] - whole * width])

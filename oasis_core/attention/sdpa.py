"""The three operations on torch's scaled_dot_product_attention; no L x L mask is ever built.

All take q, k, v ``(B, L, N, D)`` in the grid's raster order and return ``(B, L, N, D)`` in their dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .grid import TokenGrid

WINDOW_TILE = {"cpu": (4, 4)}
"""Query tile (rows, columns) of the window operation by type of device. With a (3, 5, 5) window 16 queries share 3 x 8 x 8 =
192 keys, of which each uses 75: dense arithmetic on tiles beats gathering 75 keys a query (CPU and GPU alike). In bf16 on a CPU
a tenth faster than 8 x 8."""
WINDOW_TILE_ELSE = (8, 8)
"""On other devices: 64 queries share 432 keys."""

SMALL_FRAME = 576
"""Tokens up to which a frame is one tile without a halo (training crops): no overlapping views, whose backward is slow."""

WINDOW_KEY_BUDGET = {"cpu": 2 * 2**20}
"""Elements of gathered keys at a time (times the same for values) by type of device: what stays near a CPU's cache."""
WINDOW_KEY_BUDGET_ELSE = 64 * 2**20
"""On other devices: bounds the window operation's memory."""


def global_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every query sees every key."""
    q, k, v = (rearrange(x, "b l n d -> b n l d") for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l n d")


def intra_frame_attention(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid) -> Tensor:
    """Every query sees the keys of its own latent frame: one batched call over frames."""
    q, k, v = (rearrange(x, "b (t s) n d -> (b t) n s d", t=grid.t) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "(b t) n s d -> b (t s) n d", t=grid.t)


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, window: tuple[int, int, int], out: Tensor | None = None
) -> Tensor:
    """Every query sees the sliding (Pt, Ph, Pw) neighbourhood around it, truncated at the borders.

    Queries go in tiles of one frame (``WINDOW_TILE``; a small frame is one tile). A tile's keys and values are its halo, gathered
    by overlapping views of the padded grid; an additive mask, shared by batch, frames and heads, cuts the exact
    neighbourhood out. In time the halo is sliced, not masked: the first and last frames run with fewer keys.

    ``out``: where the output goes, band of tiles after band, which needs less memory; there is no backward pass then.
    """
    tiling = _Tiling.of(grid, window, WINDOW_TILE.get(q.device.type, WINDOW_TILE_ELSE))
    q, k, v = (rearrange(x, "b (t h w) n d -> b t n h w d", t=grid.t, h=grid.h) for x in (q, k, v))
    mask = _tile_mask(tiling, q.dtype, q.device)  # (rows of tiles, tiles in a row, 1, queries, halo)
    budget = WINDOW_KEY_BUDGET.get(q.device.type, WINDOW_KEY_BUDGET_ELSE)
    per_row = tiling.halo_size * tiling.counts[1] * q.shape[0] * q.shape[2] * q.shape[5]
    rows = max(1, budget // (per_row * grid.t))
    bands = []
    place = None if out is None else rearrange(out, "b (t h w) n d -> b t n h w d", t=grid.t, h=grid.h)
    for start in range(0, tiling.counts[0], rows):
        band = slice(start, min(tiling.counts[0], start + rows))
        count = band.stop - band.start
        most = max(1, budget // (per_row * count * window[0]))
        rows_of = None if place is None else place[:, :, :, band.start * tiling.tile[0] : band.stop * tiling.tile[0]]
        done = _band(q, k, v, tiling, window[0], band, mask[band].flatten(0, 1), most, rows_of)
        if rows_of is None:
            assert done is not None
            bands.append(done)
        elif done is not None:
            rows_of.copy_(done[:, :, :, : rows_of.shape[3], : grid.w])
        del done
    if out is not None:
        return out
    whole = (bands[0] if len(bands) == 1 else torch.cat(bands, dim=3))[:, :, :, : grid.h, : grid.w]
    return rearrange(whole, "b t n h w d -> b (t h w) n d")


def window_numbers(grid: TokenGrid, heads: int, head_dim: int, window: tuple[int, int, int]) -> int:
    """Numbers in what ``window_attention`` copies for one clip, at most, off the CPU: halos of keys and values of a band of
    rows, what a call's queries see of both, and the stack that the latter is copied from."""
    tiling = _Tiling.of(grid, window, WINDOW_TILE_ELSE)
    per_row = tiling.halo_size * tiling.counts[1] * heads * head_dim
    rows = min(tiling.counts[0], max(1, WINDOW_KEY_BUDGET_ELSE // (per_row * grid.t)))
    alike = max(1, grid.t - 2 * (window[0] // 2))  # frames that see equally many
    run = max(1, min(alike, WINDOW_KEY_BUDGET_ELSE // (per_row * rows * window[0])))
    copies = 3 * run if run > 1 else 2  # one frame's keys are views: what is left are queries, padding and results
    return per_row * rows * (2 * grid.t + copies * min(window[0], grid.t))


def _band(
    q: Tensor, k: Tensor, v: Tensor, tiling: _Tiling, extent: int, band: slice, mask: Tensor, most: int,
    place: Tensor | None,
) -> Tensor | None:  # fmt: skip
    """The rows of tiles ``band``, of ``(b, t, n, h, w, d)``; ``most``: query frames at a time.

    Where they fill ``place`` without padding, they are written there, and None is given.
    """
    b, length, n = q.shape[:3]
    query = tiling.queries(q, band)
    rows, columns, places = query.shape[3], query.shape[5], None
    if place is not None and place.shape[3:5] == (rows * tiling.tile[0], columns * tiling.tile[1]):
        places = rearrange(place, "b t n (r y) (c x) d -> b t n r y c x d", r=rows, c=columns)
    pattern = "(r c) (b t n) (y x) d -> b t n r y c x d"
    key, value = tiling.halos(k, band), tiling.halos(v, band)
    pieces = []
    for frames, seen in _frame_runs(length, extent, most):
        tiles = rearrange(query[:, frames], "b t n r y c x d -> (r c) (b t n) (y x) d")
        near = [_near(x, seen, tiles.shape[1] // (b * n)) for x in (key, value)]
        out = F.scaled_dot_product_attention(tiles, near[0], near[1], attn_mask=mask.repeat(1, 1, 1, len(seen)))
        del near  # the largest tensors: gone before the next ones are made
        if places is None:
            pieces.append(rearrange(out, "tiles (b t n) s d -> b t n tiles s d", b=b, n=n))
        else:
            places[:, frames].copy_(rearrange(out, pattern, b=b, n=n, r=rows, y=tiling.tile[0]))
    if places is not None:
        return None
    return tiling.frames(pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1))


def _near(x: Tensor, seen: range, run: int) -> Tensor:
    """Keys ``(tiles, B * run * N, frames * halo, D)`` that ``run`` query frames see, of halos ``(B, N, tiles, t, halo, D)``.

    ``seen``: the first one's; for a single frame (and batch) no copy is made.
    """
    if run == 1:
        return rearrange(x[:, :, :, seen.start : seen.stop], "b n tiles p s d -> tiles (b n) (p s) d")
    frames = torch.stack([x[:, :, :, i : i + run] for i in seen], dim=4)  # (b, n, tiles, run, frames seen, halo, d)
    return rearrange(frames, "b n tiles t p s d -> tiles (b t n) (p s) d")


@dataclass(frozen=True)
class _Tiling:
    """How a frame of h x w tokens is cut into query tiles, and what halo each needs; (row, column) pairs."""

    size: tuple[int, int]
    tile: tuple[int, int]
    radius: tuple[int, int]
    margin: tuple[int, int]
    """Tokens of halo on each side; none along an axis that one tile holds."""

    @classmethod
    def of(cls, grid: TokenGrid, window: tuple[int, int, int], most: tuple[int, int]) -> _Tiling:
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


def _frame_runs(length: int, extent: int, most: int) -> Iterator[tuple[slice, range]]:
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
def _tile_mask(tiling: _Tiling, dtype: torch.dtype, device: torch.device) -> Tensor:
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

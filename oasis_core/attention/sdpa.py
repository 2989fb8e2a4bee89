"""The three operations on torch's scaled_dot_product_attention; no L x L mask is ever built.

All take q, k, v ``(B, L, N, D)`` in the grid's raster order and return ``(B, L, N, D)`` in their dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .cpu_window import CPU_TILE
from .grid import TokenGrid
from .window_tiles import Tiling, frame_runs, tile_mask

WINDOW_TILE = {"cpu": CPU_TILE}
"""Query tile (rows, columns) of the window operation by type of device. With a (3, 5, 5) window 16 queries share 3 x 8 x 8 =
192 keys, of which each uses 75: dense arithmetic on tiles beats gathering 75 keys a query (CPU and GPU alike). In bf16 on a CPU
a tenth faster than 8 x 8."""
WINDOW_TILE_ELSE = (8, 8)
"""On other devices: 64 queries share 432 keys."""

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
    tiling = Tiling.of(grid, window, WINDOW_TILE.get(q.device.type, WINDOW_TILE_ELSE))
    q, k, v = (rearrange(x, "b (t h w) n d -> b t n h w d", t=grid.t, h=grid.h) for x in (q, k, v))
    mask = tile_mask(tiling, q.dtype, q.device)  # (rows of tiles, tiles in a row, 1, queries, halo)
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
    tiling = Tiling.of(grid, window, WINDOW_TILE_ELSE)
    per_row = tiling.halo_size * tiling.counts[1] * heads * head_dim
    rows = min(tiling.counts[0], max(1, WINDOW_KEY_BUDGET_ELSE // (per_row * grid.t)))
    alike = max(1, grid.t - 2 * (window[0] // 2))  # frames that see equally many
    run = max(1, min(alike, WINDOW_KEY_BUDGET_ELSE // (per_row * rows * window[0])))
    copies = 3 * run if run > 1 else 2  # one frame's keys are views: what is left are queries, padding and results
    return per_row * rows * (2 * grid.t + copies * min(window[0], grid.t))


def _band(
    q: Tensor, k: Tensor, v: Tensor, tiling: Tiling, extent: int, band: slice, mask: Tensor, most: int,
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
    for frames, seen in frame_runs(length, extent, most):
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

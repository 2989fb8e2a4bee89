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

WINDOW_TILE = (8, 8)
"""Query tile (rows, columns) of the window operation. With a (3, 5, 5) window 64 queries share 3 x 12 x 12 = 432 keys,
of which each uses 75: dense arithmetic on tiles beats gathering 75 keys a query (CPU and GPU alike)."""

WINDOW_KEY_BUDGET = 64 * 2**20
"""Elements of gathered keys at a time (times the same for values): bounds the window operation's memory."""


def global_attention(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid) -> Tensor:
    """Every query sees every key."""
    q, k, v = (rearrange(x, "b l n d -> b n l d") for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l n d")


def intra_frame_attention(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid) -> Tensor:
    """Every query sees the keys of its own latent frame: one batched call over frames."""
    q, k, v = (rearrange(x, "b (t s) n d -> (b t) n s d", t=grid.t) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "(b t) n s d -> b (t s) n d", t=grid.t)


def window_attention(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, window: tuple[int, int, int]) -> Tensor:
    """Every query sees the sliding (Pt, Ph, Pw) neighbourhood around it, truncated at the borders.

    Queries go in tiles of one frame x 8 x 8. A tile's keys and values are its halo, gathered by overlapping views of
    the padded grid; an additive mask, shared by batch, frames and heads, cuts the exact neighbourhood out. In time the
    halo is sliced, not masked: the first and last frames run with fewer keys.
    """
    n = q.shape[2]
    th, tw = min(WINDOW_TILE[0], grid.h), min(WINDOW_TILE[1], grid.w)
    rows, cols = -(-grid.h // th), -(-grid.w // tw)
    extra_h, extra_w = rows * th - grid.h, cols * tw - grid.w
    radius_h, radius_w = window[1] // 2, window[2] // 2

    def padded(x: Tensor, pad: tuple[int, ...]) -> Tensor:
        return F.pad(rearrange(x, "b (t h w) n d -> b t h w n d", t=grid.t, h=grid.h), pad)

    query = padded(q, (0, 0, 0, 0, 0, extra_w, 0, extra_h))
    halo = (0, 0, 0, 0, radius_w, radius_w + extra_w, radius_h, radius_h + extra_h)
    key, value = (
        padded(x, halo).unfold(2, th + window[1] - 1, th).unfold(3, tw + window[2] - 1, tw) for x in (k, v)
    )  # (b, t, r, c, n, d, y, x): views, nothing is copied
    mask = _tile_mask(grid.h, grid.w, window, th, tw, q.dtype, q.device)  # (r c, 1, th tw, halo)

    pieces = []
    for frames, seen in _frame_runs(grid.t, window[0], max(1, WINDOW_KEY_BUDGET // max(1, key[:, 0].numel() * window[0]))):
        tiles = rearrange(query[:, frames], "b t (r y) (c x) n d -> (r c) (b t n) (y x) d", y=th, x=tw)
        kv = [
            rearrange(x[:, seen.start : seen.stop].unfold(1, seen.per_frame, 1), "b t r c n d y x p -> (r c) (b t n) (p y x) d")
            for x in (key, value)
        ]
        out = F.scaled_dot_product_attention(tiles, kv[0], kv[1], attn_mask=mask.repeat(1, 1, 1, seen.per_frame))
        pieces.append(rearrange(out, "(r c) (b t n) (y x) d -> b t (r y) (c x) n d", r=rows, n=n, y=th, b=q.shape[0]))
    whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
    return rearrange(whole[:, :, : grid.h, : grid.w], "b t h w n d -> b (t h w) n d")


@dataclass(frozen=True)
class _SeenFrames:
    """Key frames start..stop of a run of query frames, each of which sees ``per_frame`` consecutive ones."""

    start: int
    stop: int
    per_frame: int


def _frame_runs(length: int, extent: int, most: int) -> Iterator[tuple[slice, _SeenFrames]]:
    """Consecutive query frames that see equally many key frames, at most ``most`` at a time."""
    radius = extent // 2
    start = 0
    while start < length:
        low, high = max(0, start - radius), min(length, start + radius + 1)
        stop = start + 1
        while (
            stop < length
            and stop - start < most
            and max(0, stop - radius) == low + stop - start
            and min(length, stop + radius + 1) == high + stop - start
        ):
            stop += 1
        yield slice(start, stop), _SeenFrames(low, high + stop - start - 1, high - low)
        start = stop


@lru_cache(maxsize=16)
def _tile_mask(
    h: int, w: int, window: tuple[int, int, int], th: int, tw: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Additive mask ``(tiles, 1, th*tw, halo)`` for one key frame: 0 inside the neighbourhood and the grid, else -inf.

    Queries in the padding stand in for the last row or column, so that no row is empty (their output is cut off).
    """
    with torch.inference_mode(False):
        rows = _axis_visible(h, th, window[1], device)
        cols = _axis_visible(w, tw, window[2], device)
        seen = rows[:, None, :, None, :, None] & cols[None, :, None, :, None, :]  # (r, c, y, x, key y, key x)
        seen = seen.flatten(4).flatten(2, 3).flatten(0, 1)
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf")).unsqueeze(1)


def _axis_visible(size: int, tile: int, extent: int, device: torch.device) -> Tensor:
    """Bool ``(tiles, tile, tile + extent - 1)``: does query y of a tile see halo position k, along one axis?"""
    tiles, radius = -(-size // tile), extent // 2
    query = (torch.arange(tiles, device=device)[:, None] * tile + torch.arange(tile, device=device)).clamp(max=size - 1)
    key = torch.arange(tiles, device=device)[:, None] * tile - radius + torch.arange(tile + extent - 1, device=device)
    inside = (key >= 0) & (key < size)
    return ((query[:, :, None] - key[:, None, :]).abs() <= radius) & inside[:, None, :]

"""How the window kernel cuts a grid into tiles of queries, and what halo of keys each tile reads: integers only.

The arithmetic is dense on tile x halo, so the tile decides the cost. A tile of q queries that spans time as well shares its
halo best: with a (3, 5, 5) window and 128 queries, 1x8x16 reads 720 keys, 2x8x8 576 and 3x5x8 540. Tiles need not be powers
of two: their tokens are numbered through, and so are the halo's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .grid import TokenGrid

BITS = 31
"""Places of all axes that one word tells apart; the 32nd bit is for keys that nobody sees."""
LONGEST = (8, 16, 32)
"""Longest sides (t, h, w) of a tile that are tried: beyond them the halo shrinks no more."""
TABLES = 64
"""Tables of bits that are kept while nobody holds them: a few KiB each."""
ALIGN = 16
"""Where a tile's first block of keys may begin: a multiple, so that the table of bits is read in wide loads."""

_Key = tuple["WindowPlan", int, torch.device]
_alive: WeakValueDictionary[_Key, Tensor] = WeakValueDictionary()
_recent: OrderedDict[_Key, Tensor] = OrderedDict()
_held: ContextVar[list[Tensor] | None] = ContextVar("held tables of bits", default=None)


@dataclass(frozen=True)
class Axis:
    """One axis of the plan, in tokens."""

    size: int
    """Of the grid."""
    tile: int
    reach: int
    """To each side of a query."""
    halo: int
    """Keys that a tile reads: ``tile + 2 * reach``, or the whole axis if that is shorter."""

    @classmethod
    def of(cls, size: int, tile: int, extent: int) -> Axis:
        reach = min(extent // 2, size - 1)
        return cls(size, tile, reach, min(size, tile + 2 * reach))

    @property
    def tiles(self) -> int:
        return -(-self.size // self.tile)

    @property
    def whole(self) -> bool:
        """Each tile's halo is the axis; else it begins ``reach`` before the tile, maybe outside the grid."""
        return self.halo == self.size

    @property
    def bits(self) -> int:
        """Places that a mask has to tell apart: none where every query sees the whole axis."""
        return 0 if self.reach >= self.size - 1 else self.halo


@dataclass(frozen=True)
class WindowPlan:
    """Tiles of ``t.tile x h.tile x w.tile`` queries, each with its halo."""

    t: Axis
    h: Axis
    w: Axis

    @property
    def queries(self) -> int:
        """In a tile."""
        return self.t.tile * self.h.tile * self.w.tile

    @property
    def halo(self) -> int:
        """Keys in a halo."""
        return self.t.halo * self.h.halo * self.w.halo

    @property
    def tiles(self) -> int:
        return self.t.tiles * self.h.tiles * self.w.tiles

    @property
    def bits(self) -> int:
        return self.t.bits + self.h.bits + self.w.bits

    def blocks(self, keys: int) -> int:
        """Blocks of ``keys`` keys that all tiles together go through; frames outside the grid are left out."""
        area, count = self.h.halo * self.w.halo, 0
        for start in range(0, self.t.size, self.t.tile):
            origin = 0 if self.t.whole else start - self.t.reach
            first, last = max(origin, 0), min(origin + self.t.halo, self.t.size)
            begin = (first - origin) * area // ALIGN * ALIGN
            count += -(-((last - origin) * area - begin) // keys)
        return count * self.h.tiles * self.w.tiles


@lru_cache(maxsize=256)
def plan_window(grid: TokenGrid, window: tuple[int, int, int], queries: int, keys: int) -> WindowPlan:
    """The plan with the fewest blocks of ``queries x keys`` scores; a mask of more than ``BITS`` places counts double."""

    def cost(plan: WindowPlan) -> tuple[int, int]:
        return plan.blocks(keys) * (1 if plan.bits <= BITS else 2), plan.tiles

    return min(_plans(grid, window, queries), key=cost)


def _plans(grid: TokenGrid, window: tuple[int, int, int], queries: int) -> Iterator[WindowPlan]:
    """Every plan whose tile holds at most that many queries, and is as wide as it may be for its frames and rows."""
    longest = [min(size, side) for size, side in zip((grid.t, grid.h, grid.w), LONGEST, strict=True)]
    for t in range(1, min(longest[0], queries) + 1):
        for h in range(1, min(longest[1], queries // t) + 1):
            w = min(longest[2], queries // (t * h))
            w = -(-grid.w // -(-grid.w // w))  # no wider than as many tiles need
            sides = zip((grid.t, grid.h, grid.w), (t, h, w), window, strict=True)
            yield WindowPlan(*(Axis.of(*side) for side in sides))


def key_bits(plan: WindowPlan, keys: int, device: torch.device) -> Tensor:
    """For each key of a halo one set bit an axis, its place there: int32 ``(halo + padding,)``; padding has bit 31 alone.

    A query's word has the bits that it may not see, so a key is seen where the two have none in common. The same tensor as long
    as anyone holds it; the last ``TABLES`` in any case.
    """
    key = plan, keys, device
    table = _alive.get(key)
    if table is None:
        table = _alive[key] = _key_bits(plan, keys, device)
    _recent.pop(key, None)
    _recent[key] = table  # as the newest
    while len(_recent) > TABLES:
        _recent.popitem(last=False)
    held = _held.get()
    if held is not None:
        held.append(table)
    return table


@contextmanager
def held_tables() -> Iterator[list[Tensor]]:
    """What ``key_bits`` gives in the block, for who will use it without asking again (a CUDA graph)."""
    held: list[Tensor] = []
    token = _held.set(held)
    try:
        yield held
    finally:
        _held.reset(token)


def _key_bits(plan: WindowPlan, keys: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        index = torch.arange(plan.halo + keys + ALIGN, dtype=torch.int64)
        area = plan.h.halo * plan.w.halo
        places = index // area, index % area // plan.w.halo, index % plan.w.halo
        bits, offset = torch.zeros_like(index), 0
        for axis, place in zip((plan.t, plan.h, plan.w), places, strict=True):
            if axis.bits:
                bits |= torch.ones_like(index) << (offset + place).clamp(max=BITS)
                offset += axis.bits
        bits[plan.halo :] = -(2**31)
        return bits.to(torch.int32).to(device)

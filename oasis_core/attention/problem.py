"""What attention is asked for: the operation, the sizes, where. A backend says of a problem whether it can run it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..routing.extent import Extent
from .grid import TokenGrid

EVERYTHING = Extent(None, None, None)
OWN_FRAME = Extent(1, None, None)


class Operation(Enum):
    """The three kinds of code that extents need."""

    GLOBAL = "global"
    """Every query sees every key; there may be fewer queries than keys."""
    INTRA_FRAME = "intra-frame"
    """Every query sees the keys of its own frame."""
    WINDOW = "window"
    """Every query sees a neighbourhood, truncated at the borders."""


@dataclass(frozen=True)
class Problem:
    """Attention of some heads of one layer."""

    grid: TokenGrid
    extent: Extent
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    trained: bool = False
    """A backward pass will follow."""

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, extent: Extent) -> Problem:
        trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        return cls(grid, extent, q.shape[2], q.shape[3], q.dtype, q.device, trained)

    @property
    def operation(self) -> Operation:
        if self.extent == EVERYTHING:
            return Operation.GLOBAL
        return Operation.INTRA_FRAME if self.extent == OWN_FRAME else Operation.WINDOW

    @property
    def window(self) -> tuple[int, int, int]:
        """The extent in numbers: an axis that is seen whole is one that reaches from border to border."""
        sizes = (self.grid.t, self.grid.h, self.grid.w)
        t, h, w = (2 * s - 1 if e is None else e for e, s in zip(self.extent.axes, sizes, strict=True))
        return t, h, w

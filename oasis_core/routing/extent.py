"""A head's neighbourhood in general: how far a query sees along frames, token rows and token columns. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

ALL = "all"
EXAMPLES = "3x7x7 (frames x token rows x token columns), 3xallxall or allx3x3"


@dataclass(frozen=True)
class Extent:
    """What a query sees: along each axis ``extent // 2`` tokens to each side, truncated at the borders; None: all.

    The paper's three patterns are presets: ``(None, None, None)`` global, ``(1, None, None)`` intra-frame, ``(3, 5, 5)``
    window. Others: ``(3, None, None)`` own frame and its neighbours, ``(None, 3, 3)`` a column through time.

    Raises:
        ValueError: an extent that is even or below 1.
    """

    t: int | None
    h: int | None
    w: int | None

    def __post_init__(self) -> None:
        if any(e is not None and (type(e) is not int or e < 1 or e % 2 == 0) for e in self.axes):
            raise ValueError(f"head extent is {self}; each side must be an odd whole number or {ALL}: {EXAMPLES}")

    @property
    def axes(self) -> tuple[int | None, int | None, int | None]:
        return self.t, self.h, self.w

    def __str__(self) -> str:
        return "x".join(ALL if e is None else str(e) for e in self.axes)

    @classmethod
    def parse(cls, text: str) -> Extent:
        """What ``str`` gave. Raises ValueError, one line, for anything else."""
        words = text.strip().lower().split("x")
        if len(words) != 3 or any(not w.isascii() or not (w == ALL or (w.isdigit() and len(w) < 6)) for w in words):
            raise ValueError(f"head extent is {text[:40]!r}; give three odd whole numbers or {ALL}: {EXAMPLES}")
        return cls(*(None if w == ALL else int(w) for w in words))

    def reach(self, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
        """Tokens seen to each side on a grid of those sides; never more than there are."""
        t, h, w = (s - 1 if e is None else min(e // 2, s - 1) for e, s in zip(self.axes, sizes, strict=True))
        return t, h, w

    def pairs(self, sizes: tuple[int, int, int]) -> int:
        """Pairs of a query and a key that it sees, on a grid of those sides: the arithmetic that the head costs."""
        count = 1
        for size, reach in zip(sizes, self.reach(sizes), strict=True):
            count *= size * (2 * reach + 1) - reach * (reach + 1)  # what the two borders cut off
        return count

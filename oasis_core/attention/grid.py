"""The grid on which tokens lie."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenGrid:
    """Tokens of one chunk: ``t`` latent frames of ``h`` rows x ``w`` columns, numbered in raster order (t, h, w)."""

    t: int
    h: int
    w: int

    def __post_init__(self) -> None:
        if min(self.t, self.h, self.w) < 1:
            raise ValueError(f"token grid is {self.t}x{self.h}x{self.w}; every side must be at least 1")

    @property
    def frame(self) -> int:
        """Tokens in one latent frame."""
        return self.h * self.w

    @property
    def length(self) -> int:
        """All tokens, L."""
        return self.t * self.h * self.w

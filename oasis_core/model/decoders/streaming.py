"""What a stream of latent frames leaves behind in a decoder, and how much is decoded at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from ...plan import Span

COARSE = 4
"""Output pixels per side of a position at the cut between what runs on whole frames and what may run in tiles."""
REACH = 6
"""Positions at the cut that the convolutions after it look to each side: (7 + 1 + 12 + 2) / 4 pixels (head and last stage,
its upsampling, the stage before, its upsampling)."""
LATER = (1, 0, 0)
"""Last numbers of a plan's text, of which older jobs know none, or the first alone."""


@dataclass
class Held:
    """Tensors that wait for their next turn, by number: where they are used, or elsewhere."""

    inputs: dict[int, Tensor] = field(default_factory=dict)
    beds: dict[int, Tensor] = field(default_factory=dict)
    """Where tensors from a CUDA device wait on the host: pinned, and used again, since gigabytes of new memory cost seconds."""

    def put(self, number: int, x: Tensor, device: torch.device) -> None:
        """Queued behind a CUDA device's work, without a wait. Only what is taken back there may be read."""
        self.inputs[number] = moved(x, device, self.beds, number)

    def take(self, number: int, device: torch.device) -> Tensor:
        return moved(self.inputs.pop(number), device, self.beds, number)

    def move(self, device: torch.device) -> None:
        """All, there or back."""
        for number, x in self.inputs.items():
            self.inputs[number] = moved(x, device, self.beds, number)


def moved(x: Tensor, device: torch.device, beds: dict[int, Tensor], number: int) -> Tensor:
    """``x`` on ``device``; on the host in its bed."""
    if not (x.is_cuda and device.type == "cpu"):
        return x.to(device, non_blocking=device.type == "cuda")
    bed = beds.get(number)
    if bed is None or (bed.shape, bed.dtype) != (x.shape, x.dtype):
        bed = beds[number] = _bed(x)
    return bed.copy_(x, non_blocking=True)


def _bed(x: Tensor) -> Tensor:
    """Host memory of ``x``'s shape; pinned where the system gives that much."""
    try:
        return torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    except RuntimeError:
        return torch.empty(x.shape, dtype=x.dtype)


@dataclass
class Past(Held):
    """The last inputs ``(B, 2, H, W, C)`` of the convolutions in time, by their number."""

    first: bool = True
    """Nothing has been decoded: the next frame is the stream's first."""


@dataclass
class DecoderState:
    """What a stream leaves behind; begin with a new one, hand it to every call."""

    whole: Past = field(default_factory=Past)
    tiles: dict[tuple[Span, Span], Past] = field(default_factory=dict)
    waiting: dict[tuple[Span, Span], Held] = field(default_factory=dict)
    """What waits at the cut for its tile's turn, in the order of time."""


@dataclass(frozen=True)
class DecodePlan:
    """How much is worked on at a time; the result does not depend on it (tiles of a full halo are exact).

    Raises:
        ValueError: a number below its range.
    """

    tile: int = 0
    """Largest tile side in output pixels, rounded up to a multiple of 4; as many tiles are as large as each other. 0: whole
    frames."""
    halo: int = REACH * COARSE
    """Output pixels around a tile that are decoded with it and cut off; 24 make it exact."""
    frames: int = 0
    """Output frames that the large stages take at a time; 0: all that came in."""
    keep_on: torch.device | None = None
    """Where the past waits for its next turn, such as the host's memory; None: where it is used."""
    latents: int = 1
    """Latent frames that are worked on at a time, but for a stream's first."""
    turn: int = 0
    """Latent frames that a stream hands in at a time, of which each tile takes all before the next tile's turn, so that a past
    that waits elsewhere comes and goes once in so many; what they are at the cut waits with it. 0: as many as ``latents``."""
    resident: int = 0
    """Tiles, from the first on, whose past stays where it is used, whatever ``keep_on`` says."""

    def __post_init__(self) -> None:
        for name in ("tile", "halo", "frames", "turn", "resident"):
            if getattr(self, name) < 0:
                raise ValueError(f"decoder {name} is {getattr(self, name)}; it must be 0 or more")
        if self.latents < 1:
            raise ValueError(f"decoder latents is {self.latents}; it must be 1 or more")

    def spans(self, size: int) -> list[Span]:
        """A side of ``size`` positions at the cut in tiles without overlap: as few as can be, of equal size but for one."""
        many = -(-size // (-(-self.tile // COARSE) or size))
        cuts = [-(-i * size // many) for i in range(many + 1)]
        return [Span(a, b) for a, b in pairwise(cuts)]

    def to_text(self) -> str:
        """Short; ``of_text`` reads it back."""
        place = "" if self.keep_on is None else self.keep_on
        return ",".join(map(str, (self.tile, self.halo, self.frames, place, self.latents, self.turn, self.resident)))

    @classmethod
    def of_text(cls, text: str) -> DecodePlan:
        """Raises ValueError, one line, for what ``to_text`` did not write."""
        try:
            tile, halo, frames, place, *more = text.split(",")
            if len(more) > len(LATER):
                raise ValueError(f"{len(more)} numbers after the place")
            numbers = (*map(int, more), *LATER[len(more) :])
            return cls(int(tile), int(halo), int(frames), torch.device(place) if place else None, *numbers)
        except (ValueError, RuntimeError):
            raise ValueError(f"decoder's plan is {text[:40]!r}; expected such as '1024,24,2,cpu,1,0,0'") from None

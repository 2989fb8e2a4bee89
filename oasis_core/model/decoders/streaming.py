"""What a stream of latent frames leaves behind in a decoder, and how much is decoded at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...plan import Span

COARSE = 4
"""Output pixels per side of a position at the cut between what runs on whole frames and what may run in tiles."""
REACH = 6
"""Positions at the cut that the convolutions after it look to each side: (7 + 1 + 12 + 2) / 4 pixels (head and last stage,
its upsampling, the stage before, its upsampling)."""


@dataclass
class Past:
    """The last inputs ``(B, 2, H, W, C)`` of the convolutions in time, by their number."""

    first: bool = True
    """Nothing has been decoded: the next frame is the stream's first."""
    inputs: dict[int, Tensor] = field(default_factory=dict)
    beds: dict[int, Tensor] = field(default_factory=dict)
    """Where inputs from a CUDA device wait on the host: pinned, and used again, since gigabytes of new memory cost seconds."""

    def move(self, device: torch.device) -> None:
        """There and back: queued behind a CUDA device's work, without a wait. Only what is moved back may be read."""
        self.inputs = {number: self._moved(number, x, device) for number, x in self.inputs.items()}

    def _moved(self, number: int, x: Tensor, device: torch.device) -> Tensor:
        if not (x.is_cuda and device.type == "cpu"):
            return x.to(device, non_blocking=device.type == "cuda")
        bed = self.beds.get(number)
        if bed is None or (bed.shape, bed.dtype) != (x.shape, x.dtype):
            bed = self.beds[number] = _bed(x)
        return bed.copy_(x, non_blocking=True)


def _bed(x: Tensor) -> Tensor:
    """Host memory of ``x``'s shape; pinned where the system gives that much."""
    try:
        return torch.empty_like(x, device="cpu", pin_memory=True)
    except RuntimeError:
        return torch.empty_like(x, device="cpu")


@dataclass
class DecoderState:
    """What a stream leaves behind; begin with a new one, hand it to every call."""

    whole: Past = field(default_factory=Past)
    tiles: dict[tuple[Span, Span], Past] = field(default_factory=dict)


@dataclass(frozen=True)
class DecodePlan:
    """How much is worked on at a time; the result does not depend on it (tiles of a full halo are exact).

    Raises:
        ValueError: a number below its range.
    """

    tile: int = 0
    """Tile side in output pixels, rounded up to a multiple of 4; 0: whole frames."""
    halo: int = REACH * COARSE
    """Output pixels around a tile that are decoded with it and cut off; 24 make it exact."""
    frames: int = 0
    """Output frames that the large stages take at a time; 0: all that came in."""
    keep_on: torch.device | None = None
    """Where the past waits for its next turn, such as the host's memory; None: where it is used."""
    latents: int = 1
    """Latent frames that a stream hands in at a time, but for its first."""

    def __post_init__(self) -> None:
        for name in ("tile", "halo", "frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"decoder {name} is {getattr(self, name)}; it must be 0 or more")
        if self.latents < 1:
            raise ValueError(f"decoder latents is {self.latents}; it must be 1 or more")

    def to_text(self) -> str:
        """Short; ``of_text`` reads it back."""
        place = "" if self.keep_on is None else self.keep_on
        return ",".join(map(str, (self.tile, self.halo, self.frames, place, self.latents)))

    @classmethod
    def of_text(cls, text: str) -> DecodePlan:
        """Raises ValueError, one line, for what ``to_text`` did not write."""
        try:
            tile, halo, frames, place, *latents = text.split(",")  # older jobs know nothing of the last one
            (latent,) = latents or ("1",)
            return cls(int(tile), int(halo), int(frames), torch.device(place) if place else None, int(latent))
        except (ValueError, RuntimeError):
            raise ValueError(f"decoder's plan is {text[:40]!r}; expected such as '1024,24,2,cpu,1'") from None

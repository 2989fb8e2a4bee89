"""Where the time of a job on several workers goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Spent:
    """Where a worker's time for a segment went, in seconds."""

    idle: float | None = None
    """Of the model before its turn, since it left the segment before; None: it was the first."""
    model: float = 0.0
    """The model's turn; where the encoder is slower, it waits for it in there."""
    after: float = 0.0
    """From then on until the file was complete: the model is at other segments meanwhile."""


@dataclass(frozen=True)
class Times:
    """Of one input, in seconds."""

    loading: float
    """From the job's begin to the first order: Ray, models, their rehearsal; beside it the input was read ahead."""
    making: float
    """From there until the last segment was kept."""
    joining: float
    """From there to the end."""
    segments: tuple[Spent, ...] = ()

    def of_a_segment(self) -> dict[str, float]:
        """Means over all segments: the model's idle time before it, its turn, the encoder's time after it."""
        idle = [s.idle for s in self.segments if s.idle is not None]
        return {
            "idle": _mean(idle), "model": _mean([s.model for s in self.segments]),
            "after": _mean([s.after for s in self.segments]),
        }  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return round(fmean(values), 3) if values else 0.0

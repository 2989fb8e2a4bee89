"""How far a job is, told between finished frames too: the transformer takes a whole chunk before the first one."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, "int | None"], None]
"""Called with the frames done (a fraction of one counts what the transformer did ahead) and, where known, the frames in all."""
Poll = Callable[[], None]
"""Called before every block and every call of the decoder; what it raises ends the work."""

TRANSFORMER_SHARE = 0.7
"""Of a frame's work; the rest is decoding. Measured at 720p: 0.75 on a CPU, 0.6 on a GPU."""


class Tally:
    """Counts finished frames, and the transformer's blocks in frames' worth; reports what never falls."""

    def __init__(self, report: Progress | None, total: int | None, done: int = 0) -> None:
        """``done``: frames that are finished already."""
        self._report, self._total, self._done = report, total, done
        self._ahead = float(done)
        """Frames' worth of the transformer's work."""
        self._told = -1.0

    def block(self, frames: float) -> None:
        """The transformer begins a block that is ``frames`` frames' worth of its work."""
        self._tell()
        self._ahead += frames

    def finished(self, frames: int) -> None:
        """So many more frames are finished."""
        self._done += frames
        self._ahead = max(self._ahead, self._done)
        self._tell()

    def _tell(self) -> None:
        if self._report is None:
            return
        ahead = 0.0 if self._total is None else max(0.0, min(self._ahead, self._total) - self._done)
        now = self._done + TRANSFORMER_SHARE * ahead
        if now > self._told:
            self._told = now
            self._report(now, self._total)


def about(seconds: float) -> str:
    """A time in words."""
    minutes = seconds / 60
    if minutes >= 120:
        return f"about {minutes // 60:.0f} hours {minutes % 60:.0f} minutes"
    if minutes >= 2:
        return f"about {minutes:.0f} minutes"
    return f"about {seconds:.0f} seconds" if seconds >= 1.5 else "about a second"

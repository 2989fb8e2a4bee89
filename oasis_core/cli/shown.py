"""Progress on standard error: a bar where it is a terminal, elsewhere a plain line now and then, for logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from ..progress import about

STEP = 0.1
"""Of the whole, at which a line is due."""
LEAST, MOST = 10.0, 30.0
"""Seconds between two lines: at least, so that short jobs leave none; at most, whatever was done."""


class Bar:
    """Drawn anew in its place."""

    def __init__(self, total: int | None, unit: str) -> None:
        self._bar = tqdm(total=total, unit=unit)
        self._told = False

    def advance(self, done: float, total: int | None) -> None:
        """As ``progress.Progress``."""
        if not self._told:  # the time left is told by what is made from now on
            self._bar.reset(total)
            self._bar.initial, self._told = int(done), True
        self._bar.total = total
        self._bar.n = round(done, 1)  # else it is printed with all its digits
        self._bar.update(0)

    def note(self, text: str) -> None:
        """Something beside it."""
        self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        self._bar.close()


class Lines:
    """One at each tenth or after half a minute. No control characters."""

    def __init__(self, unit: str, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._unit, self._write, self._clock = unit, write, clock
        self._begun: tuple[float, float] | None = None
        """Time and frames when it was first told."""
        self._last: tuple[float, float] = (0.0, 0.0)
        """Of the last line."""

    def advance(self, done: float, total: int | None) -> None:
        """As ``progress.Progress``."""
        now = self._clock()
        if self._begun is None:
            self._begun = self._last = now, done
        passed, step = now - self._last[0], STEP * total if total else float("inf")
        if passed < LEAST or done <= self._last[1] or (total is not None and done >= total):
            return
        if passed >= MOST or done // step > self._last[1] // step:
            self._last = now, done
            self._write(self._line(now, done, total))

    def _line(self, now: float, done: float, total: int | None) -> str:
        assert self._begun is not None
        rate = (done - self._begun[1]) / max(now - self._begun[0], 1e-9)
        pace = f"{rate:.2f} {self._unit}s per second"
        if total is None:
            return f"{int(done)} {self._unit}s, {pace}"
        left = about((total - done) / max(rate, 1e-9))
        return f"{int(done)} of {total} {self._unit}s ({done / total:.0%}), {pace}, {left} left"

    def note(self, text: str) -> None:
        """Not told."""

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def shown(total: int | None, unit: str = "frame") -> Iterator[Bar | Lines]:
    """What fits standard error."""
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    how = Bar(total, unit) if on_terminal else Lines(unit, _to_stderr)
    try:
        yield how
    finally:
        how.close()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

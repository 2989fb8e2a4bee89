"""What ``decoder_speed.py`` measures: one line each for the table and the JSON."""

from __future__ import annotations

from collections.abc import Callable

import clock
import torch
from full_size import Device

ON = Device(torch.device("cuda"), torch.bfloat16)
ROWS: list[tuple[str, str]] = []
FIGURES: dict[str, object] = {}


def note(name: str, value: object, text: str) -> None:
    """One line of the table and the JSON."""
    ROWS.append((name, text))
    FIGURES[name] = value
    print(f"  {name}: {text}", flush=True)


def milliseconds(work: Callable[[], object], rounds: int = 5) -> float:
    return clock.milliseconds(work, ON.device, rounds)


def attempt(name: str, work: Callable[[], object], flop: float, wrong: Callable[[], float] | None = None) -> None:
    """Time it, or say why not."""
    try:
        error = "" if wrong is None else f", error {wrong():.4f}"
        ms = milliseconds(work)
        note(name, ms, f"{ms:.3f} ms, {flop / ms / 1e9:.0f} TFLOP/s{error}")
    except Exception as e:  # a candidate that does not build is a result
        note(
            name, None, f"failed: {type(e).__name__} {str(e).strip().splitlines()[-1][:120] if str(e).strip() else ''}"
        )

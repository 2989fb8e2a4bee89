"""Memory that the C library keeps after tensors on the CPU are freed."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


def trim_heap() -> bool:
    """Give it back to the system; False where the C library has no such call (all but glibc).

    glibc keeps freed blocks in a heap for each thread. A server that runs many jobs grew by 8 % in 20 of them, by 1 % with
    this (``tests/comfy/test_endurance.py``).
    """
    trim = _malloc_trim()
    return trim is not None and bool(trim(0) in (0, 1))


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

"""Memory that the C library keeps after tensors on the CPU are freed."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

M_ARENA_MAX, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -8, -1, -3, -2, -4
"""glibc's ``mallopt`` parameters (``malloc.h``)."""
HEAPS = 2
LARGEST_IN_HEAP = 32 << 20
"""Bytes: where glibc's own moving threshold ends; blocks above it never lie in a heap. A free end of twice that goes back."""
MAPPINGS, TOP_PAD = 65536, 128 << 10
"""glibc's own limits: blocks mapped at a time, bytes that a heap grows by beyond what is asked for."""
PROBE = 100_000
"""Bytes: large enough that freeing it looks at the heap's end, too small for a mapping of its own."""

_counting = threading.Lock()
_keepers = 0
"""Who wants freed memory kept now, ``keep_freed`` and every ``reused`` that lasts."""


@cache
def share_heaps() -> bool:
    """Let threads that begin from now on share ``HEAPS`` heaps; False where the C library has no such call (all but glibc).

    glibc gives each thread a heap of its own, up to eight for each core, and ``malloc_trim`` leaves the free end of all but the
    first as it is. Jobs begin threads of their own (reader, writer, codecs): with every run others of the heaps kept what
    the run had needed, in a ComfyUI server 40 MiB within 7 runs on small clips, and none with one heap. Heaps that are in use
    already stay. ``$MALLOC_ARENA_MAX`` is honoured.
    """
    libc = _libc()
    if libc is None or not hasattr(libc, "mallopt") or "MALLOC_ARENA_MAX" in os.environ:
        return False
    return bool(libc.mallopt(M_ARENA_MAX, HEAPS))


def trim_heap() -> bool:
    """Give it back to the system; False where the C library has no such call (all but glibc).

    Of the calling thread's heap the free end too, which ``malloc_trim`` leaves: a block is freed while the end may be of no
    size. A server that runs many jobs grew by 8 % in 20 of them without this and ``share_heaps``
    (``tests/comfy/test_endurance.py``).
    """
    libc = _libc()
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        return False
    libc.mallopt(M_TRIM_THRESHOLD, 0)
    libc.free(libc.malloc(PROBE))
    # Setting one threshold stops both from moving: they are put where they end.
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST_IN_HEAP)
    libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_IN_HEAP)
    return bool(libc.malloc_trim(0) in (0, 1))


def keep_freed() -> bool:
    """Keep what is freed for the next tensor, from now on and for good: for processes that make the same large tensors again.

    glibc maps large blocks anew each time, and every page of them faults: 220,000 times for a batch of training data, 24,000
    with this. False where the C library has no such call (all but glibc).
    """
    global _keepers
    libc = _libc()
    if libc is None or not hasattr(libc, "mallopt"):
        return False
    with _counting:
        done = all(
            (
                libc.mallopt(M_MMAP_MAX, 0),
                libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1),
                libc.mallopt(M_TOP_PAD, 4 * LARGEST_IN_HEAP),
            )
        )
        _keepers += done
    return done


@contextmanager
def reused() -> Iterator[None]:
    """Keep what is freed for the next tensor while this lasts, and give it back when the last that overlap ends; with glibc
    alone.

    Mapped anew, each page of a large tensor faults: that was a fifth of the decoder's time on a CPU (docs/cpu_speed.md); beside
    a GPU frames are read and written so.
    """
    global _keepers
    if not keep_freed():
        yield
        return
    try:
        yield
    finally:
        with _counting:
            _keepers -= 1
            if not _keepers:
                libc = _libc()
                libc.mallopt(M_MMAP_MAX, MAPPINGS)
                libc.mallopt(M_TOP_PAD, TOP_PAD)
                trim_heap()


@cache
def _libc() -> Any:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc

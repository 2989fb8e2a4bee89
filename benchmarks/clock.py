"""The one clock of the benchmarks.

Seconds of the cores on a CPU, which others may use too; of the wall elsewhere, once the device is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

GIB = 2**30
WARM = 2
"""Turns before the first that counts, on a device; a CPU gets one."""


def now(device: torch.device) -> float:
    """Seconds, once the device has done its work."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def milliseconds(work: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """The median of ``rounds``; on CUDA between two events: launching the work counts only where that is what takes time."""
    times = []
    for _ in range(rounds + (1 if device.type == "cpu" else WARM)):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            began = now(device)
            work()
            times.append((now(device) - began) * 1000)
    return sorted(times[-rounds:])[rounds // 2]


def with_peak(work: Callable[[], object], device: torch.device, rounds: int) -> dict[str, float | None]:
    """``ms`` as a user waits (copies and launches included), the median of ``rounds`` after others, and ``peak_gib`` of CUDA
    memory."""
    times = []
    for turn in range(rounds + (1 if device.type == "cpu" else WARM)):
        if device.type == "cuda":
            torch.cuda.empty_cache() if turn == 0 else None
            torch.cuda.reset_peak_memory_stats(device)
        began = now(device)
        work()
        times.append(now(device) - began)
    peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
    return {"ms": sorted(times[-rounds:])[rounds // 2] * 1000, "peak_gib": peak}

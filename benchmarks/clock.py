"""Seconds for benchmarks: of the cores on a CPU, which others may use too; of the wall elsewhere, once the device is done."""

from __future__ import annotations

import time

import torch


def now(device: torch.device) -> float:
    """Seconds, once the device has done its work."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

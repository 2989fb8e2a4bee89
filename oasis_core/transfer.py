"""Copies between the host and a CUDA device that wait for none of the work that the device was given before."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """The same on ``device``. Copies from other than pinned memory would wait for all work that a CUDA device was given."""
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def fetched(x: Tensor) -> Callable[[], Tensor]:
    """Begin to copy ``x`` to the host; what is given waits until it is there, and for no work that comes later."""
    if not x.is_cuda:
        host = x.cpu()
        return lambda: host
    host, there = x.to("cpu", non_blocking=True), torch.cuda.Event()  # into pinned memory
    there.record(torch.cuda.current_stream(x.device))

    def wait() -> Tensor:
        there.synchronize()
        return host

    return wait

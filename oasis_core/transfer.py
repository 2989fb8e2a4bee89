"""Copies between the host and a CUDA device that wait for none of the work that the device was given before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """The same on ``device``. Copies from other than pinned memory would wait for all work that a CUDA device was given."""
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def sent_together(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """The parts, of one shape but for the first dimension and along it, on ``device``; put together in pinned memory."""
    if len(parts) == 1 or device.type != "cuda" or parts[0].is_cuda:
        return sent(parts[0] if len(parts) == 1 else torch.cat(list(parts)), device)
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    host = torch.empty(shape, dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(list(parts), out=host).to(device, non_blocking=True)


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

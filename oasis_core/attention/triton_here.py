"""Whether Triton's kernels run on a device: asked before any is launched, since a launch that fails cannot be taken back."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

from .backend import in_a_line, installed, needs_nvidia

log = logging.getLogger(__name__)

OLDEST = (8, 0)
"""Compute capability from which our kernels compile: asynchronous copies, bf16."""


def needs_triton(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run there and what helps, one line; None where they can."""
    if why := needs_nvidia(device):
        return why
    if torch.cuda.get_device_capability(device) < OLDEST:
        return "it needs an Ampere GPU or newer"
    if not installed("triton"):
        return "pip install triton (Windows: triton-windows), or choose sdpa or auto"
    return cannot_start()


@lru_cache(maxsize=1)
def cannot_start() -> str | None:
    """Triton builds its launchers with a C compiler and Python's headers, which small images lack: it is started to know."""
    try:
        from triton.runtime import driver

        driver.active.get_current_device()
    except Exception as e:  # of the import, of the compiler, of the driver
        why = f"Triton does not start ({in_a_line(e)}); it needs a C compiler and Python's headers; or choose sdpa or auto"
        log.warning("%s", why)
        return why
    return None

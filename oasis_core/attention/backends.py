"""Which code runs the three operations. Each backend has one predicate, and is exact against ``reference.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import sdpa
from .grid import TokenGrid

Whole = Callable[[Tensor, Tensor, Tensor, TokenGrid], Tensor]
Window = Callable[[Tensor, Tensor, Tensor, TokenGrid, tuple[int, int, int]], Tensor]


@dataclass(frozen=True)
class Backend:
    """The operations on q, k, v ``(B, L, N, D)`` in raster order, out ``(B, L, N, D)`` in their dtype."""

    name: str
    everywhere: Whole
    """Every query sees every key; there may be fewer queries than keys."""
    intra_frame: Whole
    window: Window
    missing: Callable[[torch.device], str | None]
    """Why it cannot run on a device and what helps, one line; None where it can."""


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention 4 (package flash-attn-4) on ``(B, L, N, D)``."""
    from flash_attn.cute import flash_attn_func  # type: ignore[import-not-found]

    out = flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out


def _flash_everywhere(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid) -> Tensor:
    return _flash(q, k, v)


def _flash_intra_frame(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid) -> Tensor:
    b, n, d = q.shape[0], *q.shape[2:]
    out = _flash(*(x.reshape(b * grid.t, grid.frame, n, d) for x in (q, k, v)))
    return out.reshape(b, grid.length, n, d)


def _with_cudnn(function: Whole) -> Whole:
    def run(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return function(q, k, v, grid)

    return run


def _triton_window(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, window: tuple[int, int, int]) -> Tensor:
    from .triton_window import window_attention  # Triton may be missing

    return window_attention(q, k, v, grid, window)[0]


def _needs_cuda(device: torch.device) -> str | None:
    return (
        None if device.type == "cuda" else f"it needs an NVIDIA GPU and the model is on {device}; choose sdpa or auto"
    )


def _needs_cudnn(device: torch.device) -> str | None:
    if why := _needs_cuda(device):
        return why
    return None if torch.backends.cudnn.is_available() else "this torch has no cuDNN; choose sdpa or auto"


def _needs_flash(device: torch.device) -> str | None:
    if why := _needs_cuda(device):
        return why
    return None if _installed("flash_attn.cute") else "pip install flash-attn-4 (Linux), or choose sdpa or auto"


def _needs_triton(device: torch.device) -> str | None:
    if why := _needs_cuda(device):
        return why
    return None if _installed("triton") else "pip install triton (Windows: triton-windows), or choose sdpa or auto"


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


SDPA = Backend("sdpa", sdpa.global_attention, sdpa.intra_frame_attention, sdpa.window_attention, lambda device: None)
BACKENDS = {
    backend.name: backend
    for backend in (
        SDPA,
        Backend(
            "cudnn", _with_cudnn(sdpa.global_attention), _with_cudnn(sdpa.intra_frame_attention),
            sdpa.window_attention, _needs_cudnn,
        ),
        Backend("flash-attn", _flash_everywhere, _flash_intra_frame, sdpa.window_attention, _needs_flash),
        Backend("triton", sdpa.global_attention, sdpa.intra_frame_attention, _triton_window, _needs_triton),
    )
}  # fmt: skip
"""By the name that users give."""
NAMES = ("auto", *BACKENDS)
"""auto: torch's own choice among its kernels (``sdpa``): the others are not measured yet on the model that ships."""


def backend_for(name: str, device: torch.device) -> Backend:
    """The backend of that name. Raises ValueError, one line, where there is none or it cannot run on ``device``."""
    if name == "auto":
        return SDPA
    if name not in BACKENDS:
        raise ValueError(f"attention is {name!r}; allowed: {', '.join(NAMES)}")
    if why := BACKENDS[name].missing(device):
        raise ValueError(f"attention {name} cannot be used: {why}")
    return BACKENDS[name]

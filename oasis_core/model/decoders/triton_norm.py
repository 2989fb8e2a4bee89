"""RMS norm and SiLU as one Triton kernel, which writes where the next convolution reads: one read and one write.

Runs in Triton's interpreter too (``TRITON_INTERPRET=1``), slowly: that is how it is tested without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Positions that a program takes."""


@triton.jit
def _norm_silu_kernel(  # type: ignore[no-untyped-def]
    x_ptr, gamma_ptr, out_ptr, rows, tiny, C: tl.constexpr, CP: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Grid: (blocks of ROWS positions,). C channels, padded to CP."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, CP)
    inside = (row[:, None] < rows) & (c[None, :] < C)
    at = row[:, None] * C + c[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    y = x * (1.0 / tl.sqrt(tl.sum(x * x, 1) / C + tiny))[:, None] * gamma[None, :]
    y = y / (1.0 + tl.exp(-y))
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def norm_silu(x: Tensor, gamma: Tensor, out: Tensor, tiny: float) -> None:
    """``silu(rms_norm(x) * gamma)`` into ``out``: both ``(..., C)`` of one shape, contiguous; gamma ``(C,)``. No backward pass.

    Raises:
        ValueError: tensors that are not so.
    """
    channels = x.shape[-1]
    if x.shape != out.shape or not (x.is_contiguous() and out.is_contiguous()) or gamma.shape != (channels,):
        raise ValueError(
            f"x is {tuple(x.shape)} {x.stride()}, out {tuple(out.shape)} {out.stride()}; they must be alike"
        )
    rows = x.numel() // channels
    padded = triton.next_power_of_2(channels)
    with torch.cuda.device_of(x):  # Triton launches on the current one
        _norm_silu_kernel[(triton.cdiv(rows, ROWS),)](x, gamma, out, rows, tiny, C=channels, CP=padded, ROWS=ROWS)

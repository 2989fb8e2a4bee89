"""What is done to each token by itself between two matrix products, as one Triton kernel each: one read, one write.

Norms sum in fp32. The results are written as they are, or in fp8 (e4m3) with a scale for each row. Runs in Triton's interpreter
too (``TRITON_INTERPRET=1``), slowly: that is how it is tested without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

E4M3_MAX = 448.0
"""Largest value of torch.float8_e4m3fn."""
GELU_DIP = 0.1700408
"""Largest |GELU| (tanh form) of a negative number, at -0.752."""
PROGRAM = 4096
"""Numbers that a program holds, at least a row of them: 32 in each of 128 threads."""
PIECE = 2048
"""Channels of a long row that a program takes at a time."""


@triton.jit
def _norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr, plus_ptr, bias_ptr, weight_ptr, out_ptr, scale_ptr, rows, x_row, plus_row, tiny,
    C: tl.constexpr, CP: tl.constexpr, ROWS: tl.constexpr, CENTRED: tl.constexpr, PLUS: tl.constexpr, BIAS: tl.constexpr,
    WEIGHT: tl.constexpr, FP8: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Grid: (blocks of ROWS rows,). C channels, padded to CP; ``out`` is dense, strides in elements."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, CP)
    inside = (row[:, None] < rows) & (c[None, :] < C)
    at = row[:, None] * x_row + c[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    if PLUS:
        plus = tl.load(plus_ptr + row[:, None] * plus_row + c[None, :], mask=inside, other=0.0)
        x = (x.to(tl.float32) + plus.to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + at, x, mask=inside)
    x = x.to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if CENTRED:
        x = tl.where(inside, x - (tl.sum(x, 1) / C)[:, None], 0.0)
    y = x * (1.0 / tl.sqrt(tl.sum(x * x, 1) / C + tiny))[:, None]
    if WEIGHT:
        y *= tl.load(weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if FP8:
        scale = tl.maximum(tl.max(tl.abs(y), 1), 1e-12) / MOST
        tl.store(scale_ptr + row, scale, mask=row < rows)
        y = tl.minimum(tl.maximum(y / scale[:, None], -MOST), MOST)
    tl.store(out_ptr + row[:, None] * C + c[None, :], y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _fp8_kernel(  # type: ignore[no-untyped-def]
    x_ptr, out_ptr, scale_ptr, x_row, C: tl.constexpr, PIECE: tl.constexpr, GELU: tl.constexpr, MOST: tl.constexpr,
    DIP: tl.constexpr,
):  # fmt: skip
    """Grid: (rows,). Of GELU's results the largest comes from the largest number, or lies in the dip below zero."""
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros([PIECE], tl.float32)
    for start in range(0, C, PIECE):
        c = start + tl.arange(0, PIECE)
        x = tl.load(x_ptr + row * x_row + c, mask=c < C, other=0.0).to(tl.float32)
        most = tl.maximum(most, x if GELU else tl.abs(x))
    top = tl.max(most, 0)
    if GELU:
        top = tl.maximum(top / (1.0 + tl.exp(-1.5957691216 * (top + 0.044715 * top * top * top))), DIP)
    scale = tl.maximum(top, 1e-12) / MOST
    tl.store(scale_ptr + row, scale)
    for start in range(0, C, PIECE):
        c = start + tl.arange(0, PIECE)
        x = tl.load(x_ptr + row * x_row + c, mask=c < C, other=0.0).to(tl.float32)
        if GELU:  # the tanh form: x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))
            x = x / (1.0 + tl.exp(-1.5957691216 * (x + 0.044715 * x * x * x)))
        x = tl.minimum(tl.maximum(x / scale, -MOST), MOST)
        tl.store(out_ptr + row * C + c, x.to(out_ptr.dtype.element_ty), mask=c < C)


def norm(
    x: Tensor,
    tiny: float,
    *,
    centred: bool = True,
    plus: Tensor | None = None,
    bias: Tensor | None = None,
    weight: Tensor | None = None,
    fp8: bool = False,
) -> tuple[Tensor, Tensor]:
    """LayerNorm (``centred``) or RMS norm of the rows of ``x`` (rows, C). No backward pass.

    Args:
        plus: ``(rows, C)``, added to ``x`` in place first.
        bias: ``(C,)``, added to what is normed, not to ``x``. weight: ``(C,)``, times the result.

    Returns:
        ``(rows, C)`` in x's dtype, and nothing; for ``fp8`` in e4m3, and the scales ``(rows, 1)`` in fp32 to multiply it by.

    Raises:
        ValueError: rows whose channels do not lie side by side.
    """
    rows, channels = _checked(x)
    if plus is not None:
        _checked(plus)
    out = torch.empty(rows, channels, dtype=torch.float8_e4m3fn if fp8 else x.dtype, device=x.device)
    scale = torch.empty(rows if fp8 else 0, 1, dtype=torch.float32, device=x.device)
    padded = triton.next_power_of_2(channels)
    at_once = max(1, PROGRAM // padded)
    with torch.cuda.device_of(x):  # Triton launches on the current one
        _norm_kernel[(triton.cdiv(rows, at_once),)](
            x, plus, bias, weight, out, scale, rows, x.stride(0), 0 if plus is None else plus.stride(0), tiny,
            C=channels, CP=padded, ROWS=at_once, CENTRED=centred, PLUS=plus is not None, BIAS=bias is not None,
            WEIGHT=weight is not None, FP8=fp8, MOST=E4M3_MAX,
        )  # fmt: skip
    return out, scale


def to_fp8(x: Tensor, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """Rows ``(rows, C)`` in e4m3 and the scales ``(rows, 1)`` in fp32 to multiply them by; ``gelu``: of its tanh form.

    Raises:
        ValueError: as ``norm``.
    """
    rows, channels = _checked(x)
    out = torch.empty(rows, channels, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    piece = min(PIECE, triton.next_power_of_2(channels))
    with torch.cuda.device_of(x):  # Triton launches on the current one
        _fp8_kernel[(rows,)](
            x, out, scale, x.stride(0), C=channels, PIECE=piece, GELU=gelu, MOST=E4M3_MAX, DIP=GELU_DIP
        )
    return out, scale


def _checked(x: Tensor) -> tuple[int, int]:
    if x.ndim != 2 or x.stride(1) != 1:
        raise ValueError(f"x is {tuple(x.shape)} {x.stride()}; it must be (rows, channels), channels side by side")
    return x.shape[0], x.shape[1]

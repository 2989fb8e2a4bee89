"""All that lies between two convolutions in time, as one Triton kernel that reads and writes each number once.

It takes what the last convolution gave, without its bias, adds bias and residual stream, writes the stream, and writes what the
next convolution reads: silu(norm(stream)), behind its past or as the sums of frames that Winograd's products need. Where the
residual stream comes from a folded upsampling, it puts the four kernels' outputs in their places.

Runs in Triton's interpreter too (``TRITON_INTERPRET=1``), slowly: that is how it is tested without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .winograd import P, Q

ELEMENTS = 1024
"""Numbers of one frame that a program takes at a time: 8 for each thread of four warps, a load of 16 bytes."""
WARPS = 4
P1, Q1, BOTH = tl.constexpr(P), tl.constexpr(Q), tl.constexpr(P * P + Q * Q)
P2, Q2 = tl.constexpr(P * P), tl.constexpr(Q * Q)


@triton.jit
def _get(ptr, at, inside):  # type: ignore[no-untyped-def]
    return tl.load(ptr + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _put(ptr, at, inside, x):  # type: ignore[no-untyped-def]
    tl.store(ptr + at, x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _active(y, gamma, tiny, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """silu(rms_norm(y) * gamma)."""
    y = y * (1.0 / tl.sqrt(tl.sum(y * y, 1) / C + tiny))[:, None] * gamma[None, :]
    return y / (1.0 + tl.exp(-y))


@triton.jit
def _stream_kernel(  # type: ignore[no-untyped-def]
    x_ptr, y0_ptr, y1_ptr, y2_ptr, y3_ptr, y4_ptr, y5_ptr, bias_ptr, stream_ptr, gamma_ptr, past_ptr,
    u0_ptr, u1_ptr, u2_ptr, u3_ptr, u4_ptr, u5_ptr, places, groups, width, x_frame, tiny,
    X: tl.constexpr, Y: tl.constexpr, STREAM: tl.constexpr, U: tl.constexpr, PAST: tl.constexpr, M: tl.constexpr,
    C: tl.constexpr, CP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid: (blocks of ROWS of a frame's places,). ``groups`` times M frames of ``places`` positions, C channels padded to CP.

    X: 0 no residual, 1 one of the output's shape, 2 a folded upsampling's. Y: tensors that the convolution gave (0, 1, 4, 6).
    U: 0 no next convolution, 1 its input behind its past, 2 without, 4 or 6 the inputs of products. PAST: whether there is one.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, CP)
    inside = (row[:, None] < places) & (c[None, :] < C)
    at = row[:, None] * C + c[None, :]
    wide = tl.program_id(0).to(tl.int64) * 0  # so that what follows has 64 bits
    frame, x_frame = (wide + places) * C, wide + x_frame
    from_x = at
    if X == 2:  # of (rows + 1, columns + 1, 2, 2, C)
        line, column = row // width, row % width
        corner = (line // 2 + line % 2) * (width // 2 + 1) + column // 2 + column % 2
        from_x = (corner * 4 + line % 2 * 2 + column % 2)[:, None] * C + c[None, :]
    bias = tl.zeros((CP,), tl.float32)
    if Y > 0 or X == 2:
        bias = tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    gamma = tl.zeros((CP,), tl.float32)
    d0 = tl.zeros((ROWS, CP), tl.float32)
    d1 = tl.zeros((ROWS, CP), tl.float32)
    if U > 0:
        gamma = tl.load(gamma_ptr + c, mask=c < C, other=0.0).to(tl.float32)
        if PAST:
            d0, d1 = _get(past_ptr, at, inside), _get(past_ptr, at + frame, inside)
        if U == 1:
            _put(u0_ptr, at, inside, d0)
            _put(u0_ptr, at + frame, inside, d1)
    for group in range(groups):
        here = at + group * frame
        first = at + group * M * frame
        x_first = from_x + group * M * x_frame
        b0 = bias[None, :] + tl.zeros((ROWS, CP), tl.float32)
        b1, b2, b3 = b0, b0, b0
        if Y == 1:
            b0 += _get(y0_ptr, here, inside)
        elif Y == 4:
            e1, e2 = _get(y1_ptr, here, inside), _get(y2_ptr, here, inside)
            b0 += _get(y0_ptr, here, inside) + e1 + e2
            b1 += e1 - e2 - _get(y3_ptr, here, inside)
        elif Y == 6:
            e1, e2 = _get(y1_ptr, here, inside), _get(y2_ptr, here, inside)
            s, d = e1 + e2, e1 - e2
            e1, e2 = _get(y3_ptr, here, inside), _get(y4_ptr, here, inside)
            s2, d2 = e1 + e2, e1 - e2
            b0 += _get(y0_ptr, here, inside) + s + s2
            b1 += P1 * d + Q1 * d2
            b2 += P2 * s + Q2 * s2
            b3 += P1 * P2 * d + Q1 * Q2 * d2 + _get(y5_ptr, here, inside)
        if X > 0:
            b0 += _get(x_ptr, x_first, inside)
            if M > 1:
                b1 += _get(x_ptr, x_first + x_frame, inside)
            if M > 2:
                b2 += _get(x_ptr, x_first + 2 * x_frame, inside)
                b3 += _get(x_ptr, x_first + 3 * x_frame, inside)
        if STREAM:
            _put(stream_ptr, first, inside, b0)
            if M > 1:
                _put(stream_ptr, first + frame, inside, b1)
            if M > 2:
                _put(stream_ptr, first + 2 * frame, inside, b2)
                _put(stream_ptr, first + 3 * frame, inside, b3)
        if U > 0:
            b0 = _active(b0, gamma, tiny, C)
            if M > 1:
                b1 = _active(b1, gamma, tiny, C)
            if M > 2:
                b2, b3 = _active(b2, gamma, tiny, C), _active(b3, gamma, tiny, C)
            if U == 1:
                _put(u0_ptr, here + 2 * frame, inside, b0)
            elif U == 2:
                _put(u0_ptr, here, inside, b0)
            elif U == 4:
                _put(u0_ptr, here, inside, d0 - b0)
                _put(u1_ptr, here, inside, d1 + b0)
                _put(u2_ptr, here, inside, b0 - d1)
                _put(u3_ptr, here, inside, d1 - b1)
            elif U == 6:
                _put(u0_ptr, here, inside, d0 - BOTH * b0 + b2)  # P Q is 1
                even, odd = b2 - Q2 * b0, P1 * b1 - Q1 * d1
                _put(u1_ptr, here, inside, even + odd)
                _put(u2_ptr, here, inside, even - odd)
                even, odd = b2 - P2 * b0, Q1 * b1 - P1 * d1
                _put(u3_ptr, here, inside, even + odd)
                _put(u4_ptr, here, inside, even - odd)
                _put(u5_ptr, here, inside, d1 - BOTH * b1 + b3)
            if M == 4:
                d0, d1 = b2, b3
            elif M == 2:
                d0, d1 = b0, b1
            else:
                d0, d1 = d1, b0
    if U > 0:
        _put(past_ptr, at, inside, d0)
        _put(past_ptr, at + frame, inside, d1)


@dataclass(frozen=True)
class Shape:
    """Frames in groups: ``groups`` times ``group`` frames ``(height, width, channels)``."""

    groups: int
    group: int
    height: int
    width: int
    channels: int


def stream_step(
    shape: Shape, *, x: Tensor | None, corners: bool, y: list[Tensor], bias: Tensor | None, stream: Tensor | None,
    gamma: Tensor | None, past: Tensor | None, has_past: bool, u: list[Tensor], joined: bool, tiny: float,
) -> None:  # fmt: skip
    """Run the kernel; all tensors contiguous but for weights, and of one stream (no batch). No backward pass.

    Args:
        x: the residual, ``(frames, H, W, C)``; ``corners``: ``(frames, H / 2 + 1, W / 2 + 1, 2, 2, C)`` of a folded upsampling.
        y: what a convolution gave, ``(groups, H, W, C)`` each: one tensor, or the products of the group.
        bias: of the convolution or upsampling, ``(C,)``. stream: where the sum goes; may be ``x``.
        gamma: the next norm's gain; None: no next convolution. past: its last two inputs, ``(2, H, W, C)``; overwritten, and
        read if ``has_past``. u: where its input goes: products of the group, which may be ``y``, or one tensor, ``joined``
        behind its past.
    """
    s = shape
    some = next(t for t in (x, stream, *y) if t is not None)
    ys, us = ([*given, *[some] * (6 - len(given))] for given in (y, u))
    kind = 0 if gamma is None else (1 if joined else 2) if len(u) == 1 else len(u)
    padded = triton.next_power_of_2(s.channels)
    rows = max(1, ELEMENTS // padded)
    places = s.height * s.width
    x_frame = (s.height // 2 + 1) * (s.width // 2 + 1) * 4 * s.channels if corners else places * s.channels
    given: list[Any] = [some if t is None else t for t in (x, *ys, bias, stream, gamma, past, *us)]
    with torch.cuda.device_of(some):
        _stream_kernel[(triton.cdiv(places, rows),)](
            *given, places, s.groups, s.width, x_frame, tiny,
            X=0 if x is None else 2 if corners else 1, Y=len(y), STREAM=stream is not None, U=kind, PAST=has_past,
            M=s.group, C=s.channels, CP=padded, ROWS=rows, num_warps=WARPS,
        )  # fmt: skip

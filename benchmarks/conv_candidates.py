"""Candidates for the Wan decoder's convolutions, in Triton: 3x3 of one frame, channels last, as an implicit matrix product.

``decoder_speed.py`` times them against cuDNN; the decoder takes what wins.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def _tma_kernel(  # type: ignore[no-untyped-def]
    x, w, out, across, C: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr
):
    """Tiles of TH x TW pixels; x, out ``(H, W, C)`` and w ``(9 C, N)`` as descriptors; what lies outside reads as zeros."""
    pid = tl.program_id(0)
    top, left, n = pid // across * TH, pid % across * TW, tl.program_id(1) * BN
    acc = tl.zeros((TH * TW, BN), tl.float32)
    for k in range(9 * (C // BK)):
        tap, c = k // (C // BK), k % (C // BK) * BK
        a = x.load([top + tap // 3 - 1, left + tap % 3 - 1, c]).reshape([TH * TW, BK])
        acc = tl.dot(a, w.load([tap * C + c, n]), acc)
    out.store([top, left, n], acc.to(tl.float16).reshape([TH, TW, BN]))


@triton.jit
def _split_kernel(  # type: ignore[no-untyped-def]
    x, w64, w32, out64, out32, across, C: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BK: tl.constexpr
):
    """The same for 96 output channels as 64 and 32: nothing is padded."""
    pid = tl.program_id(0)
    top, left = pid // across * TH, pid % across * TW
    acc64 = tl.zeros((TH * TW, 64), tl.float32)
    acc32 = tl.zeros((TH * TW, 32), tl.float32)
    for k in range(9 * (C // BK)):
        tap, c = k // (C // BK), k % (C // BK) * BK
        a = x.load([top + tap // 3 - 1, left + tap % 3 - 1, c]).reshape([TH * TW, BK])
        acc64 = tl.dot(a, w64.load([tap * C + c, 0]), acc64)
        acc32 = tl.dot(a, w32.load([tap * C + c, 64]), acc32)
    out64.store([top, left, 0], acc64.to(tl.float16).reshape([TH, TW, 64]))
    out32.store([top, left, 64], acc32.to(tl.float16).reshape([TH, TW, 32]))


@triton.jit
def _pointer_kernel(  # type: ignore[no-untyped-def]
    x, w, out, H, W, C: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr
):
    """Rows of BM pixels in raster order, plain loads under masks."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    ks = tl.arange(0, BK)
    row, column = m // W, m % W
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(9 * (C // BK)):
        tap, c = k // (C // BK), k % (C // BK) * BK
        dy, dx = tap // 3 - 1, tap % 3 - 1
        inside = (row + dy >= 0) & (row + dy < H) & (column + dx >= 0) & (column + dx < W)
        a = tl.load(x + (m + dy * W + dx)[:, None] * C + (c + ks)[None, :], mask=inside[:, None], other=0.0)
        b = tl.load(w + (tap * C + c + ks)[:, None] * N + n[None, :], mask=n[None, :] < N, other=0.0)
        acc = tl.dot(a, b, acc)
    tl.store(out + m[:, None] * N + n[None, :], acc.to(tl.float16), mask=(m[:, None] < H * W) & (n[None, :] < N))


def matrix(weight: Tensor) -> Tensor:
    """``(9 C, N)`` of a kernel ``(N, C, 3, 3)``."""
    return weight.permute(2, 3, 1, 0).reshape(-1, len(weight)).contiguous()


def conv_tma(x: Tensor, w: Tensor, config: tuple[int, int, int, int, int, int]) -> Tensor:
    """``x`` (H, W, C) and ``w`` of ``matrix``; config: tile height, width, depth, channels, warps, stages."""
    th, tw, bk, bn, warps, stages = config
    h, wide, c = x.shape
    out = x.new_empty(h, wide, w.shape[1])
    grid = (triton.cdiv(h, th) * triton.cdiv(wide, tw), triton.cdiv(w.shape[1], bn))
    _tma_kernel[grid](
        TensorDescriptor.from_tensor(x, [th, tw, bk]), TensorDescriptor.from_tensor(w, [bk, bn]),
        TensorDescriptor.from_tensor(out, [th, tw, bn]), triton.cdiv(wide, tw), c, th, tw, bk, bn,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def conv_split(x: Tensor, w: Tensor, config: tuple[int, int, int, int, int]) -> Tensor:
    """For 96 output channels; config: tile height, width, depth, warps, stages."""
    th, tw, bk, warps, stages = config
    h, wide, c = x.shape
    out = x.new_empty(h, wide, 96)
    _split_kernel[(triton.cdiv(h, th) * triton.cdiv(wide, tw),)](
        TensorDescriptor.from_tensor(x, [th, tw, bk]),
        *(TensorDescriptor.from_tensor(w, [bk, n]) for n in (64, 32)),
        *(TensorDescriptor.from_tensor(out, [th, tw, n]) for n in (64, 32)),
        triton.cdiv(wide, tw), c, th, tw, bk, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def conv_pointer(x: Tensor, w: Tensor, config: tuple[int, int, int, int, int]) -> Tensor:
    """config: pixels, depth, channels, warps, stages."""
    bm, bk, bn, warps, stages = config
    h, wide, c = x.shape
    out = x.new_empty(h, wide, w.shape[1])
    _pointer_kernel[(triton.cdiv(h * wide, bm), triton.cdiv(w.shape[1], bn))](
        x, w, out, h, wide, C=c, N=w.shape[1], BM=bm, BK=bk, BN=bn, num_warps=warps, num_stages=stages
    )
    return out


TMA = [
    (8, 16, 32, 128, 4, 4),
    (8, 16, 32, 128, 8, 4),
    (8, 32, 32, 128, 8, 4),
    (16, 16, 32, 128, 8, 3),
    (1, 256, 32, 128, 8, 4),
]
"""For depths of 32; 192 and 384 channels also take 64."""
SPLIT = [(8, 16, 32, 4, 4), (8, 32, 32, 8, 4), (16, 16, 32, 8, 4)]
POINTER = [(128, 32, 128, 4, 4), (256, 32, 128, 8, 4), (128, 32, 128, 8, 4)]

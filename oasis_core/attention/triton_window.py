"""The window operation as one Triton kernel: a tile of queries and its halo of keys, any window, any grid, exact borders.

A program takes ``BLOCK_H x BLOCK_W`` queries of one frame of one head and goes through the halo, frame by frame in blocks
of keys, with an online softmax: nothing is gathered, no mask is stored. Besides the output it gives the log-sum-exp.
Runs in Triton's interpreter too (``TRITON_INTERPRET=1``), slowly: that is how it is tested without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import TokenGrid


@triton.jit
def _window_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, scale,
    q_b, q_l, q_n, k_b, k_l, k_n, v_b, v_l, v_n, o_b, o_l, o_n,
    heads, frames, height, width, tiles_w,
    RT: tl.constexpr, RH: tl.constexpr, RW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of a frame, frames, batch * heads). Strides in elements; D channels, padded to DP."""
    tile, t, bn = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, n = bn // heads, bn % heads
    top, left = (tile // tiles_w) * BLOCK_H, (tile % tiles_w) * BLOCK_W
    d = tl.arange(0, DP)
    s = tl.arange(0, BLOCK_H * BLOCK_W)
    qy, qx = top + s // BLOCK_W, left + s % BLOCK_W
    q_in = (qy < height) & (qx < width)
    q_token = (t * height + qy) * width + qx
    q_at = q_ptr + b * q_b + n * q_n + q_token[:, None] * q_l + d[None, :]
    q = tl.load(q_at, mask=q_in[:, None] & (d[None, :] < D), other=0.0)

    halo_h: tl.constexpr = BLOCK_H + 2 * RH
    halo_w: tl.constexpr = BLOCK_W + 2 * RW
    best = tl.full([BLOCK_H * BLOCK_W], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H * BLOCK_W], tl.float32)
    acc = tl.zeros([BLOCK_H * BLOCK_W, DP], tl.float32)
    for kt in range(tl.maximum(t - RT, 0), tl.minimum(t + RT, frames - 1) + 1):
        for start in range(0, halo_h * halo_w, KEYS):
            i = start + tl.arange(0, KEYS)
            ky, kx = top - RH + i // halo_w, left - RW + i % halo_w
            k_in = (i < halo_h * halo_w) & (ky >= 0) & (ky < height) & (kx >= 0) & (kx < width)
            token = (kt * height + ky) * width + kx
            both = k_in[:, None] & (d[None, :] < D)
            k = tl.load(k_ptr + b * k_b + n * k_n + token[:, None] * k_l + d[None, :], mask=both, other=0.0)
            v = tl.load(v_ptr + b * v_b + n * v_n + token[:, None] * v_l + d[None, :], mask=both, other=0.0)
            near = (tl.abs(qy[:, None] - ky[None, :]) <= RH) & (tl.abs(qx[:, None] - kx[None, :]) <= RW) & k_in[None, :]
            scores = tl.where(near, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))
            now = tl.maximum(best, tl.max(scores, 1))
            safe = tl.where(now == float("-inf"), 0.0, now)  # a query of the padding sees nothing
            p = tl.exp(scores - safe[:, None])
            shrink = tl.exp(best - safe)
            total = total * shrink + tl.sum(p, 1)
            acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            best = now
    out_at = out_ptr + b * o_b + n * o_n + q_token[:, None] * o_l + d[None, :]
    tl.store(out_at, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=q_in[:, None] & (d[None, :] < D))
    lse_at = lse_ptr + (b * heads + n) * frames * height * width + q_token
    tl.store(lse_at, best + tl.log(total), mask=q_in)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: TokenGrid,
    window: tuple[int, int, int],
    block: tuple[int, int] = (8, 8),
    keys: int = 64,
) -> tuple[Tensor, Tensor]:
    """Every query sees the sliding (Pt, Ph, Pw) neighbourhood around it, truncated at the borders. No backward pass.

    Args:
        q, k, v: ``(B, L, N, D)`` in raster order, channels side by side in memory.
        block: rows and columns of a tile of queries; their product a power of 2, at least 16.
        keys: keys at a time, a power of 2, at least 16.

    Returns:
        The output ``(B, L, N, D)`` in q's dtype and the log-sum-exp of the scores ``(B, N, L)`` in fp32, in nats.
    """
    b, length, n, d = q.shape
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out, lse = torch.empty_like(q), torch.empty(b, n, length, dtype=torch.float32, device=q.device)
    rows, columns = -(-grid.h // block[0]), -(-grid.w // block[1])
    _window_kernel[(rows * columns, grid.t, b * n)](
        q, k, v, out, lse, d**-0.5,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        n, grid.t, grid.h, grid.w, columns,
        RT=window[0] // 2, RH=window[1] // 2, RW=window[2] // 2, D=d, DP=max(16, triton.next_power_of_2(d)),
        BLOCK_H=block[0], BLOCK_W=block[1], KEYS=keys,
    )  # fmt: skip
    return out, lse

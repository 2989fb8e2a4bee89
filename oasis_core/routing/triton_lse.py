"""Log-sum-exps of a few queries' scores with each frame's keys, and with parts of each frame, as one Triton kernel.

A program takes one head, one piece of a frame, one part and a block of queries, and goes through the piece's keys with an online
softmax: nothing but the log-sum-exps is written. The parts of a piece are programs beside each other, which read the same keys
at the same time: memory gives them once, the cache again. So there may be any number of parts, their reaches are data, and one
compilation serves all. Large frames are cut into pieces, so that a large GPU has enough to do: at full size (12 heads x 9 frames
of 3600 tokens, a whole frame and one window) there are 864 programs.

Runs in Triton's interpreter too (``TRITON_INTERPRET=1``), slowly: that is how it is tested without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention import TokenGrid

LOG2_E = 1.4426950408889634
UNSEEN = tl.constexpr(-(2.0**100))
"""The score of a key that is not seen. A power of 2: times the scale it is exact, whatever is fused."""
QUERIES = 64
"""In a program at most; half of it in fp32."""
KEY_BYTES = 2**14
"""Of keys at a time, of which ``STAGES`` are on their way: what fits the shared memory of consumers' GPUs beside the queries."""
KEYS = 64
"""At a time at most."""
STAGES = 3
PIECE = 1024
"""Keys that a program goes through, about; a smaller frame is one piece."""
ROWS = 16
"""Queries of a warp: a row's maximum and sum need no other warp."""


def lse_of_parts(q: Tensor, k: Tensor, grid: TokenGrid, queries: Tensor, reaches: Tensor) -> Tensor:
    """``(P, B, N, S, t, C)`` in nats, fp32: of each query's scores with the keys of each of a frame's C pieces that lie within a
    reach of its place; far below any score where none does.

    Args:
        q, k: ``(B, L, N, D)`` in raster order, fp32, bf16 or fp16; slices of one projection are read where they lie.
        queries: ``(S,)``, indices into the grid's tokens.
        reaches: ``(P, 2)`` int32 on the same device, token rows and columns seen to each side; beyond the frame there is nothing.
    """
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    (b, _, n, d), count, parts = q.shape, len(queries), len(reaches)
    pieces = max(1, round(grid.frame / PIECE))
    out = torch.empty(parts, b, n, count, grid.t, pieces, dtype=torch.float32, device=q.device)
    padded = max(16, triton.next_power_of_2(d))
    most = QUERIES if q.element_size() == 2 else QUERIES // 2
    block = max(16, min(most, triton.next_power_of_2(count)))
    with torch.cuda.device_of(q):  # Triton launches on the current one
        _lse_kernel[(parts * triton.cdiv(count, block), grid.t * pieces, b * n)](
            q, k, queries, reaches, out, d**-0.5 * LOG2_E, *q.stride()[:3], *k.stride()[:3],
            b, n, count, parts, pieces, grid.h, grid.w, D=d, DP=padded, QUERIES=block,
            KEYS=max(16, min(KEYS, KEY_BYTES // (padded * k.element_size()))),
            PRECISION="tf32x3" if q.dtype == torch.float32 else "ieee", num_warps=block // ROWS, num_stages=STAGES,
        )  # fmt: skip
    return out


@triton.jit
def _lse_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, queries_ptr, reaches_ptr, out_ptr, scale, q_b, q_l, q_n, k_b, k_l, k_n,
    batch, heads, count, parts, pieces, height, width,
    D: tl.constexpr, DP: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (blocks of queries x parts, frames x pieces, batch x heads). Strides in elements; D channels, padded to DP."""
    part, frame, piece = tl.program_id(0) % parts, tl.program_id(1) // pieces, tl.program_id(1) % pieces
    b, n = (tl.program_id(2) // heads).to(tl.int64), tl.program_id(2) % heads
    size = height * width
    reach_h, reach_w = tl.load(reaches_ptr + 2 * part), tl.load(reaches_ptr + 2 * part + 1)

    s = (tl.program_id(0) // parts) * QUERIES + tl.arange(0, QUERIES)
    token = tl.load(queries_ptr + tl.minimum(s, count - 1)).to(tl.int64)
    place = (token % size).to(tl.int32)
    qy, qx = place // width, place % width
    lo_y, lo_x = tl.maximum(qy - reach_h, 0), tl.maximum(qx - reach_w, 0)
    rows, columns = tl.minimum(qy + reach_h, height - 1) - lo_y, tl.minimum(qx + reach_w, width - 1) - lo_x  # less one
    rows, columns = rows.to(tl.uint32), columns.to(tl.uint32)
    d = tl.arange(0, DP)
    q_at = q_ptr + b * q_b + n * q_n + token[:, None] * q_l + d[None, :]
    q = tl.load(q_at) if D == DP else tl.load(q_at, mask=d[None, :] < D, other=0.0)

    keys = k_ptr + b * k_b + n * k_n + frame.to(tl.int64) * size * k_l
    best = tl.full([QUERIES], UNSEEN, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    steps = tl.cdiv(size, KEYS)
    begin, end = piece * steps // pieces * KEYS, (piece + 1) * steps // pieces * KEYS
    i = tl.arange(0, KEYS)
    ky, kx = (begin + i) // width, (begin + i) % width  # past the frame's end ky is no row, and nobody sees it
    for start in range(begin, end, KEYS):
        # Past the end the last key is read again: loads have no masks and are copied asynchronously.
        k_at = keys + tl.minimum(start + i, size - 1).to(tl.int64)[:, None] * k_l + d[None, :]
        k = tl.load(k_at) if D == DP else tl.load(k_at, mask=d[None, :] < D, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        near = (ky[None, :] - lo_y[:, None]).to(tl.uint32) <= rows[:, None]  # below 0 is far above
        near &= (kx[None, :] - lo_x[:, None]).to(tl.uint32) <= columns[:, None]
        # Finite: a query that has seen nothing yet sums nonsense, which the first key that it sees multiplies by 0.
        scores = tl.where(near, scores, UNSEEN)
        now = tl.maximum(best, tl.max(scores, 1))
        shift = now * scale
        total = total * tl.exp2(best * scale - shift) + tl.sum(tl.exp2(scores * scale - shift[:, None]), 1)
        best = now
        kx += KEYS % width  # instead of a division for each key
        ky += KEYS // width + (kx >= width)
        kx = tl.where(kx >= width, kx - width, kx)
    out_at = (((part * batch + b) * heads + n) * count + s) * tl.num_programs(1) + tl.program_id(1)
    tl.store(out_ptr + out_at, (best * scale + tl.log2(total)) / 1.4426950408889634, mask=s < count)

"""The window operation as one Triton kernel: a tile of queries and its halo of keys, any window, any grid, exact borders.

A program takes a tile of queries of one head, over frames too, and goes through its halo in blocks of keys with an online
softmax: nothing is gathered, no mask is stored, nothing but the log-sum-exp is written besides the output. What makes it fast:

- tile and halo are numbered through, so that neither needs padding to powers of two (``window_plan``);
- places outside the grid are clamped into it: loads have no masks and are copied asynchronously;
- a key's place is one bit an axis, a query's word has the bits that it may not see: a mask costs one AND, and the borders
  nothing at all. Only where that does not fit a word are places compared;
- exp2 with the scale inside; frames outside the grid are left out.

Runs in Triton's interpreter too (``TRITON_INTERPRET=1``), slowly: that is how it is tested without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import TokenGrid
from .window_plan import ALIGN, BITS, Axis, WindowPlan, key_bits, plan_window

LOG2_E = 1.4426950408889634
UNSEEN = tl.constexpr(-(2.0**100))
"""The score of a key that is not seen. A power of 2: times the scale it is exact, whatever is fused."""


@dataclass(frozen=True)
class WindowConfig:
    """How the kernel is built. Measured by ``benchmarks/attention.py``, which tries others."""

    queries: int
    """Of a tile at most; a power of 2, at least 16."""
    keys: int
    """At a time; a power of 2, at least 16."""
    warps: int
    stages: int
    """Blocks of keys on their way at a time."""
    registers: int | None = None
    """For each thread at most: fewer let more tiles run beside each other, too few are spilled."""
    precision: Literal["ieee", "tf32x3"] = "ieee"
    """Of fp32 products: exact, or three products of the matrix units."""


def config_for(head_dim: int, dtype: torch.dtype) -> WindowConfig:
    """The fastest of each size on an H100 (docs/attention.md): small tiles, since many that run at once hide each other's waits.

    In fp32 three products of the matrix units are as exact as one in fp32 (5e-7), and 2 to 3 times as fast.
    """
    if dtype == torch.float32:
        return WindowConfig(32, 32, 2, 2, precision="tf32x3")
    if head_dim <= 32:
        return WindowConfig(16, 32, 1, 2)
    return WindowConfig(64, 32, 4, 4 if head_dim <= 64 else 2)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: TokenGrid,
    window: tuple[int, int, int],
    config: WindowConfig | None = None,
    out: Tensor | None = None,
    with_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Every query sees the sliding (Pt, Ph, Pw) neighbourhood around it, truncated at the borders. No backward pass.

    Args:
        q, k, v: ``(B, L, N, D)`` in raster order, fp32, bf16 or fp16; slices of one projection are read where they lie.
        out: ``(B, L, N, D)``, where the output goes; any strides, channels side by side.

    Returns:
        The output ``(B, L, N, D)`` in q's dtype, and if asked for the log-sum-exp of the scores ``(B, N, L)``, fp32, in nats.
    """
    b, length, n, d = q.shape
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    if out.shape != q.shape or out.stride(-1) != 1:
        raise ValueError(f"out is {tuple(out.shape)} {out.stride()}; expected {tuple(q.shape)}, channels side by side")
    lse = torch.empty(b, n, length, dtype=torch.float32, device=q.device) if with_lse else None
    config = config or config_for(d, q.dtype)
    plan = plan_window(grid, window, config.queries, config.keys)
    wide = max((x.shape[1] + 1) * x.stride(1) for x in (q, k, v, out)) >= 2**31
    with torch.cuda.device_of(q):  # Triton launches on the current one
        _window_kernel[(plan.tiles, n, b)](
            q, k, v, out, lse, key_bits(plan, config.keys, q.device), d**-0.5 * LOG2_E,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            grid.t, grid.h, grid.w, plan.h.tiles, plan.w.tiles,
            **_sizes(plan), D=d, DP=max(16, triton.next_power_of_2(d)), QUERIES=config.queries, KEYS=config.keys,
            BY_BITS=plan.bits <= BITS, WIDE=wide, PRECISION=config.precision, ALIGN=ALIGN,
            num_warps=config.warps, num_stages=config.stages,
            **({} if config.registers is None else {"maxnreg": config.registers}),
        )  # fmt: skip
    return out, lse


def _sizes(plan: WindowPlan) -> dict[str, int | bool]:
    """The plan as the kernel's constants."""
    sizes: dict[str, int | bool] = {}
    axes: tuple[tuple[str, Axis], ...] = (("T", plan.t), ("H", plan.h), ("W", plan.w))
    for name, axis in axes:
        sizes |= {f"R{name}": axis.reach, f"B{name}": axis.tile, f"H{name}": axis.halo}
        sizes |= {f"WHOLE_{name}": axis.whole, f"BITS_{name}": axis.bits}
    return sizes


@triton.jit
def _window_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, bits_ptr, scale,
    q_b, q_l, q_n, k_b, k_l, k_n, v_b, v_l, v_n, o_b, o_l, o_n,
    frames, height, width, tiles_h, tiles_w,
    RT: tl.constexpr, RH: tl.constexpr, RW: tl.constexpr, BT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
    HT: tl.constexpr, HH: tl.constexpr, HW: tl.constexpr,
    WHOLE_T: tl.constexpr, WHOLE_H: tl.constexpr, WHOLE_W: tl.constexpr,
    BITS_T: tl.constexpr, BITS_H: tl.constexpr, BITS_W: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, BY_BITS: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles, heads, batch). R: reach, B: tile, H: halo along each axis. Strides in elements; D channels, padded to DP."""
    tile, n, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    t0 = (tile // (tiles_h * tiles_w)) * BT
    y0 = (tile // tiles_w % tiles_h) * BH
    x0 = (tile % tiles_w) * BW
    kt0 = 0 if WHOLE_T else t0 - RT  # where the halo begins
    ky0 = 0 if WHOLE_H else y0 - RH
    kx0 = 0 if WHOLE_W else x0 - RW

    s = tl.arange(0, QUERIES)
    qt, qy, qx = t0 + s // (BH * BW), y0 + s // BW % BH, x0 + s % BW
    q_in = (s < BT * BH * BW) & (qt < frames) & (qy < height) & (qx < width)
    qt, qy, qx = tl.minimum(qt, frames - 1), tl.minimum(qy, height - 1), tl.minimum(qx, width - 1)
    # The first and the last place in the halo that each query sees.
    lo_t, hi_t = tl.maximum(qt - RT, 0) - kt0, tl.minimum(qt + RT, frames - 1) - kt0
    lo_y, hi_y = tl.maximum(qy - RH, 0) - ky0, tl.minimum(qy + RH, height - 1) - ky0
    lo_x, hi_x = tl.maximum(qx - RW, 0) - kx0, tl.minimum(qx + RW, width - 1) - kx0
    if BY_BITS:
        seen = tl.zeros([QUERIES], tl.int32)
        if BITS_T > 0:
            seen = seen | ((2 << hi_t) - (1 << lo_t))
        if BITS_H > 0:
            seen = seen | (((2 << hi_y) - (1 << lo_y)) << BITS_T)
        if BITS_W > 0:
            seen = seen | (((2 << hi_x) - (1 << lo_x)) << (BITS_T + BITS_H))
        hidden = ~seen

    d = tl.arange(0, DP)
    q_token = (qt * height + qy) * width + qx
    if WIDE:
        q_token = q_token.to(tl.int64)
    q_at = q_ptr + b * q_b + n * q_n + q_token[:, None] * q_l + d[None, :]
    q = tl.load(q_at) if D == DP else tl.load(q_at, mask=d[None, :] < D, other=0.0)

    k_head, v_head = k_ptr + b * k_b + n * k_n, v_ptr + b * v_b + n * v_n
    best = tl.full([QUERIES], UNSEEN, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, DP], tl.float32)
    begin = (tl.maximum(kt0, 0) - kt0) * (HH * HW) // ALIGN * ALIGN
    end = (tl.minimum(kt0 + HT, frames) - kt0) * (HH * HW)
    for start in range(begin, end, KEYS):
        i = start + tl.arange(0, KEYS)
        kt, ky, kx = kt0 + i // (HH * HW), ky0 + i % (HH * HW) // HW, kx0 + i % HW
        kt = tl.minimum(tl.maximum(kt, 0), frames - 1)
        ky = tl.minimum(tl.maximum(ky, 0), height - 1)
        kx = tl.minimum(tl.maximum(kx, 0), width - 1)
        token = (kt * height + ky) * width + kx
        if WIDE:
            token = token.to(tl.int64)
        k_at, v_at = k_head + token[:, None] * k_l + d[None, :], v_head + token[:, None] * v_l + d[None, :]
        if D == DP:
            k, v = tl.load(k_at), tl.load(v_at)
        else:
            k = tl.load(k_at, mask=d[None, :] < D, other=0.0)
            v = tl.load(v_at, mask=d[None, :] < D, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if BY_BITS:
            near = (tl.load(bits_ptr + i)[None, :] & hidden[:, None]) == 0
        else:
            pt, py, px = i // (HH * HW), i % (HH * HW) // HW, i % HW
            near = (pt[None, :] >= lo_t[:, None]) & (pt[None, :] <= hi_t[:, None])
            near &= (py[None, :] >= lo_y[:, None]) & (py[None, :] <= hi_y[:, None])
            near &= (px[None, :] >= lo_x[:, None]) & (px[None, :] <= hi_x[:, None])
        # Finite: a query that has seen nothing yet sums nonsense, which the first key that it sees multiplies by 0.
        scores = tl.where(near, scores, UNSEEN)
        now = tl.maximum(best, tl.max(scores, 1))
        shift = now * scale
        p = tl.exp2(scores * scale - shift[:, None])
        shrink = tl.exp2(best * scale - shift)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        best = now
    out_at = out_ptr + b * o_b + n * o_n + q_token[:, None] * o_l + d[None, :]
    keep = q_in[:, None] if D == DP else q_in[:, None] & (d[None, :] < D)
    tl.store(out_at, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=keep)
    if lse_ptr is not None:
        lse_at = lse_ptr + (b * tl.num_programs(1) + n) * frames * height * width + q_token
        tl.store(lse_at, (best * scale + tl.log2(total)) / 1.4426950408889634, mask=q_in)

"""RMS norm of queries and keys and their rotary embedding as one Triton kernel, in place: one read and one write.

In fp32 throughout, where ``layers.py`` rounds between norm and rotation. Queries and keys may be slices of one projection.
Runs in Triton's interpreter too (``TRITON_INTERPRET=1``), slowly: that is how it is tested without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

THREAD_NUMBERS = 16
"""Numbers of a token that a thread holds."""


def norm_rope(
    q: Tensor, k: Tensor, norm_q: Tensor, norm_k: Tensor, rope: tuple[Tensor, Tensor], heads: int, eps: float
) -> None:
    """``apply_rope(rms_norm(x) * weight)`` of q and of k, in place. No backward pass.

    Args:
        q, k: ``(B, L, N * D)``, channels side by side, D even. norm_q, norm_k: ``(N * D,)``, over all heads together.
        rope: cosines and sines ``(L, 1, D)`` in fp32, as ``rope_table`` gives them or slices of theirs.

    Raises:
        ValueError: tensors that are not so.
    """
    b, length, dim = q.shape
    cos, sin = rope
    if k.shape != q.shape or dim % (2 * heads) or q.stride(-1) != 1 or k.stride(-1) != 1:
        raise ValueError(f"q is {tuple(q.shape)} {q.stride()}, k {tuple(k.shape)} {k.stride()}, heads {heads}")
    if cos.shape != (length, 1, dim // heads) or cos.stride() != sin.stride() or cos.dtype != torch.float32:
        raise ValueError(
            f"rotary table is {tuple(cos.shape)} {cos.dtype}; expected ({length}, 1, {dim // heads}) in fp32"
        )
    padded = triton.next_power_of_2(heads) * triton.next_power_of_2(dim // heads)
    with torch.cuda.device_of(q):  # Triton launches on the current one
        _norm_rope_kernel[(length, b)](
            q, k, norm_q, norm_k, cos, sin, *q.stride()[:2], *k.stride()[:2], cos.stride(0), eps,
            N=heads, NP=triton.next_power_of_2(heads), D=dim // heads, DP=triton.next_power_of_2(dim // heads),
            num_warps=max(1, min(8, padded // (32 * THREAD_NUMBERS))),
        )  # fmt: skip


@triton.jit
def _norm_rope_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, norm_q_ptr, norm_k_ptr, cos_ptr, sin_ptr, q_b, q_l, k_b, k_l, table_l, eps,
    N: tl.constexpr, NP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Grid: (tokens, batch). N heads of D channels, padded to NP and DP."""
    token, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    n, d, pair = tl.arange(0, NP), tl.arange(0, DP), tl.arange(0, DP // 2)
    at = n[:, None] * D + d[None, :]
    inside = (n[:, None] < N) & (d[None, :] < D)
    turn = token * table_l + 2 * pair
    cos = tl.load(cos_ptr + turn, mask=2 * pair < D, other=0.0)[None, :]
    sin = tl.load(sin_ptr + turn, mask=2 * pair < D, other=0.0)[None, :]
    q_at, k_at = q_ptr + b * q_b + token * q_l + at, k_ptr + b * k_b + token * k_l + at
    q = tl.load(q_at, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(k_at, mask=inside, other=0.0).to(tl.float32)
    q_gain = tl.load(norm_q_ptr + at, mask=inside, other=0.0).to(tl.float32)
    k_gain = tl.load(norm_k_ptr + at, mask=inside, other=0.0).to(tl.float32)
    q = _turned(q * q_gain / tl.sqrt(tl.sum(tl.sum(q * q, 1), 0) / (N * D) + eps), cos, sin, NP, DP)
    k = _turned(k * k_gain / tl.sqrt(tl.sum(tl.sum(k * k, 1), 0) / (N * D) + eps), cos, sin, NP, DP)
    tl.store(q_at, q.to(q_ptr.dtype.element_ty), mask=inside)
    tl.store(k_at, k.to(k_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _turned(x, cos, sin, NP: tl.constexpr, DP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Neighbouring channels ``(NP, DP)`` as pairs, turned by angles ``(1, DP / 2)``."""
    even, odd = tl.split(tl.reshape(x, [NP, DP // 2, 2]))
    return tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), [NP, DP])

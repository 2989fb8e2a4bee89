"""Log-sum-exps of a few queries' scores from torch's FlashAttention kernel, which writes no scores to memory.

At full size (9 x 45 x 80 tokens, 12 heads of 128, 64 queries) a layer's scores are 100 MB in fp32, and each pass over them costs
as much as reading the keys; the kernel reads the keys once. Keys that only some queries see are few, and are gathered.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
MOST_HEAD_DIM = 256
"""Of the kernel (FlashAttention 2); a head's numbers come in eights."""
LEAST_CAPABILITY = 8
"""NVIDIA's Ampere."""
HELD = 2**24
"""Numbers held at a time: 64 MiB in fp32, little beside a forward pass."""


def missing(q: Tensor) -> str | None:
    """Why the kernel cannot take these queries; None where it can."""
    if q.device.type != "cuda" or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU, the queries are on {q.device}"
    if q.dtype not in HALVES or q.shape[-1] % 8 or q.shape[-1] > MOST_HEAD_DIM:
        return f"it takes fp16 and bf16 heads of 8, 16, ... {MOST_HEAD_DIM}; this is {q.dtype}, {q.shape[-1]}"
    if torch.cuda.get_device_capability(q.device)[0] < LEAST_CAPABILITY:
        return "it needs an Ampere GPU or a newer one"
    return None if torch.backends.cuda.is_flash_attention_available() else "this torch was built without it"


def lse_by_frame(q: Tensor, k: Tensor, frames: int) -> Tensor:
    """Log-sum-exp ``(N, S, frames)`` in fp32 of each query's scores with each frame's keys: the frames are the kernel's batch.

    q: ``(S, N, D)``; k: ``(frames * K, N, D)``.
    """
    keys = k.unflatten(0, (frames, -1)).transpose(1, 2)  # (frames, N, K, D)
    some = max(1, HELD // (frames * q[0].numel()))
    return torch.cat([_kernel_lse(part.transpose(0, 1), keys) for part in q.split(some)], 2).permute(1, 2, 0)


def lse_of_gathered(q: Tensor, k: Tensor, index: Tensor, unseen: Tensor) -> Tensor:
    """Log-sum-exp ``(N, S)`` in fp32 of each query's scores with keys of its own.

    q: ``(S, N, D)``; k: ``(L, N, D)``; index: ``(S, K)`` of those keys; unseen: ``(S, K)``, which of them do not count.
    """
    some = max(1, HELD // (index.shape[1] * q[0].numel()))
    parts = zip((q.float() * q.shape[-1] ** -0.5).split(some), index.split(some), unseen.split(some), strict=True)
    found = []
    for query, near, hidden in parts:
        scores = (k[near] * query[:, None]).sum(-1)  # (s, K, N)
        found.append(scores.masked_fill_(hidden[..., None], float("-inf")).logsumexp(1))
    return torch.cat(found).T


def _kernel_lse(q: Tensor, keys: Tensor) -> Tensor:
    """``(frames, N, S)`` of q ``(N, S, D)`` and keys ``(frames, N, K, D)``. The values are of no use: the keys do."""
    queries = q.expand(len(keys), -1, -1, -1)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention.default
    lse: Tensor = kernel(queries, keys, keys, 0.0, False, False, scale=q.shape[-1] ** -0.5)[1]
    return lse

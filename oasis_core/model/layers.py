"""The DiT's parts, shaped like Wan 2.1's (names too, so that its weights map one to one).

Norms, rotary embedding and modulation run in fp32 and cast back. Parity is tested against Diffusers' Wan classes.
Source of the shape: https://github.com/Wan-Video/Wan2.1/blob/7c81b2f/wan/modules/model.py
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..attention import TokenGrid
from ..attention.triton_here import needs_triton

EPS = 1e-6
"""Wan's epsilon of every norm."""


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, with a learned weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), EPS).to(x.dtype)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights, then ``* (1 + scale) + shift``; in fp32, back to x's dtype."""
    return F.layer_norm(x.float(), x.shape[-1:], 1 + scale.flatten().float(), shift.flatten().float(), EPS).to(x.dtype)


@lru_cache(maxsize=64)
def timestep_embedding(timestep: float, dim: int, device: torch.device) -> Tensor:
    """Sinusoidal embedding ``(1, dim)`` in fp32: cosines, then sines, frequencies 10000^(-i / (dim/2))."""
    with torch.inference_mode(False):
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
        angles = timestep * frequencies
        return torch.cat([angles.cos(), angles.sin()]).float().to(device)[None]


@lru_cache(maxsize=8)
def rope_table(grid: TokenGrid, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(L, 1, head_dim)`` of the 3D rotary embedding, each frequency repeated for its pair.

    Wan's split of the head: t gets ``head_dim - 4 * (head_dim // 6)`` channels, h and w ``2 * (head_dim // 6)`` each.
    """
    with torch.inference_mode(False):
        spatial = 2 * (head_dim // 6)
        angles = []
        for size, dim in zip((grid.t, grid.h, grid.w), (head_dim - 2 * spatial, spatial, spatial), strict=True):
            frequency = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
            angles.append(torch.outer(torch.arange(size, dtype=torch.float64), frequency))
        at, ah, aw = angles
        shape = (grid.t, grid.h, grid.w, -1)
        parts = (at[:, None, None], ah[None, :, None], aw[None, None])
        table = torch.cat([a.expand(*shape[:3], a.shape[-1]) for a in parts], dim=-1)
        table = rearrange(table, "t h w f -> (t h w) 1 f").repeat_interleave(2, dim=-1)
        return table.cos().float().to(device), table.sin().float().to(device)


def apply_rope(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate neighbouring channel pairs of ``(B, L, N, D)`` by the table's angles; in fp32, back to x's dtype."""
    cos, sin = table
    y = x.float()
    even, odd = y[..., 0::2], y[..., 1::2]
    swapped = torch.stack((-odd, even), dim=-1).flatten(-2)
    return (y * cos + swapped * sin).to(x.dtype)


def fused(x: Tensor) -> bool:
    """Whether norm and rotation of q and k run as one Triton kernel, in place: on NVIDIA GPUs with Triton, at inference, but for
    compilations, which fuse themselves."""
    return x.is_cuda and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and _has_triton(x.device)


@lru_cache(maxsize=16)
def _has_triton(device: torch.device) -> bool:
    return needs_triton(device) is None


def norm_rope(
    q: Tensor, k: Tensor, norm_q: Tensor, norm_k: Tensor, rope: tuple[Tensor, Tensor], heads: int
) -> tuple[Tensor, Tensor]:
    """q and k as the attention sees them, ``(B, L, N, D)``, of projections ``(B, L, N * D)``, which are overwritten."""
    from .triton_norm_rope import norm_rope  # Triton may be missing

    norm_rope(q, k, norm_q, norm_k, rope, heads, EPS)
    return q.unflatten(-1, (heads, -1)), k.unflatten(-1, (heads, -1))


class SelfAttention(nn.Module):
    """Projections of the routed self-attention: RMS-normalised q and k (over all heads together) with 3D RoPE, and o."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim), RMSNorm(dim)

    def queries_keys(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Queries and keys ``(B, L, N, D)`` as the attention sees them, of normed tokens ``(B, L, dim)``."""
        q, k = self.q(x), self.k(x)
        if fused(q):
            return norm_rope(q, k, self.norm_q.weight, self.norm_k.weight, rope, self.heads)
        q, k = (y.unflatten(-1, (self.heads, -1)) for y in (self.norm_q(q), self.norm_k(k)))
        return apply_rope(q, rope), apply_rope(k, rope)

    def values(self, x: Tensor) -> Tensor:
        """Likewise the values."""
        return self.v(x).unflatten(-1, (self.heads, -1))

    def out(self, attended: Tensor) -> Tensor:
        """Heads ``(B, L, N, D)`` joined and projected: ``(B, L, dim)``."""
        return self.o(rearrange(attended, "b l n d -> b l (n d)"))


class CrossAttention(nn.Module):
    """Attention to the fixed context ``(1, context tokens, dim)``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim), RMSNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        context = context.to(x.dtype).expand(x.shape[0], -1, -1)
        q, k, v = (
            rearrange(y, "b l (n d) -> b n l d", n=self.heads)
            for y in (self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context))
        )
        return self.o(rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l (n d)"))


class Block(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; each around the residual stream.

    In two halves, with the routed attention between them: ``before`` and ``after`` do not depend on the routing. ``before`` can
    be had in two steps, so that the routing may be decided on queries and keys while the values are made.
    """

    def __init__(self, dim: int, heads: int, ffn_dim: int, cross_attention: bool) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, heads)
        self.norm3 = nn.LayerNorm(dim, EPS) if cross_attention else None
        self.cross_attn = CrossAttention(dim, heads) if cross_attention else None
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))

    def before(self, x: Tensor, time: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v ``(B, L, N, D)`` of ``x`` (B, L, dim); ``time`` (1, 6, dim) as in ``after``."""
        normed = self._normed(x, time)
        return *self.self_attn.queries_keys(normed, rope), self.self_attn.values(normed)

    def before_values(self, x: Tensor, time: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """``before`` without the values: q, k, and what ``self_attn.values`` makes them of ``(B, L, dim)``."""
        normed = self._normed(x, time)
        return *self.self_attn.queries_keys(normed, rope), normed

    def _normed(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation[:, :2].float() + time[:, :2].float()).unbind(1)
        return modulated_norm(x, shift, scale)

    def after(self, x: Tensor, attended: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """The residual stream after the block.

        Args:
            x: ``(B, L, dim)`` as it came in. attended: ``(B, L, N, D)``.
            time: ``(1, 6, dim)``: shift, scale and gate for attention, then for the feed-forward.
        """
        gate_a, shift_f, scale_f, gate_f = (self.modulation[:, 2:].float() + time[:, 2:].float()).unbind(1)
        x = x + self.self_attn.out(attended) * gate_a.to(x.dtype)
        if self.norm3 is not None and self.cross_attn is not None and context is not None:
            normed = F.layer_norm(x.float(), x.shape[-1:], self.norm3.weight.float(), self.norm3.bias.float(), EPS)
            x = x + self.cross_attn(normed.to(x.dtype), context)
        return x + self.ffn(modulated_norm(x, shift_f, scale_f)) * gate_f.to(x.dtype)


class Head(nn.Module):
    """Last norm, modulation and projection from a token to its latent patch."""

    def __init__(self, dim: int, out_features: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, out_features)
        self.modulation = nn.Parameter(torch.zeros(1, 2, dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x`` (B, L, dim), ``time`` (1, dim)."""
        shift, scale = (self.modulation.float() + time.float()[:, None]).unbind(1)
        return self.head(modulated_norm(x, shift, scale))

"""At inference the timestep, the context and the routing are constant: what follows from them becomes plain weights.

Modulation goes into the linear layers after it, gates into the ones before them, norm3's weights into the cross-attention's
queries, keys and values of the context are computed once, q, k and v become one layer, and heads change places so that those of
one pattern lie side by side. What is left is a pre-norm transformer with biases (DESIGN section 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..routing.spec import RoutingSpec, grouped_order
from .layers import EPS, Block, CrossAttention, Head, apply_rope, fused, norm_rope

if TYPE_CHECKING:
    from .dit import DiT


@dataclass(frozen=True)
class FoldedFor:
    """What a DiT was folded for, and can no longer be asked otherwise."""

    routing: RoutingSpec
    grouped: RoutingSpec
    """The same with each layer's heads in their new places."""
    fidelity: float


@torch.no_grad()
def fold(dit: DiT, routing: RoutingSpec, fidelity: float = 0.0) -> None:
    """Fold ``dit`` in place, block after block, so that no second copy of the weights is ever there.

    Arithmetic in fp32, results in the weights' dtype. It computes the same but for rounding, for this routing and
    fidelity alone, and cannot be trained, saved or calibrated any more.

    Raises:
        ValueError: the routing is another model's, the fidelity cannot be asked for, or it is folded already.
    """
    if dit.folded is not None:
        raise ValueError("the transformer is folded already; load it again to fold it for something else")
    routing.check_fits(dit.config.depth, dit.config.heads)
    device = dit.patch_embedding.weight.device
    time, modulation = dit.time(dit.timestep(fidelity, device))
    layers = []
    for layer, block in enumerate(dit.blocks):
        patterns = routing.layers[layer]
        order = list(grouped_order(patterns))
        layers.append(tuple(patterns[n] for n in order))
        dit.blocks[layer] = FoldedBlock(cast(Block, block), modulation, dit.context, order)
    dit.head = cast(Head, FoldedHead(dit.head, time))
    dit.folded = FoldedFor(routing, RoutingSpec(tuple(layers), routing.window), fidelity)
    dit.context = None
    del dit.time_embedding, dit.time_projection


def _linear(weight: Tensor, bias: Tensor, like: nn.Linear) -> nn.Linear:
    """A frozen layer with these weights in ``like``'s dtype."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    for name, value in (("weight", weight), ("bias", bias)):
        setattr(layer, name, nn.Parameter(value.to(like.weight.dtype), requires_grad=False))
    return layer


def _after_norm(layer: nn.Linear, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias, fp32, of ``layer(x * scale + shift)`` as a layer on x; shift and scale ``(dim,)``."""
    weight = layer.weight.float()
    return weight * scale, layer.bias.float() + weight @ shift


def _gated(layer: nn.Linear, gate: Tensor) -> nn.Linear:
    """``layer(x) * gate``."""
    return _linear(layer.weight.float() * gate[:, None], layer.bias.float() * gate, layer)


def _norm(x: Tensor) -> Tensor:
    """LayerNorm without weights; the kernels compute it in fp32."""
    return F.layer_norm(x, x.shape[-1:], None, None, EPS)


class FoldedSelfAttention(nn.Module):
    """One layer for q, k and v, norms of q and k, and the output's layer; heads in the order of their patterns."""

    def __init__(self, block: Block, shift: Tensor, scale: Tensor, gate: Tensor, order: list[int]) -> None:
        super().__init__()
        a = block.self_attn
        self.heads = a.heads
        dim = a.q.in_features
        places = torch.arange(dim, device=a.q.weight.device).reshape(self.heads, -1)[order].flatten()
        parts = [(w[places], b[places]) for w, b in (_after_norm(layer, shift, scale) for layer in (a.q, a.k, a.v))]
        self.qkv = _linear(torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts]), a.q)
        out = _gated(a.o, gate)
        self.o = _linear(out.weight.float()[:, places], out.bias.float(), a.o)
        self.norm_q, self.norm_k = (nn.Parameter(n.weight[places], requires_grad=False) for n in (a.norm_q, a.norm_k))


class FoldedCrossAttention(nn.Module):
    """Attention to keys and values ``(1, N, context tokens, D)`` that are there already."""

    k: nn.Parameter
    v: nn.Parameter

    def __init__(self, norm: nn.LayerNorm, attention: CrossAttention, context: Tensor) -> None:
        super().__init__()
        a = attention
        self.q = _linear(*_after_norm(a.q, norm.bias.float(), norm.weight.float()), a.q)
        self.o, self.norm_q, self.heads = a.o, a.norm_q.weight, a.heads
        context = context.to(a.k.weight.dtype)
        for name, value in (("k", a.norm_k(a.k(context))), ("v", a.v(context))):
            split = rearrange(value, "b l (n d) -> b n l d", n=a.heads).contiguous()
            setattr(self, name, nn.Parameter(split, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, L, dim), normed."""
        q = rearrange(F.rms_norm(self.q(x), x.shape[-1:], self.norm_q, EPS), "b l (n d) -> b n l d", n=self.heads)
        k, v = (y.expand(x.shape[0], -1, -1, -1) for y in (self.k, self.v))
        return self.o(rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l (n d)"))


class FoldedBlock(nn.Module):
    """``Block`` for one timestep, context and routing; the same two halves, of which ``time`` and ``context`` are unused."""

    def __init__(self, block: Block, modulation: Tensor, context: Tensor | None, order: list[int]) -> None:
        super().__init__()
        table = (block.modulation.float() + modulation.float())[0]
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = table.unbind(0)
        self.self_attn = FoldedSelfAttention(block, shift_a, 1 + scale_a, gate_a, order)
        self.cross_attn: FoldedCrossAttention | None = None
        if block.norm3 is not None and block.cross_attn is not None and context is not None:
            self.cross_attn = FoldedCrossAttention(block.norm3, block.cross_attn, context)
        wide, narrow = cast(nn.Linear, block.ffn[0]), cast(nn.Linear, block.ffn[2])
        self.ffn = nn.Sequential(
            _linear(*_after_norm(wide, shift_f, 1 + scale_f), wide), nn.GELU(approximate="tanh"), _gated(narrow, gate_f)
        )

    def before(self, x: Tensor, time: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v ``(B, L, N, D)`` of ``x`` (B, L, dim), heads in the order of their patterns."""
        a = self.self_attn
        q, k, v = a.qkv(_norm(x)).chunk(3, dim=-1)
        if fused(q):
            return *norm_rope(q, k, a.norm_q, a.norm_k, rope, a.heads), v.unflatten(-1, (a.heads, -1))
        q, k = F.rms_norm(q, q.shape[-1:], a.norm_q, EPS), F.rms_norm(k, k.shape[-1:], a.norm_k, EPS)
        q, k, v = (y.unflatten(-1, (a.heads, -1)) for y in (q, k, v))
        return apply_rope(q, rope), apply_rope(k, rope), v

    def after(self, x: Tensor, attended: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """The residual stream after the block; ``attended`` (B, L, N, D)."""
        x = x + self.self_attn.o(attended.flatten(2))
        if self.cross_attn is not None:
            x = x + self.cross_attn(_norm(x))
        return x + self.ffn(_norm(x))


class FoldedHead(nn.Module):
    """``Head`` for one timestep."""

    def __init__(self, head: Head, time: Tensor) -> None:
        super().__init__()
        shift, scale = (head.modulation.float() + time.float()[:, None])[0].unbind(0)
        self.head = _linear(*_after_norm(head.head, shift, 1 + scale), head.head)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x`` (B, L, dim)."""
        return self.head(_norm(x))

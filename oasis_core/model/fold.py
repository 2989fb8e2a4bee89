"""At inference the timestep, the context and the routing are constant: what follows from them becomes plain weights.

Modulation goes into the linear layers after it, gates into the ones before them, norm3's weights into the cross-attention's
queries, keys and values of the context are computed once, q, k and v become one layer, and heads change places so that those of
one pattern lie side by side. What is left (``model.folded``) is a pre-norm transformer with biases (DESIGN section 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ..routing.spec import RoutingSpec, grouped_order
from .folded import FoldedBlock, FoldedCrossAttention, FoldedHead, FoldedSelfAttention
from .folded_linear import FoldedLinear, folded_linear, frozen
from .layers import Block, CrossAttention, Head

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
def fold(dit: DiT, routing: RoutingSpec, fidelity: float = 0.0, fp8: bool = False) -> None:
    """Fold ``dit`` in place, block after block, so that no second copy of the weights is ever there.

    Arithmetic in fp32, results in the weights' dtype; for ``fp8`` the blocks' matrices in that (``folded_linear``). It computes
    the same but for rounding, for this routing and fidelity alone, and cannot be trained, saved or calibrated any more.

    Raises:
        ValueError: the routing is another model's, the fidelity cannot be asked for, or it is folded already.
    """
    if dit.folded is not None:
        raise ValueError("the transformer is folded already; load it again to fold it for something else")
    routing.check_fits(dit.config.depth, dit.config.heads)
    weight = dit.patch_embedding.weight
    time, modulation = dit.time(dit.timestep(fidelity, weight.device))
    layers = []
    carried = weight.new_zeros(dit.config.dim, dtype=torch.float32)
    for layer, block in enumerate(dit.blocks):
        patterns = routing.layers[layer]
        order = list(grouped_order(patterns))
        layers.append(tuple(patterns[n] for n in order))
        folding = _Folding(weight.dtype, fp8, carried)
        dit.blocks[layer] = folding.block(cast(Block, block), modulation, dit.context, order)
        carried = folding.carried
    dit.head = cast(Head, _head(dit.head, time, carried))
    dit.folded = FoldedFor(routing, RoutingSpec(tuple(layers), routing.window), fidelity)
    dit.context = None
    del dit.time_embedding, dit.time_projection


def _after_norm(layer: nn.Linear, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias, fp32, of ``layer(x * scale + shift)`` as a layer on x; shift and scale ``(dim,)``."""
    weight = layer.weight.float()
    return weight * scale, layer.bias.float() + weight @ shift


def _head(head: Head, time: Tensor, carried: Tensor) -> FoldedHead:
    shift, scale = (head.modulation.float() + time.float()[:, None])[0].unbind(0)
    folded = FoldedLinear(*_after_norm(head.head, shift, 1 + scale), head.head.weight.dtype)
    return FoldedHead(folded, carried)


class _Folding:
    """One block: its layers in ``dtype`` or fp8, and what the residual stream does not get but ``carried`` says."""

    def __init__(self, dtype: torch.dtype, fp8: bool, carried: Tensor) -> None:
        self._dtype, self._fp8, self.carried = dtype, fp8, carried

    def _linear(self, weight: Tensor, bias: Tensor | None) -> FoldedLinear:
        return folded_linear(weight, bias, self._dtype, self._fp8)

    def _out(self, layer: nn.Linear, gate: Tensor | None, places: Tensor | None = None) -> FoldedLinear:
        """A layer that adds ``layer(x) * gate`` to the stream, whose inputs lie in other ``places``; its bias is carried."""
        weight, bias = layer.weight.float(), layer.bias.float()
        if gate is not None:
            weight, bias = weight * gate[:, None], bias * gate
        self.carried = self.carried + bias
        return self._linear(weight if places is None else weight[:, places], None)

    def block(self, block: Block, modulation: Tensor, context: Tensor | None, order: list[int]) -> FoldedBlock:
        """``block`` with the modulation of one timestep and its heads in ``order``."""
        table = (block.modulation.float() + modulation.float())[0]
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = table.unbind(0)
        first, own = self.carried, self._self_attention(block, shift_a, 1 + scale_a, gate_a, order)
        second, cross = self.carried, None
        if block.norm3 is not None and block.cross_attn is not None and context is not None:
            cross = self._cross_attention(block.norm3, block.cross_attn, context)
        third = self.carried
        wide = self._linear(*_after_norm(cast(nn.Linear, block.ffn[0]), shift_f, 1 + scale_f))
        narrow = self._out(cast(nn.Linear, block.ffn[2]), gate_f)
        return FoldedBlock(own, cross, wide, narrow, (first, second, third))

    def _self_attention(
        self, block: Block, shift: Tensor, scale: Tensor, gate: Tensor, order: list[int]
    ) -> FoldedSelfAttention:
        a = block.self_attn
        places = torch.arange(a.q.in_features, device=a.q.weight.device).reshape(a.heads, -1)[order].flatten()
        split = [(w[places], b[places]) for w, b in (_after_norm(layer, shift, scale) for layer in (a.q, a.k, a.v))]
        qkv = self._linear(torch.cat([w for w, _ in split]), torch.cat([b for _, b in split]))
        norm_q, norm_k = (frozen(n.weight[places]) for n in (a.norm_q, a.norm_k))
        return FoldedSelfAttention(qkv, self._out(a.o, gate, places), norm_q, norm_k, a.heads)

    def _cross_attention(self, norm: nn.LayerNorm, a: CrossAttention, context: Tensor) -> FoldedCrossAttention:
        q = self._linear(*_after_norm(a.q, norm.bias.float(), norm.weight.float()))
        context = context.to(a.k.weight.dtype)
        k, v = (
            frozen(rearrange(y, "1 l (n d) -> 1 l n d", n=a.heads).contiguous())
            for y in (a.norm_k(a.k(context)), a.v(context))
        )
        return FoldedCrossAttention(q, self._out(a.o, None), frozen(a.norm_q.weight), k, v)

"""The blocks of a folded transformer: pre-norm, biases, no modulation (``model.fold`` makes them). They work in place.

What the residual stream gets from biases is the same for every token: it is not added to it, but carried beside it, and the
norms add it to what they read. So an output layer is one matrix product that adds to the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .folded_linear import FoldedLinear
from .layers import EPS, fused, norm_rope
from .onednn import onednn_takes
from .rows import rms_norm

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""An attention: q, k, v ``(B, L, N, D)`` -> ``(B, L, N, D)``."""
Rope = tuple[Tensor, Tensor]


def norm_and_turn(qk: Tensor, weights: Tensor, rope: Rope, out: Tensor) -> None:
    """RMS norm over all heads and RoPE, in fp32, of q and k ``(L, 2, N, D)``, channels of each side by side, into ``out``.

    ``weights``: of both norms, fp32 ``(2, N * D)``.
    """
    # Pairs of channels are complex numbers, and what a norm divides a token by, its turn is divided by.
    y = qk.flatten(2).to(torch.float32, copy=True)
    mean_square = y.square().view(-1, y.shape[2]).mv(y.new_full((y.shape[2],), 1 / y.shape[2]))
    shorter = mean_square.add_(EPS).rsqrt_().view(-1, 2, 1, 1)
    cos, sin = (table[:, None, :, ::2] for table in rope)
    turn = torch.complex(cos * shorter, sin * shorter)
    torch.view_as_complex(y.mul_(weights).view(*qk.shape[:3], -1, 2)).mul_(turn)
    out.copy_(y.view(qk.shape))


def parts(x: Tensor, at_once: int) -> Iterator[tuple[int, slice]]:
    """Sequence and tokens of each slice of ``(B, L, ...)``, of equal size, at most ``at_once``."""
    length = x.shape[1]
    size = -(-length // -(-length // at_once))
    for b in range(x.shape[0]):
        yield from ((b, slice(start, start + size)) for start in range(0, length, size))


class FoldedSelfAttention(nn.Module):
    """One layer for q, k and v, norms of q and k, and the output's layer; heads in the order of their patterns."""

    def __init__(
        self, qkv: FoldedLinear, o: FoldedLinear, norm_q: nn.Parameter, norm_k: nn.Parameter, heads: int
    ) -> None:
        super().__init__()
        self.qkv, self.o, self.norm_q, self.norm_k, self.heads = qkv, o, norm_q, norm_k, heads

    def before(self, x: Tensor, carried: Tensor, rope: Rope, at_once: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v ``(B, L, N, D)`` of the residual stream ``(B, L, dim)``; views of one tensor."""
        if onednn_takes(x):
            return self._by_head(x, carried, rope, at_once)
        joined = x.new_empty(*x.shape[:2], 3 * x.shape[2])
        heads = joined.view(*x.shape[:2], 3, self.heads, -1)
        weights = None if fused(x) else self._weights()
        for b, s in parts(x, at_once):
            self.qkv.after_norm(x[b, s], carried, out=joined[b, s])
            turn, qk = (rope[0][s], rope[1][s]), heads[b, s, :2]
            if weights is None:
                q, k = qk.flatten(2)[None].unbind(2)
                norm_rope(q, k, self.norm_q, self.norm_k, turn, self.heads)
            else:
                norm_and_turn(qk, weights, turn, qk)
        q, k, v = heads.unbind(2)
        return q, k, v

    def _by_head(self, x: Tensor, carried: Tensor, rope: Rope, at_once: int) -> tuple[Tensor, Tensor, Tensor]:
        """``before`` on a CPU: what a head has of neighbouring tokens lies side by side, as its attention reads it."""
        size = x.shape[2] // self.heads
        joined = x.new_empty(x.shape[0], 3, self.heads, x.shape[1], size).permute(0, 3, 1, 2, 4)
        weights = self._weights()
        for b, s in parts(x, at_once):
            given = self.qkv.after_norm(x[b, s], carried).view(-1, 3, self.heads, size)
            norm_and_turn(given[:, :2], weights, (rope[0][s], rope[1][s]), joined[b, s, :2])
            joined[b, s, 2].copy_(given[:, 2])
        q, k, v = joined.unbind(2)
        return q, k, v

    def _weights(self) -> Tensor:
        return torch.stack((self.norm_q, self.norm_k)).float()


class FoldedCrossAttention(nn.Module):
    """Attention to keys and values ``(1, context tokens, N, D)`` that are there already."""

    def __init__(
        self, q: FoldedLinear, o: FoldedLinear, norm_q: nn.Parameter, k: nn.Parameter, v: nn.Parameter
    ) -> None:
        super().__init__()
        self.q, self.o, self.norm_q, self.k, self.v = q, o, norm_q, k, v

    def add(self, x: Tensor, carried: Tensor, attend: Attend) -> None:
        """Add to the residual stream ``(tokens, dim)`` what it gets from the context."""
        q = rms_norm(self.q.after_norm(x, carried), self.norm_q).view(1, len(x), *self.k.shape[2:])
        self.o.add(x, attend(q, self.k, self.v)[0].flatten(1))


class FoldedBlock(nn.Module):
    """A block for one timestep, context and routing."""

    def __init__(
        self, self_attn: FoldedSelfAttention, cross_attn: FoldedCrossAttention | None,
        wide: FoldedLinear, narrow: FoldedLinear, carried: tuple[Tensor, Tensor, Tensor],
    ) -> None:  # fmt: skip
        """``carried``: what lies beside the stream before each of the three, ``(dim,)``, fp32."""
        super().__init__()
        self.self_attn, self.cross_attn, self.wide, self.narrow = self_attn, cross_attn, wide, narrow
        self.carried = nn.ParameterList(nn.Parameter(c, requires_grad=False) for c in carried)

    def forward(self, x: Tensor, rope: Rope, attend: Attend, attend_all: Attend, at_once: int) -> Tensor:
        """Take the residual stream ``(B, L, dim)`` through the block, in place; returns it.

        ``attend``: the routed attention of this layer. ``attend_all``: every query to every key.
        What is done to each token by itself is done to ``at_once`` tokens at a time, which then stay in a CPU's cache from one
        operation to the next, and need little memory anywhere.
        """
        first, second, third = self.carried
        attended = attend(*self.self_attn.before(x, first, rope, at_once))
        for b, s in parts(x, at_once):
            rows = x[b, s]
            self.self_attn.o.add(rows, attended[b, s].flatten(1))
            if self.cross_attn is not None:
                self.cross_attn.add(rows, second, attend_all)
            self.narrow.add_hidden(rows, self.wide.hidden(rows, third))
        return x


class FoldedHead(nn.Module):
    """Last norm and projection from a token to its latent patch."""

    def __init__(self, head: FoldedLinear, carried: Tensor) -> None:
        super().__init__()
        self.head = head
        self.carried = nn.Parameter(carried, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, L, dim)."""
        return self.head.after_norm(x.flatten(0, 1), self.carried).unflatten(0, x.shape[:2])

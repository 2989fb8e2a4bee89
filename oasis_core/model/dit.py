"""The diffusion transformer: latent in, velocity out, one timestep (paper section 3.1; shaped like Wan 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention import TokenGrid, routed_attention
from ..attention.backend import Backend
from ..attention.backends import SDPA
from ..routing.spec import Pattern, RoutingSpec
from .config import OasisConfig
from .fold import FoldedFor, fold
from .layers import Block, Head, rope_table, timestep_embedding

CPU_TOKENS = 1024
"""Tokens that a CPU takes at a time through what is done to each token by itself."""
DEVICE_TOKENS = 16384
"""The same for other devices, which this many keep busy: it bounds what norms, RoPE and feed-forward need beside q, k, v."""

Observer = Callable[[int, Tensor, Tensor, TokenGrid], None]
"""Called with the layer, its q and k ``(B, L, N, D)`` and their grid."""
Decider = Callable[[int, Tensor, Tensor, TokenGrid], tuple[Pattern, ...]]
"""Called likewise; gives the patterns of the layer's heads."""


class DiT(nn.Module):
    """v(z_L, timestep) with routed self-attention."""

    def __init__(self, config: OasisConfig) -> None:
        super().__init__()
        self.config = config
        c, dim = config.latent_channels, config.dim
        self.patch_embedding = nn.Conv3d(c, dim, kernel_size=config.patch, stride=config.patch)
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim * 6))
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.ffn_dim, config.context_length > 0) for _ in range(config.depth)
        )
        pt, ph, pw = config.patch
        self.head = Head(dim, pt * ph * pw * c)
        self.attention: Backend = SDPA
        """What runs the attention (``attention.backends.backend_for``)."""
        self.folded: FoldedFor | None = None
        """What the weights were folded for (``fold``), if they were."""
        self.checkpoint_blocks = False
        """Training: keep only each block's input, and compute the block again in the backward pass."""
        self.context = nn.Parameter(torch.zeros(1, config.context_length, dim)) if config.context_length else None

    def init_weights(self) -> None:
        """Start of training from scratch: every gate open, velocity zero (z_H = z_L)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        depth_scale = (2 * self.config.depth) ** -0.5
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.trunc_normal_(block.self_attn.o.weight, std=0.02 * depth_scale)
            nn.init.trunc_normal_(cast(nn.Linear, block.ffn[2]).weight, std=0.02 * depth_scale)
            nn.init.zeros_(block.modulation)
            nn.init.ones_(block.modulation.data[:, 2])
            nn.init.ones_(block.modulation.data[:, 5])
        nn.init.zeros_(cast(nn.Linear, self.time_projection[1]).weight)
        nn.init.zeros_(self.head.head.weight)
        if self.context is not None:
            nn.init.normal_(self.context, std=0.02)

    def fold(self, routing: RoutingSpec, fidelity: float = 0.0) -> None:
        """Turn all that is constant at inference into plain weights, in place; see ``model.fold``."""
        fold(self, routing, fidelity)

    def grid(self, z: Tensor) -> TokenGrid:
        """Token grid of a latent ``(B, C, t, h, w)``. Raises ValueError where the patch does not divide it."""
        pt, ph, pw = self.config.patch
        _, c, t, h, w = z.shape
        if c != self.config.latent_channels or t % pt or h % ph or w % pw:
            raise ValueError(
                f"latent is {tuple(z.shape)}; expected {self.config.latent_channels} channels and sides that are "
                f"multiples of {self.config.patch}"
            )
        return TokenGrid(t // pt, h // ph, w // pw)

    def tokens(self, z: Tensor) -> Tensor:
        """Patch embedding: latent ``(B, C, t, h, w)`` -> tokens ``(B, L, dim)``."""
        pt, ph, pw = self.config.patch
        x = rearrange(z, "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=pt, q=ph, r=pw)
        return F.linear(x, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def timestep(self, fidelity: float, device: torch.device) -> Tensor:
        """Sinusoidal embedding ``(1, freq_dim)`` of the one timestep; see ``OasisConfig.timestep_at``."""
        return timestep_embedding(self.config.timestep_at(fidelity), self.config.freq_dim, device)

    def time(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The timestep's embedding ``(1, dim)`` and its projection ``(1, 6, dim)``."""
        first = cast(nn.Linear, self.time_embedding[0])
        time = self.time_embedding(embedding.to(first.weight.dtype))
        return time, rearrange(self.time_projection(time), "b (six d) -> b six d", six=6)

    def forward(
        self,
        z: Tensor,
        routing: RoutingSpec,
        poll: Callable[[], None] | None = None,
        observe: Observer | None = None,
        timestep: Tensor | None = None,
        decide: Decider | None = None,
    ) -> Tensor:
        """Velocity ``(B, C, t, h, w)`` of a latent of that shape, in its dtype.

        ``timestep`` is what the method of that name gives; None: fidelity 0.
        ``poll`` is called before every block; what it raises passes through (this is how a host interrupts).
        ``observe`` is shown every layer's queries and keys (calibration). ``decide`` sees them too, and what it says
        replaces ``routing``'s patterns in that layer.
        """
        grid = self.grid(z)
        routing.check_fits(self.config.depth, self.config.heads)
        rope = rope_table(grid, self.config.head_dim, self.config.rope_theta, z.device)
        if self.folded is None:
            time, modulation = self.time(self.timestep(0.0, z.device) if timestep is None else timestep)
        else:
            routing, time = self._as_folded(routing, observe, timestep), z.new_empty(0)
            modulation = time
        x = self.tokens(z)
        for layer in range(self.config.depth):
            if poll is not None:
                poll()
            rest = (layer, modulation, rope, grid, routing, observe, decide)
            x = (
                checkpoint(self._block, x, *rest, use_reentrant=False)
                if self.checkpoint_blocks
                else self._block(x, *rest)
            )
        pt, ph, pw = self.config.patch
        return rearrange(
            self.head(x, time), "b (t h w) (p q r c) -> b c (t p) (h q) (w r)", t=grid.t, h=grid.h, p=pt, q=ph, r=pw
        )

    def _as_folded(self, routing: RoutingSpec, observe: Observer | None, timestep: Tensor | None) -> RoutingSpec:
        """The routing of the heads in their new places. Raises ValueError where something else is asked for."""
        assert self.folded is not None
        if routing != self.folded.routing or observe is not None:
            raise ValueError("the transformer is folded for another routing, or for upscaling alone; load it again")
        wanted = timestep_embedding(
            self.config.timestep_at(self.folded.fidelity), self.config.freq_dim, torch.device("cpu")
        )
        if timestep is not None and not torch.equal(timestep.cpu(), wanted):
            raise ValueError(
                f"the transformer is folded for fidelity {self.folded.fidelity}; load it again for another"
            )
        return self.folded.grouped

    def _block(
        self,
        x: Tensor,
        layer: int,
        modulation: Tensor,
        rope: tuple[Tensor, Tensor],
        grid: TokenGrid,
        routing: RoutingSpec,
        observe: Observer | None,
        decide: Decider | None,
    ) -> Tensor:
        """The residual stream ``(B, L, dim)`` after block ``layer``."""
        block = cast(Block, self.blocks[layer])
        at_once = CPU_TOKENS if x.device.type == "cpu" else DEVICE_TOKENS
        if not torch.is_grad_enabled() and (x.device.type == "cpu" or x.shape[1] > at_once):
            rest = (layer, modulation, rope, self.context, grid, routing, self.attention, observe, decide)
            return _block_in_slices(block, x, *rest, at_once)
        q, k, v = block.before(x, modulation, rope)
        if observe is not None:
            observe(layer, q, k, grid)
        patterns = routing.layers[layer] if decide is None else decide(layer, q, k, grid)
        attended = routed_attention(q, k, v, grid, patterns, routing.window, self.attention)
        del q, k, v
        return block.after(x, attended, modulation, self.context)


def _block_in_slices(
    block: Block,
    x: Tensor,
    layer: int,
    modulation: Tensor,
    rope: tuple[Tensor, Tensor],
    context: Tensor | None,
    grid: TokenGrid,
    routing: RoutingSpec,
    attention: Backend,
    observe: Observer | None,
    decide: Decider | None,
    at_once: int,
) -> Tensor:
    """``DiT._block`` in place: what is done to each token by itself is done to ``at_once`` tokens at a time, which then stay in a
    CPU's cache from one operation to the next (half the time at 720p), and need little memory anywhere."""
    q, k, v = (x.new_empty(*x.shape[:2], block.self_attn.heads, x.shape[2] // block.self_attn.heads) for _ in range(3))
    pieces = -(-x.shape[1] // at_once)
    at_once = -(-x.shape[1] // pieces)  # of equal size, so that one compilation serves them all
    slices = [slice(start, start + at_once) for start in range(0, x.shape[1], at_once)]
    for s in slices:
        q[:, s], k[:, s], v[:, s] = block.before(x[:, s], modulation, (rope[0][s], rope[1][s]))
    if observe is not None:
        observe(layer, q, k, grid)
    patterns = routing.layers[layer] if decide is None else decide(layer, q, k, grid)
    attended = routed_attention(q, k, v, grid, patterns, routing.window, attention)
    del q, k, v
    for s in slices:
        x[:, s] = block.after(x[:, s], attended[:, s], modulation, context)
    return x

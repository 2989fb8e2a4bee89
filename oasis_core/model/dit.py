"""The diffusion transformer: latent in, velocity out, one timestep (paper section 3.1; shaped like Wan 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention import TokenGrid, routed_attention
from ..attention.backend import Backend
from ..attention.backends import SDPA
from ..attention.problem import EVERYTHING, Problem
from ..routing.extent import Extent
from ..routing.spec import Pattern, RoutingSpec
from .config import OasisConfig
from .fold import FoldedFor, fold
from .graphs import Graphs, Step, plain, worth_graphs
from .layers import Block, Head, rope_table, timestep_embedding

CPU_TOKENS = 3072
"""Tokens that a CPU takes at a time through what is done to each token by itself: measured on one and two threads, a tenth to a
quarter faster than 1024."""
DEVICE_TOKENS = 16384
"""The same for other devices, which this many keep busy: it bounds what norms, RoPE and feed-forward need beside q, k, v."""

Observer = Callable[[int, Tensor, Tensor, TokenGrid], None]
"""Called with the layer, its q and k ``(B, L, N, D)`` and their grid."""
Decider = Callable[[int, Tensor, Tensor, TokenGrid], Callable[[], tuple[Pattern, ...]]]
"""Called likewise, before the layer's values are made: begins to decide. What it gives is called after that, and tells the
patterns of the layer's heads: so a device makes values meanwhile, and does not wait for the host."""


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
        self.graphs: Graphs | None = None
        """Folded, on CUDA: record what is done to chunks of one shape, and play it again."""
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

    def fold(self, routing: RoutingSpec, fidelity: float = 0.0, fp8: bool = False) -> None:
        """Turn all that is constant at inference into plain weights, in place; see ``model.fold``."""
        fold(self, routing, fidelity, fp8)

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
        if self.folded is not None:
            if observe is not None or decide is not None:
                raise ValueError("the transformer is folded, for upscaling with one routing alone; load it again")
            return self._latent(self._folded(z, grid, self._as_folded(self.folded, routing, timestep), poll), grid)
        rope = rope_table(grid, self.config.head_dim, self.config.rope_theta, z.device)
        time, modulation = self.time(self.timestep(0.0, z.device) if timestep is None else timestep)
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
        return self._latent(self.head(x, time), grid)

    def _latent(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        """``(B, C, t, h, w)`` of what the head gives for each token."""
        pt, ph, pw = self.config.patch
        sizes = {"t": grid.t, "h": grid.h, "p": pt, "q": ph, "r": pw}
        return rearrange(patches, "b (t h w) (p q r c) -> b c (t p) (h q) (w r)", **sizes)

    def _folded(self, z: Tensor, grid: TokenGrid, routing: RoutingSpec, poll: Callable[[], None] | None) -> Tensor:
        """What the head gives for each token ``(B, L, ...)``; ``routing``: of the heads in their new places."""
        rope = rope_table(grid, self.config.head_dim, self.config.rope_theta, z.device)
        at_once = CPU_TOKENS if z.device.type == "cpu" else DEVICE_TOKENS

        def step(layer: int, x: Tensor) -> Tensor:
            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return routed_attention(q, k, v, grid, routing.layers[layer], routing.window, self.attention)

            return self.blocks[layer](x, rope, attend, self._attend_all, at_once)

        blocks = (partial(step, layer) for layer in range(self.config.depth))
        steps: tuple[Step, ...] = (self.tokens, *blocks, self.head)
        if self.graphs is None or not self._fits_graphs(z, grid, routing.window):
            return plain(z, steps, poll)
        weights = tuple(p.data_ptr() for p in self.parameters())
        return self.graphs.run(z, steps, weights, self.attention, rope, poll)

    def _fits_graphs(self, z: Tensor, grid: TokenGrid, window: tuple[int, int, int]) -> bool:
        """Whether graphs may hold the activations, and no mask of the attention that might go meanwhile."""
        c = self.config
        numbers = 5 * z.shape[0] * grid.length * c.dim + min(grid.length, DEVICE_TOKENS) * c.ffn_dim
        if not worth_graphs(numbers, z.element_size(), z.device):
            return False
        return self.attention.chosen(Problem(grid, Extent(*window), c.heads, c.head_dim, z.dtype, z.device)) is not SDPA

    def _attend_all(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Every query sees every key, ``(B, L, N, D)``."""
        return self.attention.run(Problem.of(q, k, v, TokenGrid(1, 1, q.shape[1]), EVERYTHING), q, k, v)

    def _as_folded(self, folded: FoldedFor, routing: RoutingSpec, timestep: Tensor | None) -> RoutingSpec:
        """The routing of the heads in their new places. Raises ValueError where something else is asked for."""
        if routing != folded.routing:
            raise ValueError("the transformer is folded for another routing; load it again")
        wanted = self.timestep(folded.fidelity, self.patch_embedding.weight.device)  # the same tensor each time
        if timestep is not None and timestep is not wanted and not torch.equal(timestep.to(wanted.device), wanted):
            raise ValueError(f"the transformer is folded for fidelity {folded.fidelity}; load it again for another")
        return folded.grouped

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
        patterns = routing.layers[layer]
        if decide is None:
            q, k, v = block.before(x, modulation, rope)
        else:
            q, k, normed = block.before_values(x, modulation, rope)
            decision = decide(layer, q, k, grid)
            v = block.self_attn.values(normed)
            del normed
            patterns = decision()
        if observe is not None:
            observe(layer, q, k, grid)
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
    patterns = routing.layers[layer]
    if decide is None:
        for s in slices:
            q[:, s], k[:, s], v[:, s] = block.before(x[:, s], modulation, (rope[0][s], rope[1][s]))
    else:
        patterns = _decided_in_slices(block, x, modulation, rope, slices, (q, k, v), layer, grid, decide)
    if observe is not None:
        observe(layer, q, k, grid)
    attended = routed_attention(q, k, v, grid, patterns, routing.window, attention)
    del q, k, v
    for s in slices:
        x[:, s] = block.after(x[:, s], attended[:, s], modulation, context)
    return x


def _decided_in_slices(
    block: Block, x: Tensor, modulation: Tensor, rope: tuple[Tensor, Tensor], slices: list[slice],
    qkv: tuple[Tensor, Tensor, Tensor], layer: int, grid: TokenGrid, decide: Decider,
) -> tuple[Pattern, ...]:  # fmt: skip
    """Fills ``qkv`` slice by slice, the values while it is decided; gives the decision.

    Between the two the normed tokens are kept, as large as what the attention will give: no more memory than that needs.
    """
    q, k, v = qkv
    normed = []
    for s in slices:
        q[:, s], k[:, s], some = block.before_values(x[:, s], modulation, (rope[0][s], rope[1][s]))
        normed.append(some)
    decision = decide(layer, q, k, grid)
    for s, some in zip(slices, normed, strict=True):
        v[:, s] = block.self_attn.values(some)
    return decision()

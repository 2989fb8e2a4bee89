"""With every head global the DiT is Wan 2.1's: same numbers as Diffusers' class, at reduced width.

Weights go over name by name; our fixed ``context`` is what their text embedder puts out.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oasis_core.model import OasisConfig, PixelDecoderConfig
from oasis_core.model.dit import DiT
from oasis_core.routing import HeadPattern, RoutingSpec

pytest.importorskip("diffusers")
from diffusers import WanTransformer3DModel

TOLERANCE = 1e-4
"""Largest error as a share of the output's standard deviation: fp32 rounding. Worst seen: 1.4e-5, at timestep 1000,
whose angles Diffusers takes in fp32."""
TEXT_LENGTH, TEXT_DIM = 7, 24

OURS_TO_THEIRS = (  # the first prefix that fits is replaced
    ("patch_embedding.", "patch_embedding."),
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
    ("head.head.", "proj_out."),
    ("head.modulation", "scale_shift_table"),
)
IN_A_BLOCK = (
    ("self_attn.norm_", "attn1.norm_"),
    ("self_attn.o.", "attn1.to_out.0."),
    ("self_attn.", "attn1.to_"),
    ("cross_attn.norm_", "attn2.norm_"),
    ("cross_attn.o.", "attn2.to_out.0."),
    ("cross_attn.", "attn2.to_"),
    ("norm3.", "norm2."),
    ("ffn.0.", "ffn.net.0.proj."),
    ("ffn.2.", "ffn.net.2."),
    ("modulation", "scale_shift_table"),
)


def their_name(name: str) -> str:
    """The Diffusers name of one of the DiT's parameters (all but ``context``)."""
    start, table = "", OURS_TO_THEIRS
    if name.startswith("blocks."):
        _, layer, name = name.split(".", 2)
        start, table = f"blocks.{layer}.", IN_A_BLOCK
    ours, theirs = next(pair for pair in table if name.startswith(pair[0]))
    return start + theirs + name.removeprefix(ours)


def config(heads: int, head_dim: int, patch: tuple[int, int, int], context: int, timestep: float) -> OasisConfig:
    return OasisConfig(
        name="wan-like",
        latent_channels=6,
        patch=patch,
        dim=heads * head_dim,
        depth=3,
        heads=heads,
        ffn_dim=72,
        freq_dim=32,
        context_length=context,
        timestep=timestep,
        decoder=PixelDecoderConfig(width=2, blocks=0, hr_width=1, hr_blocks=0),
    )


def random_wan(c: OasisConfig) -> WanTransformer3DModel:
    """Diffusers' model of the same sizes, every weight random (norms and tables too)."""
    model = WanTransformer3DModel(
        patch_size=c.patch,
        num_attention_heads=c.heads,
        attention_head_dim=c.head_dim,
        in_channels=c.latent_channels,
        out_channels=c.latent_channels,
        text_dim=TEXT_DIM,
        freq_dim=c.freq_dim,
        ffn_dim=c.ffn_dim,
        num_layers=c.depth,
        cross_attn_norm=True,
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 0.3 if p.ndim == 1 or name.endswith("scale_shift_table") else p[0].numel() ** -0.5
            p.copy_(torch.randn_like(p) * spread + (0.7 if "norm" in name else 0))
    return model.eval()


def ours_from(wan: WanTransformer3DModel, c: OasisConfig, context: Tensor | None) -> DiT:
    dit = DiT(c).eval()
    theirs = wan.state_dict()
    state = {name: theirs[their_name(name)] for name in dit.state_dict() if name != "context"}
    if context is not None:
        state["context"] = context
    dit.load_state_dict(state)
    return dit


@pytest.mark.parametrize(
    ("heads", "head_dim", "patch", "grid", "timestep"),
    [
        (2, 16, (1, 2, 2), (3, 4, 6), 1000.0),
        (3, 20, (1, 2, 2), (2, 3, 5), 399.0),  # head size that 6 does not divide
        (2, 12, (2, 3, 3), (2, 3, 4), 1.0),
        (1, 24, (1, 2, 2), (1, 1, 1), 999.0),
    ],
)
@torch.no_grad()
def test_all_global_equals_wan(
    heads: int, head_dim: int, patch: tuple[int, int, int], grid: tuple[int, int, int], timestep: float
) -> None:
    torch.manual_seed(0)
    c = config(heads, head_dim, patch, TEXT_LENGTH, timestep)
    wan = random_wan(c)
    text = torch.randn(1, TEXT_LENGTH, TEXT_DIM)
    dit = ours_from(wan, c, wan.condition_embedder.text_embedder(text))
    z = torch.randn(2, c.latent_channels, *(g * p for g, p in zip(grid, patch, strict=True)))
    theirs = wan(z, torch.full((2,), timestep), encoder_hidden_states=text.expand(2, -1, -1), return_dict=False)[0]
    ours = dit(z, RoutingSpec.uniform(c.depth, c.heads, HeadPattern.GLOBAL))
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() < TOLERANCE * theirs.std()


@torch.no_grad()
def test_without_context_equals_wan_with_its_cross_attention_closed() -> None:
    torch.manual_seed(1)
    c = config(2, 16, (1, 2, 2), 0, 1000.0)
    wan = random_wan(c)
    for block in wan.blocks:
        block.attn2.to_out[0].weight.zero_()
        block.attn2.to_out[0].bias.zero_()
    z = torch.randn(1, c.latent_channels, 2, 6, 4)
    theirs = wan(z, torch.tensor([1000.0]), encoder_hidden_states=torch.randn(1, 5, TEXT_DIM), return_dict=False)[0]
    ours = ours_from(wan, c, None)(z, RoutingSpec.uniform(c.depth, c.heads, HeadPattern.GLOBAL))
    assert (ours - theirs).abs().max() < TOLERANCE * theirs.std()


def test_every_weight_of_wan_has_its_place() -> None:
    c = config(2, 16, (1, 2, 2), TEXT_LENGTH, 1000.0)
    mapped = {their_name(name) for name in DiT(c).state_dict() if name != "context"}
    theirs = set(random_wan(c).state_dict())
    assert {n for n in theirs - mapped if not n.startswith("condition_embedder.text_embedder.")} == set()
    assert mapped <= theirs


@pytest.mark.slow
@torch.no_grad()
def test_one_block_of_true_width_equals_wan() -> None:
    torch.manual_seed(2)
    c = OasisConfig("wan", depth=1, context_length=TEXT_LENGTH)  # every other size is Wan2.1-T2V-1.3B's
    wan = random_wan(c)
    text = torch.randn(1, TEXT_LENGTH, TEXT_DIM)
    dit = ours_from(wan, c, wan.condition_embedder.text_embedder(text))
    z = torch.randn(1, 16, 3, 8, 6)
    theirs = wan(z, torch.tensor([c.timestep]), encoder_hidden_states=text, return_dict=False)[0]
    routing = RoutingSpec.uniform(1, c.heads, HeadPattern.GLOBAL)
    assert (dit(z, routing) - theirs).abs().max() < TOLERANCE * theirs.std()
    dit.fold(routing)
    assert (dit(z, routing) - theirs).abs().max() < TOLERANCE * theirs.std()

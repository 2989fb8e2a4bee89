"""A Wan 2.1 text-to-video transformer made into an OASIS model to be trained.

The transformer is taken as it is. What OASIS adds is new: the projection of pixels to the latent, and the fixed context that
stands for the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import OasisConfig, OasisModel
from ..model.vae_config import WanDecoderConfig
from ..routing.spec import HeadPattern, RoutingSpec
from .dit_names import DIFFUSERS, MOST_BLOCKS, ORIGINAL, PREFIXES
from .match import Naming, match
from .metadata import Metadata
from .read import Checkpoint
from .tensor_files import TensorFiles

NAMINGS = (Naming("Wan", ORIGINAL), Naming("Diffusers", DIFFUSERS))
HEAD_DIM = 128
"""Of every Wan 2.1: https://github.com/Wan-Video/Wan2.1/blob/7c81b2f/wan/configs"""
TEXT = ("text_embedding.0.", "text_embedding.2.")
"""The text embedder, of which a context is made."""
SPREAD = 0.02
"""Noise on the context's tokens, as a share of their standard deviation: alike, they would be trained alike."""


def convert(
    base: Path,
    *,
    name: str = "oasis-1.3b",
    context_length: int = 512,
    sigma: float = 1.0,
    timestep: float = 1000.0,
    routing: RoutingSpec | None = None,
    heads: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Checkpoint:
    """An untrained OASIS model (``metadata.trained`` is false) from a Wan 2.1 file of any naming.

    Args:
        base: as for ``TensorFiles.open``.
        context_length: tokens of the learned context, 1 or more (Wan's text has 512).
        sigma, timestep: of the one step.
        routing: None: all heads global, which is what Wan computes.
        heads: None: of 128 channels each, as all of Wan 2.1 have.
        dtype: None keeps the file's (scaled fp8 becomes bf16).
        seed: of the projection and the context's noise.

    Raises:
        FileNotFoundError, ValueError: no such file, or it is no Wan 2.1 text-to-video transformer; one line.
    """
    files = TensorFiles.open(base)
    naming, prefix = _naming(base, files.shapes)
    config = _config(base, files.shapes, naming, prefix, heads)
    config = replace(config, name=name, context_length=context_length, sigma=sigma, timestep=timestep)
    routing = routing or RoutingSpec.uniform(config.depth, config.heads, HeadPattern.GLOBAL)
    routing.check_fits(config.depth, config.heads)
    with torch.device("meta"):
        model = OasisModel(config)
    dit = {n: tuple(t.shape) for n, t in model.dit.state_dict().items() if n != "context"}
    text = {
        n: files.shapes.get(prefix + naming.theirs(n), ()) for start in TEXT for n in (f"{start}weight", f"{start}bias")
    }
    names = match(str(base), {**dit, **text}, files.shapes, (naming,), (prefix,), lambda n: False)[1]
    tensors = dict(files.read(names, device, dtype))
    context = _context(tensors, text, context_length, seed)
    like = next(iter(tensors.values()))
    tensors = {f"dit.{n}": t.reshape(dit[n]) for n, t in tensors.items() if n in dit}
    tensors["dit.context"] = context.to(like.device, like.dtype)
    weight, bias = _projection(model, seed)
    tensors["project.weight"], tensors["project.bias"] = (t.to(like.device, like.dtype) for t in (weight, bias))
    model.load_state_dict(tensors, assign=True)
    metadata = Metadata(
        config, routing, "not stated", f"converted from {base.name}; projection and context untrained", False
    )
    return Checkpoint(model.eval().requires_grad_(False), metadata)


def _naming(base: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Naming, str]:
    for prefix in PREFIXES:
        for naming in NAMINGS:
            if all(prefix + naming.theirs(n) in shapes for n in ("patch_embedding.weight", "head.head.weight")):
                return naming, prefix
    some = ", ".join(sorted(shapes)[:3])
    raise ValueError(f"{base} is no Wan 2.1 transformer (it has {some}, ...); give Wan2.1-T2V-1.3B")


def _config(
    base: Path, shapes: Mapping[str, tuple[int, ...]], naming: Naming, prefix: str, heads: int | None
) -> OasisConfig:
    """What the shapes tell. Raises ValueError for an image-to-video model or one that is no Wan 2.1."""

    def shape(name: str) -> tuple[int, ...]:
        found = shapes.get(prefix + naming.theirs(name), ())
        if not found:
            raise ValueError(f"{base} ({naming.name} names) does not fit: missing {prefix + naming.theirs(name)}")
        return found

    embedding, head = shape("patch_embedding.weight"), shape("head.head.weight")
    if len(embedding) != 5 or len(head) != 2:
        raise ValueError(f"{base}: patch embedding {embedding} and head {head} are not Wan 2.1's")
    dim, channels, *patch = embedding
    out = head[0] // (patch[0] * patch[1] * patch[2])
    if out != channels:
        raise ValueError(
            f"{base} takes {channels} latent channels and gives {out}: an image-to-video model; give a text-to-video one"
        )
    depth = max(
        (i + 1 for i in range(MOST_BLOCKS) if prefix + naming.theirs(f"blocks.{i}.modulation") in shapes), default=0
    )  # fmt: skip
    published = WanDecoderConfig()
    decoder = (
        published
        if channels == published.latent_channels
        else WanDecoderConfig(latent_mean=(0.0,) * channels, latent_std=(1.0,) * channels)
    )
    return OasisConfig(
        name="wan",
        latent_channels=channels,
        patch=(patch[0], patch[1], patch[2]),
        dim=dim,
        depth=depth,
        heads=heads or max(1, dim // HEAD_DIM),
        ffn_dim=shape("blocks.0.ffn.0.weight")[0],
        freq_dim=shape("time_embedding.0.weight")[1],
        decoder=decoder,
    )


def _context(tensors: dict[str, Tensor], text: Mapping[str, tuple[int, ...]], length: int, seed: int) -> Tensor:
    """``(1, length, dim)`` fp32: what Wan's text embedder makes of the zeros that it pads a text with, and a little noise."""
    first_bias, weight, bias = (tensors[n].float() for n in (f"{TEXT[0]}bias", f"{TEXT[1]}weight", f"{TEXT[1]}bias"))
    token = F.linear(F.gelu(first_bias, approximate="tanh"), weight, bias).cpu()
    noise = torch.randn(1, length, len(token), generator=torch.Generator().manual_seed(seed))
    return token + SPREAD * token.std() * noise


def _projection(model: OasisModel, seed: int) -> tuple[Tensor, Tensor]:
    """A start for the projection: random directions that make latents of deviation about 1 of pixels of deviation 0.5."""
    out, into = model.project.weight.shape
    weight = torch.randn(out, into, generator=torch.Generator().manual_seed(seed + 1)) * 2 * into**-0.5
    return weight, torch.zeros(out)

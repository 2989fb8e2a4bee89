"""Decoders of Wan 2.1's latents from the files in which they are around."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..model.decoders import WanDecoder
from ..model.vae_config import WanDecoderConfig
from .match import Naming, match
from .tensor_files import TensorFiles
from .vae_names import DIFFUSERS, ORIGINAL, PREFIXES

WAN_NAMINGS = (Naming("Wan", ORIGINAL), Naming("Diffusers", DIFFUSERS))
ENCODER = ("encoder.", "conv1.", "quant_conv.")
"""Starts of the names of a VAE's other half."""


def load_decoder(
    path: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    config: WanDecoderConfig | None = None,
) -> WanDecoder:
    """The decoder in a Wan 2.1 VAE file: Wan's own, ComfyUI's or Diffusers'. Eval mode, no gradients.

    Args:
        dtype: None keeps the file's.
        config: None: as published.

    Raises:
        FileNotFoundError, ValueError: no such file, or it holds something else; one line.
    """
    files = TensorFiles.open(path)
    with torch.device("meta"):
        decoder = WanDecoder(config or WanDecoderConfig())
    names = match(
        str(path), shapes_of(decoder), files.shapes, WAN_NAMINGS, PREFIXES, lambda n: n.startswith(ENCODER)
    )[1]  # fmt: skip
    fill(decoder, dict(files.read(names, device, dtype)))
    return decoder


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of all its tensors."""
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module on the meta device its tensors; sides of 1 may differ. Eval mode, no gradients."""
    shapes = shapes_of(module)
    module.load_state_dict({n: t.reshape(shapes[n]) for n, t in tensors.items()}, assign=True)
    for name, weight in module.named_parameters():
        if weight.ndim in (4, 5):  # the layout of its convolutions' inputs
            last = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
            weight.data = weight.data.contiguous(memory_format=last)
        assert not weight.is_meta, name
    module.eval().requires_grad_(False)

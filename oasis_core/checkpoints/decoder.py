"""Decoders of Wan 2.1's latents from the files in which they are around."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..model.decoders import TaehvDecoder, WanDecoder
from ..model.vae_config import TaehvConfig, WanDecoderConfig
from .match import Naming, match
from .tensor_files import TensorFiles
from .vae_names import DIFFUSERS, ORIGINAL, PREFIXES

WAN_NAMINGS = (Naming("Wan", ORIGINAL), Naming("Diffusers", DIFFUSERS))
ENCODER = ("encoder.", "conv1.", "quant_conv.")
"""Starts of the names of a VAE's other half."""
TAEHV_MARK = "decoder.22.bias"
"""A tensor that tiny decoders have and others do not."""
LIGHT = "light"
"""In the name of files of LightX2V's tiny decoder, which takes latents in the VAE's scale; taew2_1 takes them normalised."""


def load_decoder(
    path: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    config: WanDecoderConfig | None = None,
) -> WanDecoder | TaehvDecoder:
    """The decoder in a Wan 2.1 VAE file (Wan's own, ComfyUI's or Diffusers'), or a taew2_1 file. Eval mode, no gradients.

    Args:
        dtype: None keeps the file's.
        config: None: as published, of the width that the file has.

    Raises:
        FileNotFoundError, ValueError: no such file, or it holds something else; one line.
    """
    files = TensorFiles.open(path)
    light = LIGHT in path.name.lower()
    decoder, names = _place(str(path), files.shapes, config, light)
    fill(decoder, dict(files.read(names, device, dtype)))
    return decoder


def decoder_of(
    tensors: Mapping[str, Tensor], config: WanDecoderConfig | None = None, light: bool = False
) -> WanDecoder | TaehvDecoder:
    """``load_decoder`` for the tensors of a VAE that is loaded already (ComfyUI's); they are shared, not copied.

    ``light``: a tiny decoder is of the kind that was trained on the VAE's scale.
    """
    shapes = {n: tuple(t.shape) for n, t in tensors.items()}
    decoder, names = _place("the VAE", shapes, config, light)
    fill(decoder, {ours: tensors[theirs].detach() for ours, theirs in names.items()})
    return decoder


def _place(
    what: str, shapes: Mapping[str, tuple[int, ...]], config: WanDecoderConfig | None, light: bool
) -> tuple[WanDecoder | TaehvDecoder, dict[str, str]]:
    """The kind of decoder that ``shapes`` are of, on the meta device, and our names -> theirs."""
    decoder: WanDecoder | TaehvDecoder
    config = config or WanDecoderConfig(width=_width(shapes))
    with torch.device("meta"):
        if TAEHV_MARK in shapes:
            channels = shapes["decoder.1.weight"][1]
            width, mean, std = shapes["decoder.22.weight"][1], config.latent_mean, config.latent_std
            if channels != config.latent_channels or shapes["decoder.22.weight"][0] != 3:
                raise ValueError(
                    f"{what} is a tiny decoder for {channels} latent channels and {shapes['decoder.22.weight'][0]} image "
                    f"channels; Wan 2.1's (taew2_1) has {config.latent_channels} and 3"
                )
            decoder = TaehvDecoder(TaehvConfig(width, channels, mean if light else (), std if light else ()))
            namings: tuple[Naming, ...] = (Naming("TAEHV", {"layers.": "decoder."}),)
            # Files may hold more output frames for a growing layer than are used: the last ones count.
            rows = {f"layers.{n}.conv.weight" for n in (7, 13, 19)}
            wanted = {n: shapes.get(n.replace("layers.", "decoder."), s) if n in rows else s
                      for n, s in shapes_of(decoder).items()}  # fmt: skip
        else:
            decoder = WanDecoder(config)
            namings, wanted = WAN_NAMINGS, shapes_of(decoder)
    return decoder, match(what, wanted, shapes, namings, PREFIXES, lambda n: n.startswith(ENCODER))[1]


def _width(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Channels before the last convolution of a Wan VAE; the published width where there is none."""
    for prefix in PREFIXES:
        for naming in WAN_NAMINGS:
            if len(shape := shapes.get(prefix + naming.theirs("conv_out.weight"), ())) == 5:
                return shape[1]
    return WanDecoderConfig().width


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of all its tensors."""
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module on the meta device its tensors; sides of 1 may differ. Eval mode, no gradients."""
    shapes = shapes_of(module)
    # [-rows:] is everything but for a growing layer of TAEHV, whose file may hold more.
    module.load_state_dict({n: t[-shapes[n][0] :].reshape(shapes[n]) for n, t in tensors.items()}, assign=True)
    for name, weight in module.named_parameters():
        if weight.ndim in (4, 5):  # the layout of its convolutions' inputs
            last = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
            weight.data = weight.data.contiguous(memory_format=last)
        assert not weight.is_meta, name
    module.eval().requires_grad_(False)

"""Stands where a decoder is still to come from a file of its own."""

from __future__ import annotations

from torch import Tensor, nn


class MissingDecoder(nn.Module):
    """Says what to do when it is asked to decode."""

    remedy = (
        "this model decodes with the Wan 2.1 VAE, which lies in a file of its own: give it with --decoder (in ComfyUI: "
        "connect it to OASIS Load Model), such as wan_2.1_vae.safetensors or taew2_1.safetensors"
    )

    def forward(self, z: Tensor, state: object = None) -> Tensor:
        raise ValueError(self.remedy)

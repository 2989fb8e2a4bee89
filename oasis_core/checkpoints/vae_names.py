"""Names of the Wan 2.1 VAE decoder's tensors in the files that are around. Tables, no code."""

from __future__ import annotations

PREFIXES = ("", "first_stage_model.", "vae.")
"""What may stand before every name."""

_RESIDUAL = {"norm1.": "residual.0.", "conv1.": "residual.2.", "norm2.": "residual.3.", "conv2.": "residual.6."}
_UP = {"conv.": "resample.1.", "time_conv.": "time_conv."}
_ATTENTION = {"norm.": "norm.", "to_qkv.": "to_qkv.", "proj.": "proj."}

ORIGINAL = {
    "post_quant.": "conv2.",
    "conv_in.": "decoder.conv1.",
    **{f"mid.{i}.{ours}": f"decoder.middle.{i}.{theirs}" for i in (0, 2) for ours, theirs in _RESIDUAL.items()},
    **{f"mid.1.{ours}": f"decoder.middle.1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{
        f"up.{i}.{ours}": f"decoder.upsamples.{i}.{theirs}"
        for i in range(15)
        for ours, theirs in {**_RESIDUAL, "shortcut.": "shortcut.", **_UP}.items()
    },
    "norm_out.": "decoder.head.0.",
    "conv_out.": "decoder.head.2.",
}
"""Start of our name -> start of the name in Wan's own file, which ComfyUI's is too."""

_DIFFUSERS_RESIDUAL = ("norm1.", "conv1.", "norm2.", "conv2.")
DIFFUSERS = {
    "post_quant.": "post_quant_conv.",
    "conv_in.": "decoder.conv_in.",
    **{f"mid.{i}.{n}": f"decoder.mid_block.resnets.{i // 2}.{n}" for i in (0, 2) for n in _DIFFUSERS_RESIDUAL},
    **{f"mid.1.{n}": f"decoder.mid_block.attentions.0.{n}" for n in _ATTENTION},
    **{
        f"up.{4 * stage + block}.{ours}": f"decoder.up_blocks.{stage}.resnets.{block}.{theirs}"
        for stage in range(4)
        for block in range(3)
        for ours, theirs in (*((n, n) for n in _DIFFUSERS_RESIDUAL), ("shortcut.", "conv_shortcut."))
    },
    **{
        f"up.{4 * stage + 3}.{ours}": f"decoder.up_blocks.{stage}.upsamplers.0.{theirs}"
        for stage in range(3)
        for ours, theirs in _UP.items()
    },
    "norm_out.": "decoder.norm_out.",
    "conv_out.": "decoder.conv_out.",
}
"""Start of our name -> start of the name in Diffusers' file."""

"""Names of Wan 2.1's transformer in the files that are around. Tables, no code. Ours are Wan's own."""

from __future__ import annotations

PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.")
"""What may stand before every name: nothing, ComfyUI's, and what other tools leave."""
MOST_BLOCKS = 64
"""More than any Wan 2.1 has (30 and 40)."""

ORIGINAL = {"": ""}
"""Start of our name -> start of the name in Wan's own file."""

_ATTENTION = {
    "norm_q.": "norm_q.",
    "norm_k.": "norm_k.",
    "q.": "to_q.",
    "k.": "to_k.",
    "v.": "to_v.",
    "o.": "to_out.0.",
}
_BLOCK = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _ATTENTION.items()},
    "norm3.": "norm2.",
    "ffn.0.": "ffn.net.0.proj.",
    "ffn.2.": "ffn.net.2.",
    "modulation": "scale_shift_table",
}
DIFFUSERS = {
    "patch_embedding.": "patch_embedding.",
    "time_embedding.0.": "condition_embedder.time_embedder.linear_1.",
    "time_embedding.2.": "condition_embedder.time_embedder.linear_2.",
    "time_projection.1.": "condition_embedder.time_proj.",
    "text_embedding.0.": "condition_embedder.text_embedder.linear_1.",
    "text_embedding.2.": "condition_embedder.text_embedder.linear_2.",
    **{f"blocks.{i}.{ours}": f"blocks.{i}.{theirs}" for i in range(MOST_BLOCKS) for ours, theirs in _BLOCK.items()},
    "head.head.": "proj_out.",
    "head.modulation": "scale_shift_table",
}
"""Start of our name -> start of the name in Diffusers' file."""

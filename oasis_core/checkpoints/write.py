"""From a model to a file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..model import OasisModel
from .metadata import Metadata


def save_checkpoint(path: Path, model: OasisModel, metadata: Metadata, dtype: torch.dtype | None = None) -> None:
    """Write ``model`` with its metadata; the file appears whole or not at all.

    Args:
        dtype: stored type (fp16 for what ships); None keeps each tensor's own.

    Raises:
        ValueError: the metadata's config or routing is not this model's.
    """
    if metadata.config != model.config:
        raise ValueError(f"metadata is of config {metadata.config.name!r}, the model's is {model.config.name!r}")
    metadata.routing.check_fits(model.config.depth, model.config.heads)
    tensors = {n: t.detach().to("cpu", dtype or t.dtype).contiguous() for n, t in model.state_dict().items()}
    part = path.with_name(path.name + ".part")
    try:
        save_file(tensors, part, metadata=metadata.to_header())
        part.chmod(0o644)  # safetensors makes files that only their owner may read
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

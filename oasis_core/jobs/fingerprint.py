"""Whether two things are the same: files, models, routings, by SHA-256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from ..model import OasisModel
from ..video_io.reader import image_sequence

BLOCK = 1 << 20
"""Bytes read at a time."""
SAMPLE = 1 << 16
"""Bytes of one sample of a large file."""
SAMPLES = 32
"""Samples of a large file, evenly spread; images of a sequence that are looked into."""


def hash_input(path: Path) -> dict[str, str | int]:
    """What tells an input from another, whatever its name and time: its bytes, and a hash of samples of them.

    For an image sequence: files, bytes in all, and a hash of their names, sizes and samples of some.

    Raises:
        OSError: it cannot be read. ValueError: a folder or pattern without images.
    """
    images = image_sequence(path)
    if images is None:
        return {"bytes": path.stat().st_size, "content": _hash_samples(path, SAMPLES)}
    sizes = [file.stat().st_size for file in images]
    digest = hashlib.sha256(json.dumps([[f.name, s] for f, s in zip(images, sizes, strict=True)]).encode())
    for file in images[:: max(1, len(images) // SAMPLES)]:
        digest.update(_hash_samples(file, 2).encode())
    return {"images": len(images), "bytes": sum(sizes), "content": digest.hexdigest()}


def hash_file(path: Path) -> str:
    """Of all bytes; of a folder: of its files' names and bytes. Raises OSError."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(file.name.encode() if path.is_dir() else b"")
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def hash_model(model: OasisModel, fp8: bool = False) -> str:
    """Of the config and all weights, in the number format that they are used in; of a folded model as it was before.

    ``fp8``: its matrices will be.
    """
    if model.loaded_as is not None:
        return model.loaded_as
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    if fp8:
        digest.update(b"fp8")
    return digest.hexdigest()


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_samples(path: Path, samples: int) -> str:
    """Of ``samples`` pieces from the first to the last byte; of everything where that is little."""
    size = path.stat().st_size
    if size <= SAMPLE * samples:
        return hash_file(path)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for number in range(samples):
            stream.seek((size - SAMPLE) * number // (samples - 1))
            digest.update(stream.read(SAMPLE))
    return digest.hexdigest()

"""What people feed the nodes: thousands of frames, 4K."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oasis_core.checkpoints import load_checkpoint
from oasis_core.pipeline import Upscaler, UpscaleSettings

pytestmark = pytest.mark.comfy

MODEL = {"class_type": "OasisLoadModel", "inputs": {"model_name": "random.safetensors", "dtype": "fp32"}}
TOLERANCE = 1.01 / 255


def picture(client: Any, folder: Path, height: int, width: int) -> tuple[dict[str, Any], torch.Tensor]:
    values = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = folder / f"format_{height}x{width}.png"
    Image.fromarray(values).save(path, compress_level=1)
    load = {"class_type": "LoadImage", "inputs": {"image": client.upload(path, path.name)}}
    return load, torch.from_numpy(values).float() / 255


def upscale(images: str, scale: float) -> dict[str, Any]:
    inputs = {"images": [images, 0], "model": ["model", 0], "scale": scale, "width": 0, "height": 0}
    return {"class_type": "OasisUpscale", "inputs": {**inputs, "color": "wavelet", "chunk_frames": 16, "tile": 0}}


def test_thousands_of_frames(client: Any, tmp_path: Path) -> None:
    load, _ = picture(client, tmp_path, 17, 33)
    repeat = {"class_type": "RepeatImageBatch", "inputs": {"image": ["load", 0], "amount": 2000}}
    last = {"class_type": "ImageFromBatch", "inputs": {"image": ["up", 0], "batch_index": 1999, "length": 1}}
    save = {"class_type": "PreviewImage", "inputs": {"images": ["last", 0]}}
    prompt = {"load": load, "many": repeat, "model": MODEL, "up": upscale("many", 1.0), "last": last, "save": save}
    assert client.pictures(client.run(prompt), "save", tmp_path).shape == (1, 17, 33, 3)


@pytest.mark.slow
def test_4k(client: Any, base_directory: Path, tmp_path: Path) -> None:
    """In tiles, by itself."""
    load, frame = picture(client, tmp_path, 2160, 3840)
    save = {"class_type": "PreviewImage", "inputs": {"images": ["up", 0]}}
    run = client.run({"load": load, "model": MODEL, "up": upscale("load", 1.0), "save": save})
    checkpoint = load_checkpoint(base_directory / "models/oasis/random.safetensors")
    core = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(scale=1.0)).upscale(frame[None])
    assert (client.pictures(run, "save", tmp_path) - core).abs().max() < TOLERANCE

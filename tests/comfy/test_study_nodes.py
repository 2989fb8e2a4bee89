"""OasisCompare and the routing rules in the real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from oasis_core.checkpoints import load_checkpoint
from oasis_core.compare import CompareMode, compare_frames
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing.rules import apply_rules

pytestmark = pytest.mark.comfy

MODEL = {"class_type": "OasisLoadModel", "inputs": {"model_name": "random.safetensors", "dtype": "fp32"}}
TOLERANCE = 1.01 / 255


@pytest.fixture(scope="module")
def still(client: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Tensor]:
    """A node that loads a picture ``(17, 33)``, and the picture."""
    picture = np.random.default_rng(1).integers(0, 256, (17, 33, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("still") / "odd_still.png"
    Image.fromarray(picture).save(path)
    load = {"class_type": "LoadImage", "inputs": {"image": client.upload(path, path.name)}}
    return load, torch.from_numpy(picture).float() / 255


def upscale(model: str, scale: float = 2.0) -> dict[str, Any]:
    inputs = {"images": ["load", 0], "model": [model, 0], "scale": scale, "width": 0, "height": 0, "color": "wavelet"}
    return {"class_type": "OasisUpscale", "inputs": {**inputs, "chunk_frames": 4, "tile": 0}}


def routed(mode: str, rules: str) -> dict[str, Any]:
    inputs = {"model": ["model", 0], "mode": mode, "global_share": 0.25, "intra_frame_share": 0.25, "json": ""}
    return {"class_type": "OasisHeadRouting", "inputs": {**inputs, "rules": rules}}


def compare(**changes: object) -> dict[str, Any]:
    inputs = {"before": ["load", 0], "after": ["up", 0], "frame": -1, "mode": "wipe", "position": 0.25, "gain": 3.0}
    return {"class_type": "OasisCompare", "inputs": {**inputs, **changes}}


@pytest.mark.parametrize("mode", [m.value for m in CompareMode])
def test_compare_is_the_cores_picture(
    client: Any, still: tuple[dict[str, Any], Tensor], base_directory: Path, mode: str, tmp_path: Path
) -> None:
    load, picture = still
    run = client.run({"load": load, "model": MODEL, "up": upscale("model"), "seen": compare(mode=mode)})
    checkpoint = load_checkpoint(base_directory / "models/oasis/random.safetensors")
    after = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(scale=2.0)).upscale(picture[None])
    core = compare_frames(picture, after[0], CompareMode.of(mode), 0.25, 3.0)
    assert (client.pictures(run, "seen", tmp_path)[0] - core).abs().max() < TOLERANCE


def test_a_frame_that_is_not_there_is_one_clear_line(client: Any, still: tuple[dict[str, Any], Tensor]) -> None:
    run = client.run({"load": still[0], "model": MODEL, "up": upscale("model"), "seen": compare(frame=3)})
    assert run.error == "frame is 3; it must be from 0 to 0, or -1 for the middle"


def test_rules_change_the_routing(
    client: Any, still: tuple[dict[str, Any], Tensor], base_directory: Path, tmp_path: Path
) -> None:
    load, picture = still
    rules = "0: window; 1: 0-1 global"
    prompt = {"load": load, "model": MODEL, "routed": routed("from checkpoint", rules), "up": upscale("routed", 4.0)}
    run = client.run({**prompt, "save": {"class_type": "PreviewImage", "inputs": {"images": ["up", 0]}}})
    checkpoint = load_checkpoint(base_directory / "models/oasis/random.safetensors")
    routing = apply_rules(checkpoint.routing, rules)
    core = Upscaler(checkpoint.model, routing, UpscaleSettings()).upscale(picture[None])
    assert (client.pictures(run, "save", tmp_path) - core).abs().max() < TOLERANCE
    wrong = client.run({**prompt, "routed": routed("all window", "7: window"), "seen": compare()})
    assert wrong.error == "routing rule '7: window': layer 7 is not within 0 to 1"

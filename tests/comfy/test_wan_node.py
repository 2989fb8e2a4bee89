"""A small model of the full size's kind in the real server: its decoder comes from ComfyUI's own Load VAE."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from oasis_core.checkpoints import load_checkpoint, save_checkpoint
from oasis_core.checkpoints.decoder import load_decoder
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.checkpoints.vae_names import ORIGINAL
from oasis_core.color import ColorMethod
from oasis_core.model import OasisModel
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import HeadPattern, RoutingSpec
from oasis_core.routing.auto import AutoRouting
from oasis_core.routing.calibrated import calibrate
from oasis_core.routing.spec import parse_patterns

pytestmark = pytest.mark.comfy
TOLERANCE = 1.01 / 255
"""SaveImage cuts to 8 bits; a value on the border may fall to either side."""
NARROW = "intra-frame, 1x1x1"
"""Candidates that change the picture of a small frame."""


def neighbour(name: str) -> ModuleType:
    """A test file of the folder above: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(base_directory: Path) -> tuple[Path, Path]:
    """Model and VAE, in ComfyUI's folders."""
    small, wan = neighbour("test_full_size_pipeline"), neighbour("test_wan_decoder")
    torch.manual_seed(0)
    model = small.random_model(replace(small.CONFIG, decoder=WanDecoderConfig()))  # older ComfyUI knows no other width
    bare = OasisModel(model.config)
    bare.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("decoder.")})
    paths = base_directory / "models/oasis/wan_kind.safetensors", base_directory / "models/vae/wan_2.1_vae.safetensors"
    for trained in (True, False):
        path = paths[0] if trained else paths[0].with_name("untrained.safetensors")
        save_checkpoint(path, bare, Metadata(model.config, small.ROUTING, "none", "", trained))
    dense = RoutingSpec.uniform(model.config.depth, model.config.heads, HeadPattern.GLOBAL)
    save_checkpoint(paths[0].with_name("dense_wan.safetensors"), bare, Metadata(model.config, dense, "none", "", True))
    paths[1].parent.mkdir(parents=True, exist_ok=True)
    state = wan.as_file(model.decoder, ORIGINAL, "")
    state = {n: t for n, t in state.items() if not n.startswith(wan.ENCODER)}
    save_file({**state, "encoder.conv1.weight": torch.zeros(96, 3, 3, 3, 3)}, paths[1])  # Load VAE looks at that one
    return paths


def prompt(client: Any, folder: Path, *, vae: bool, model: str = "wan_kind.safetensors") -> dict[str, Any]:
    picture = folder / "one.png"
    values = torch.randint(0, 256, (16, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(values.numpy()).save(picture)
    loader: dict[str, Any] = {"model_name": model, "dtype": "fp32"}
    nodes: dict[str, Any] = {
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "wan_2.1_vae.safetensors"}},
        "image": {"class_type": "LoadImage", "inputs": {"image": client.upload(picture, picture.name)}},
        "frames": {"class_type": "RepeatImageBatch", "inputs": {"image": ["image", 0], "amount": 6}},
        "model": {"class_type": "OasisLoadModel", "inputs": loader},
        "up": {
            "class_type": "OasisUpscale",
            "inputs": {"images": ["frames", 0], "model": ["model", 0], "scale": 2.0, "width": 0, "height": 0,
                       "color": "none", "chunk_frames": 5, "tile": 0},
        },
        "save": {"class_type": "SaveImage", "inputs": {"images": ["up", 0], "filename_prefix": "wan"}},
    }  # fmt: skip
    if vae:
        loader["vae"] = ["vae", 0]
    return nodes


def test_decodes_with_the_vae_that_is_connected(client: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
    out = client.pictures(client.run(prompt(client, tmp_path, vae=True)), "save", tmp_path)
    checkpoint = load_checkpoint(files[0])
    checkpoint.model.attach_decoder(load_decoder(files[1]))
    settings = UpscaleSettings(scale=2.0, color=ColorMethod.NONE, chunk_frames=5, tile=0)
    frame = torch.from_numpy(np.array(Image.open(tmp_path / "one.png"))).float() / 255
    expected = Upscaler(checkpoint.model, checkpoint.routing, settings).upscale(frame.expand(6, -1, -1, -1))
    assert out.shape == expected.shape == (6, 32, 64, 3)
    assert expected.std() > 0.05
    assert (out - expected.clamp(0, 1)).abs().max() <= TOLERANCE


def expected(
    files: tuple[Path, Path],
    tmp_path: Path,
    routing: RoutingSpec | AutoRouting | None = None,
    rule: float | None = None,
) -> torch.Tensor:
    """What the library makes of the prompt's frames with the dense model; ``rule``: calibrated on them by that budget."""
    checkpoint = load_checkpoint(files[0].with_name("dense_wan.safetensors"))
    frame = torch.from_numpy(np.array(Image.open(tmp_path / "one.png"))).float() / 255
    frames = frame.expand(6, -1, -1, -1)
    settings = UpscaleSettings(scale=2.0, color=ColorMethod.NONE, chunk_frames=5, tile=0)
    if rule is not None:
        alone = Upscaler(checkpoint.model, checkpoint.routing, settings, decodes=False)
        routing = calibrate(
            alone, "x", [("x", frames)], "budget", rule, patterns=parse_patterns(NARROW), queries=0
        ).routing
    checkpoint.model.attach_decoder(load_decoder(files[1]))
    return Upscaler(checkpoint.model, routing or checkpoint.routing, settings).upscale(frames).clamp(0, 1)


def test_calibrates_without_a_vae_and_upscales_with_what_it_found(
    client: Any, files: tuple[Path, Path], tmp_path: Path
) -> None:
    nodes = prompt(client, tmp_path, vae=True, model="dense_wan.safetensors")
    nodes["bare"] = {
        "class_type": "OasisLoadModel", "inputs": {"model_name": "dense_wan.safetensors", "dtype": "fp32"},
    }  # fmt: skip
    nodes["found"] = {
        "class_type": "OasisCalibrateRouting",
        "inputs": {"images": ["frames", 0], "model": ["bare", 0], "rule": "budget", "budget": 0.2, "threshold": 0.5,
                   "patterns": NARROW, "scale": 2.0, "chunk_frames": 5, "queries": 0, "seed": 0},
    }  # fmt: skip
    nodes["routed"] = {
        "class_type": "OasisHeadRouting",
        "inputs": {"model": ["model", 0], "mode": "JSON", "global_share": 0.25, "intra_frame_share": 0.25,
                   "json": ["found", 1]},
    }  # fmt: skip
    nodes["up"]["inputs"]["model"] = ["routed", 0]
    out = client.pictures(client.run(nodes), "save", tmp_path)
    assert (out - expected(files, tmp_path, rule=0.2)).abs().max() <= TOLERANCE
    assert (out - expected(files, tmp_path)).abs().max() > 1.3 * TOLERANCE


def test_decides_for_each_shot(client: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
    nodes = prompt(client, tmp_path, vae=True, model="dense_wan.safetensors")
    nodes["auto"] = {
        "class_type": "OasisAutoRouting",
        "inputs": {"model": ["model", 0], "rule": "budget", "threshold": 0.5, "budget": 0.2,
                   "patterns": NARROW, "queries": 128, "seed": 0},
    }  # fmt: skip
    nodes["up"]["inputs"]["model"] = ["auto", 0]
    out = client.pictures(client.run(nodes), "save", tmp_path)
    assert (
        out - expected(files, tmp_path, AutoRouting("budget", 0.2, patterns=parse_patterns(NARROW)))
    ).abs().max() <= TOLERANCE
    assert (out - expected(files, tmp_path)).abs().max() > 1.3 * TOLERANCE


def test_says_what_is_missing(client: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
    run = client.run(prompt(client, tmp_path, vae=False))
    assert run.end == "execution_error"
    assert "connect it to OASIS Load Model" in run.error
    run = client.run(prompt(client, tmp_path, vae=True, model="untrained.safetensors"))
    assert "not trained yet" in run.error
    run = client.run(prompt(client, tmp_path, vae=True, model="random.safetensors"))
    assert "takes no other" in run.error

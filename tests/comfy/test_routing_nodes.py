"""OasisCalibrateRouting and OasisRoutingMap in the real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from oasis_core.checkpoints import load_checkpoint, save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import HeadPattern, RoutingSpec
from oasis_core.routing.attention_map import attention_map, attention_picture
from oasis_core.routing.auto import AutoRouting
from oasis_core.routing.calibrated import CalibratedRouting, calibrate
from oasis_core.routing.picture import NamedRouting, routing_picture
from oasis_core.routing.spec import parse_patterns

pytestmark = pytest.mark.comfy

TOLERANCE = 1.01 / 255
PATTERNS = "window, 1x3x3"


@pytest.fixture(scope="module")
def still(client: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Tensor]:
    """A node that loads a picture ``(40, 56)``, and the picture."""
    picture = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("still") / "routing_still.png"
    Image.fromarray(picture).save(path)
    load = {"class_type": "LoadImage", "inputs": {"image": client.upload(path, path.name)}}
    return load, torch.from_numpy(picture).float() / 255


@pytest.fixture(scope="module")
def dense(base_directory: Path) -> Path:
    """The random model, called dense."""
    source = load_checkpoint(base_directory / "models/oasis/random.safetensors")
    routing = RoutingSpec.uniform(source.config.depth, source.config.heads, HeadPattern.GLOBAL)
    path = base_directory / "models/oasis/random_dense.safetensors"
    save_checkpoint(path, source.model, Metadata(source.config, routing, "Apache-2.0"))
    return path


def model(name: str = "random_dense") -> dict[str, Any]:
    inputs = {"model_name": f"{name}.safetensors", "dtype": "fp32"}
    return {"class_type": "OasisLoadModel", "inputs": inputs}


def calibrated(source: str = "model", **changes: object) -> dict[str, Any]:
    inputs = {
        "images": ["load", 0], "model": [source, 0], "rule": "budget", "budget": 0.5, "threshold": 0.5,
        "patterns": PATTERNS, "scale": 4.0, "chunk_frames": 4, "queries": 64, "seed": 3,
    }  # fmt: skip
    return {"class_type": "OasisCalibrateRouting", "inputs": {**inputs, **changes}}


def shown(**changes: object) -> dict[str, Any]:
    inputs = {"model": ["found", 0], "view": "routing", "layer": 1, "head": 2, "time": 0.5, "y": 0.2, "x": 0.9}
    return {"class_type": "OasisRoutingMap", "inputs": {**inputs, **changes}}


def core(dense: Path, picture: Tensor) -> CalibratedRouting:
    checkpoint = load_checkpoint(dense)
    up = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(chunk_frames=4))
    clips = [("images", picture[None])]
    return calibrate(
        up, checkpoint.config.name, clips, "budget", 0.5, patterns=parse_patterns(PATTERNS), queries=64, seed=3
    )


def pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).float() / 255


def test_the_map_of_a_calibration_is_the_cores(
    client: Any, still: tuple[dict[str, Any], Tensor], dense: Path, tmp_path: Path
) -> None:
    """So the routing and the divergences that went through the graph are the core's own."""
    load, picture = still
    prompt = {"load": load, "model": model(), "found": calibrated(), "map": shown(json=["found", 1])}
    both = {**prompt, "map": shown(json=["found", 1], other=["model", 0])}
    expected = core(dense, picture)
    of_model = NamedRouting("random", expected.routing, expected.kl, expected.sizes)
    dense_one = NamedRouting("random", load_checkpoint(dense).routing, expected.kl, expected.sizes)
    for graph, pair in ((prompt, [of_model]), (both, [of_model, dense_one])):
        run = client.run(graph)
        assert (client.pictures(run, "map", tmp_path)[0] - pixels(routing_picture(pair))).abs().max() < TOLERANCE
    assert 0 < expected.routing.share(HeadPattern.GLOBAL) < 1


def test_what_a_head_looks_at_is_the_cores_picture(
    client: Any, still: tuple[dict[str, Any], Tensor], dense: Path, tmp_path: Path
) -> None:
    load, picture = still
    prompt = {"load": load, "model": model(), "found": calibrated(), "map": shown(view="attention", images=["load", 0])}
    run = client.run(prompt)
    checkpoint, routing = load_checkpoint(dense), core(dense, picture).routing
    up = Upscaler(checkpoint.model, routing, UpscaleSettings())
    expected = attention_picture(attention_map(up, picture[None], 1, 2, at=0.5, y=0.2, x=0.9))
    difference = (client.pictures(run, "map", tmp_path)[0] - pixels(expected)).abs()
    assert difference.mean() < 1e-3


def test_the_routing_that_was_found_upscales(
    client: Any, still: tuple[dict[str, Any], Tensor], dense: Path, tmp_path: Path
) -> None:
    load, picture = still
    inputs = {"images": ["load", 0], "model": ["found", 0], "scale": 4.0, "width": 0, "height": 0, "color": "wavelet"}
    up = {"class_type": "OasisUpscale", "inputs": {**inputs, "chunk_frames": 4, "tile": 0}}
    save = {"class_type": "PreviewImage", "inputs": {"images": ["up", 0]}}
    run = client.run({"load": load, "model": model(), "found": calibrated(), "up": up, "save": save})
    checkpoint = load_checkpoint(dense)
    expected = Upscaler(checkpoint.model, core(dense, picture).routing, UpscaleSettings(chunk_frames=4)).upscale(
        picture[None]
    )
    assert (client.pictures(run, "save", tmp_path) - expected).abs().max() < TOLERANCE


def automatic(source: str = "model", **changes: object) -> dict[str, Any]:
    inputs = {"rule": "threshold", "threshold": 1.0, "budget": 0.5, "patterns": PATTERNS, "queries": 64, "seed": 3}
    return {"class_type": "OasisAutoRouting", "inputs": {"model": [source, 0], **inputs, **changes}}


def test_a_routing_decided_as_the_clip_runs(
    client: Any, still: tuple[dict[str, Any], Tensor], dense: Path, tmp_path: Path
) -> None:
    load, picture = still
    inputs = {"images": ["load", 0], "model": ["auto", 0], "scale": 4.0, "width": 0, "height": 0, "color": "wavelet"}
    up = {"class_type": "OasisUpscale", "inputs": {**inputs, "chunk_frames": 4, "tile": 0}}
    save = {"class_type": "PreviewImage", "inputs": {"images": ["up", 0]}}
    run = client.run({"load": load, "model": model(), "auto": automatic(), "up": up, "save": save})
    checkpoint = load_checkpoint(dense)
    auto = AutoRouting("threshold", 1.0, checkpoint.routing.window, parse_patterns(PATTERNS), 64, 3)
    expected = Upscaler(checkpoint.model, auto, UpscaleSettings(chunk_frames=4)).upscale(picture[None])
    assert (client.pictures(run, "save", tmp_path) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"found": calibrated("routed")},
            "model random cannot be calibrated: only 25% of its heads were trained with global",
        ),
        ({"found": calibrated(patterns="5x5")}, "pattern is '5x5'; known patterns: global, intra-frame, window"),
        (
            {"found": calibrated(budget=0.001)},
            "attention budget is 0.001 of dense; with these patterns it must be at least",
        ),
        ({"found": automatic("routed")}, "model random cannot be calibrated: only 25%"),
        ({"found": automatic()}, "this model's routing is decided while a clip runs: there is none to draw"),
        ({"map": shown(view="attention")}, "view attention needs images: connect the clip's low-quality frames"),
        ({"map": shown(view="attention", images=["load", 0], layer=7)}, "layer is 7; this model has 2: give 0 to 1"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(
    client: Any, still: tuple[dict[str, Any], Tensor], dense: Path, changes: dict[str, Any], message: str
) -> None:
    prompt = {"load": still[0], "model": model(), "routed": model("random"), "found": calibrated(), "map": shown()}
    run = client.run({**prompt, **changes})
    assert run.error.startswith(message)
    assert "\n" not in run.error

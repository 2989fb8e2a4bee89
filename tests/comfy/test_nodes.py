"""The nodes in the real server: what they do is the core's own result, what they say is one clear line."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from oasis_core.checkpoints import load_checkpoint
from oasis_core.color import ColorMethod, correct_color
from oasis_core.geometry import resize
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing.extent import Extent
from oasis_core.routing.spec import HeadPattern, RoutingSpec

pytestmark = pytest.mark.comfy

NODES = (
    "OasisLoadModel", "OasisHeadRouting", "OasisUpscale", "OasisUpscaleVideo", "OasisColorCorrect", "OasisCompare",
    "OasisCalibrateRouting", "OasisRoutingMap", "OasisAutoRouting",
)  # fmt: skip
MODEL = {"class_type": "OasisLoadModel", "inputs": {"model_name": "random.safetensors", "dtype": "fp32"}}
SETTINGS = {"scale": 2.5, "width": 0, "height": 0, "color": "wavelet", "chunk_frames": 4, "tile": 0}
TOLERANCE = 1.01 / 255
"""SaveImage cuts to 8 bits; a value on the border may fall to either side."""
HALF_TOLERANCE = 0.02
"""Random weights: measured 0.007 in bf16, 0.004 in fp16."""


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Five frames ``(5, 20, 28, 3)`` of exact 8-bit values."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (5, 20, 28, 3), dtype=np.uint8)).float() / 255


@pytest.fixture(scope="module")
def batch(client: Any, frames: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Prompt nodes whose ``["batch", 0]`` is ``frames``, uploaded as pictures."""
    folder, prompt = tmp_path_factory.mktemp("frames"), {}
    for i, frame in enumerate(frames):
        path = folder / f"frame{i}.png"
        Image.fromarray((frame * 255).round().to(torch.uint8).numpy()).save(path)
        prompt[f"load{i}"] = {"class_type": "LoadImage", "inputs": {"image": client.upload(path, path.name)}}
    last = ["load0", 0]
    for i in range(1, len(frames)):
        name = "batch" if i == len(frames) - 1 else f"join{i}"
        prompt[name] = {"class_type": "ImageBatch", "inputs": {"image1": last, "image2": [f"load{i}", 0]}}
        last = [name, 0]
    return prompt


@pytest.fixture(scope="module")
def checkpoint(base_directory: Path) -> Any:
    return load_checkpoint(base_directory / "models/oasis/random.safetensors")


def upscale(model: str = "model", images: str = "batch", **settings: object) -> dict[str, Any]:
    return {
        "class_type": "OasisUpscale",
        "inputs": {"images": [images, 0], "model": [model, 0], **SETTINGS, **settings},
    }


def save(node: str) -> dict[str, Any]:
    return {"class_type": "SaveImage", "inputs": {"images": [node, 0], "filename_prefix": "test"}}


def differs(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def test_pack_loads_without_complaint(server: Any) -> None:
    log = server.log.read_text(encoding="utf-8", errors="replace")
    assert "ComfyUI-OASIS" in log  # import times name every pack
    assert "IMPORT FAILED" not in log
    assert "Cannot import" not in log


def test_schemas_are_complete(client: Any) -> None:
    for node in NODES:
        info = json.loads(client.get(f"/object_info/{node}"))[node]
        assert info["category"] == "OASIS"
        assert info["description"]
        for name, (_, options, *_) in info["input"]["required"].items():
            assert len(options["tooltip"]) > 20, (node, name)
    models = json.loads(client.get("/object_info/OasisLoadModel"))["OasisLoadModel"]["input"]["required"]["model_name"]
    options = models[1].get("options") or models[0]
    assert options[:2] == ["oasis-tiny", "random.safetensors"]


def test_upscale_is_the_cores_result(
    client: Any, frames: Tensor, batch: dict[str, Any], checkpoint: Any, tmp_path: Path
) -> None:
    """Several chunks, a scale that is no whole number; bar to the end; a second run comes from the cache."""
    prompt = {**batch, "model": MODEL, "up": upscale(), "save": save("up")}
    run = client.run(prompt)
    settings = UpscaleSettings(scale=2.5, chunk_frames=4)
    core = Upscaler(checkpoint.model, checkpoint.routing, settings).upscale(frames)
    assert differs(client.pictures(run, "save", tmp_path), core) < TOLERANCE
    bar = [(p["value"], p["max"]) for p in run.data("progress") if p["node"] == "up"]
    assert bar[-1] == (5, 5)
    again = client.run(
        {**prompt, "save": {**save("up"), "inputs": {**save("up")["inputs"], "filename_prefix": "again"}}}
    )
    assert {"model", "up"} <= set(again.data("execution_cached")[0]["nodes"])


def test_target_size_and_tiles(
    client: Any, frames: Tensor, batch: dict[str, Any], checkpoint: Any, tmp_path: Path
) -> None:
    up = upscale(width=101, tile=64, color="lab")
    run = client.run({**batch, "model": MODEL, "up": up, "save": save("up")})
    settings = UpscaleSettings(scale=None, width=101, tile=64, tile_overlap=32, chunk_frames=4, color=ColorMethod.LAB)
    core = Upscaler(checkpoint.model, checkpoint.routing, settings).upscale(frames)
    assert core.shape == (5, 72, 101, 3)
    assert differs(client.pictures(run, "save", tmp_path), core) < TOLERANCE


def test_alpha_is_kept(client: Any, frames: Tensor, batch: dict[str, Any], checkpoint: Any, tmp_path: Path) -> None:
    """JoinImageWithAlpha stores 1 - mask."""
    alpha = {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["batch", 0], "alpha": ["mask", 0]}}
    mask = {"class_type": "ImageToMask", "inputs": {"image": ["batch", 0], "channel": "green"}}
    run = client.run(
        {**batch, "mask": mask, "rgba": alpha, "model": MODEL, "up": upscale(images="rgba"), "save": save("up")}
    )
    result = client.pictures(run, "save", tmp_path)
    assert result.shape == (5, 50, 70, 4)
    assert differs(result[..., 3:], resize(1 - frames[..., 1:2], 50, 70)) < TOLERANCE


def test_routing_modes(
    client: Any, frames: Tensor, batch: dict[str, Any], checkpoint: Any, server: Any, tmp_path: Path
) -> None:
    """Every mode in one prompt."""
    depth, heads = checkpoint.config.depth, checkpoint.config.heads
    mixed = RoutingSpec(layers=((HeadPattern.WINDOW,) * heads, (HeadPattern.GLOBAL,) * heads), window=(1, 3, 3))
    by_extent = RoutingSpec(layers=((Extent(1, 3, 3),) * heads, (HeadPattern.GLOBAL,) * heads))
    (server.base / "models/oasis/mixed.json").write_text(mixed.to_json())
    cases = {
        "from checkpoint": ({}, checkpoint.routing),
        "all window": ({}, RoutingSpec.uniform(depth, heads, HeadPattern.WINDOW)),
        "by ratio": ({"global_share": 0.5, "intra_frame_share": 0.25}, RoutingSpec.by_ratio(depth, heads, 0.5, 0.25)),
        "by layer pattern": ({"layers": "1x3x3, global"}, replace(by_extent, window=checkpoint.routing.window)),
        "JSON": ({"json": mixed.to_json()}, mixed),
        "JSON ": ({"json": "mixed.json"}, mixed),
    }
    prompt = {**batch, "model": MODEL}
    for name, (inputs, _) in cases.items():
        values = {"mode": name.strip(), "global_share": 0.25, "intra_frame_share": 0.25, "json": "", **inputs}
        prompt[f"routing {name}"] = {"class_type": "OasisHeadRouting", "inputs": {"model": ["model", 0], **values}}
        prompt[f"up {name}"] = upscale(model=f"routing {name}")
        prompt[f"save {name}"] = save(f"up {name}")
    run = client.run(prompt)
    results = []
    for name, (_, routing) in cases.items():
        core = Upscaler(checkpoint.model, routing, UpscaleSettings(scale=2.5, chunk_frames=4)).upscale(frames)
        results.append(client.pictures(run, f"save {name}", tmp_path))
        assert differs(results[-1], core) < TOLERANCE, name
    assert differs(results[0], results[1]) > TOLERANCE  # the routing matters


def test_color_correct(client: Any, frames: Tensor, batch: dict[str, Any], tmp_path: Path) -> None:
    """One reference of another size for all frames."""
    small = {
        "class_type": "ImageScale",
        "inputs": {
            "image": ["load1", 0],
            "upscale_method": "nearest-exact",
            "width": 14,
            "height": 10,
            "crop": "disabled",
        },
    }
    inputs = {"images": ["batch", 0], "reference": ["small", 0], "method": "adain"}
    prompt = {**batch, "small": small, "fix": {"class_type": "OasisColorCorrect", "inputs": inputs}}
    run = client.run({**prompt, "save small": save("small"), "save": save("fix")})
    reference = resize(client.pictures(run, "save small", tmp_path), 20, 28).expand(5, -1, -1, -1)
    core = correct_color(frames, reference, ColorMethod.ADAIN)
    assert differs(client.pictures(run, "save", tmp_path), core) < 2 * TOLERANCE


def test_out_of_range_is_refused_before_it_runs(client: Any, batch: dict[str, Any]) -> None:
    for name, value in (("scale", 9.0), ("scale", 0.5), ("tile", -1), ("chunk_frames", 0)):
        with pytest.raises(client.Refused, match=name) as refused:
            client.run({**batch, "model": MODEL, "up": upscale(**{name: value}), "save": save("up")})
        assert "up" in refused.value.answer["node_errors"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"color": "sepia"}, "colour method is 'sepia'; allowed: none, adain, wavelet, lab"),
        ({"dtype": "fp4"}, "dtype is 'fp4'; allowed: auto, fp32, bf16, fp16, fp8"),
        ({"dtype": "fp8"}, "dtype fp8 cannot be used: it needs an NVIDIA GPU"),
        ({"mode": "all"}, "routing mode is 'all'; allowed: from checkpoint, all global, "),
        (
            {"model_name": "diffusion_models/other.safetensors"},
            'other.safetensors cannot be loaded: .* "format": "oasis"',
        ),
        ({"model_name": "text.safetensors"}, "text.safetensors is not a readable safetensors file .* OASIS checkpoint"),
        ({"width": 999}, "target width is 999 for an input of 28; it must be from 28 to 112"),
        ({"mode": "by layer pattern", "layers": "window*3"}, "layer pattern 'window\\*3': .* this model has 2"),
        ({"mode": "JSON", "json": "nowhere.json"}, "routing file 'nowhere.json' is not in models/oasis"),
        ({"mode": "JSON", "json": "{"}, "routing is not readable JSON"),
        (
            {"mode": "JSON", "json": RoutingSpec.uniform(3, 4, HeadPattern.GLOBAL).to_json()},
            "routing is for another model",
        ),
        (
            {"mode": "by ratio", "global_share": 0.9, "intra_frame_share": 0.9},
            "head shares are global 0.9, intra-frame 0.9",
        ),
    ],
)
def test_bad_input_says_one_clear_line(
    client: Any, server: Any, batch: dict[str, Any], change: dict[str, Any], line: str
) -> None:
    (server.base / "models/oasis/text.safetensors").write_text("not a model")
    other = server.base / "models/diffusion_models/other.safetensors"
    other.write_bytes((2).to_bytes(8, "little") + b"{}")
    routing = {
        "mode": "from checkpoint",
        "global_share": 0.25,
        "intra_frame_share": 0.25,
        "json": "",
        "layers": "global",
    }
    prompt = {
        **batch,
        "model": MODEL,
        "routing": {"class_type": "OasisHeadRouting", "inputs": {"model": ["model", 0], **routing}},
    }
    prompt |= {"up": upscale(model="routing"), "save": save("up")}
    prompt = json.loads(json.dumps(prompt))
    for node in prompt.values():
        node["inputs"] |= {name: value for name, value in change.items() if name in node["inputs"]}
    try:
        run = client.run(prompt)
    except client.Refused as refused:  # newer ComfyUI checks choices before it runs anything
        if "value_not_in_list" in str(refused):
            return
        raise
    assert run.end == "execution_error"
    assert len(run.error.splitlines()) == 1, run.error
    assert re.search(line, run.error), run.error


def test_missing_model_names_what_there_is(client: Any, batch: dict[str, Any]) -> None:
    """Before anything runs, as a workflow from elsewhere meets it."""
    for name in ("gone.safetensors", "diffusion_models/gone.safetensors"):
        model = {**MODEL, "inputs": {**MODEL["inputs"], "model_name": name}}
        with pytest.raises(client.Refused) as refused:
            client.run({**batch, "model": model, "up": upscale(), "save": save("up")})
        (error,) = refused.value.answer["node_errors"]["model"]["errors"]
        assert (
            f"model {name!r} is not in models/oasis or models/diffusion_models; choose oasis-tiny" in error["details"]
        )


def test_cancel_then_run_again(client: Any, batch: dict[str, Any]) -> None:
    """Cancel when the first progress arrives; the same prompt then runs to its end."""
    big = {
        "class_type": "ImageScale",
        "inputs": {
            "image": ["batch", 0],
            "upscale_method": "bilinear",
            "width": 256,
            "height": 160,
            "crop": "disabled",
        },
    }
    prompt = {
        **batch,
        "big": big,
        "model": MODEL,
        "up": upscale(images="big", scale=4.0, chunk_frames=2),
        "save": save("up"),
    }

    def cancel(message: dict[str, Any]) -> None:
        if message["type"] == "progress" and message["data"]["node"] == "up":
            client.post("/interrupt", b"{}")

    assert client.run(prompt, on_message=cancel).end == "execution_interrupted"
    assert client.run(prompt).end == "execution_success"


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "auto"])
def test_still_image_in_every_dtype(
    client: Any, frames: Tensor, batch: dict[str, Any], checkpoint: Any, dtype: str, tmp_path: Path
) -> None:
    model = {**MODEL, "inputs": {**MODEL["inputs"], "dtype": dtype}}
    run = client.run({**batch, "model": model, "up": upscale(images="load0"), "save": save("up")})
    core = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(scale=2.5)).upscale(frames[:1])
    assert differs(client.pictures(run, "save", tmp_path), core) < HALF_TOLERANCE


def test_unload_then_run_again(client: Any, batch: dict[str, Any], tmp_path: Path) -> None:
    """What the page's "unload models and cache" button does."""
    prompt = {**batch, "model": MODEL, "save": save("up")}
    first = client.pictures(client.run({**prompt, "up": upscale(scale=2.0)}), "save", tmp_path)
    client.post("/free", b'{"unload_models": true, "free_memory": true}')
    time.sleep(1)  # it is done by the worker, some time later
    second = client.pictures(client.run({**prompt, "up": upscale(scale=2.0)}), "save", tmp_path)
    assert differs(first, second) == 0

"""OasisUpscaleVideo in the real server: files in, files out, interrupted and gone on with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch import Tensor

from oasis_core.checkpoints import load_checkpoint
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.video_io import VideoReader

from .test_workflows import read_clip, write_clip

pytestmark = pytest.mark.comfy

FRAMES = 40
MODEL = {"class_type": "OasisLoadModel", "inputs": {"model_name": "random.safetensors", "dtype": "fp32"}}
SETTINGS = {"scale": 2.0, "width": 0, "height": 0, "color": "wavelet", "chunk_frames": 6, "tile": 0, "fidelity": 0.5}
TOLERANCE = 1.01 / 255


def node(video: str, **settings: object) -> dict[str, Any]:
    inputs = {"video": [video, 0], "model": ["model", 0], "codec": "ffv1", "crf": -1, "filename_prefix": "video/test"}
    return {"class_type": "OasisUpscaleVideo", "inputs": {**inputs, **SETTINGS, **settings}}


@pytest.fixture(scope="module")
def loaded(client: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Prompt nodes whose ``["video", 0]`` is a clip of ``FRAMES`` frames with sound."""
    path = tmp_path_factory.mktemp("clip") / "node_clip.mp4"
    write_clip(path, frames=FRAMES, height=36, width=52)
    name = client.upload(path, path.name)
    return {"model": MODEL, "video": {"class_type": "LoadVideo", "inputs": {"file": name}}}


@pytest.fixture(scope="module")
def expected(base_directory: Path, loaded: dict[str, Any]) -> Tensor:
    reader = VideoReader(base_directory / "input" / loaded["video"]["inputs"]["file"])
    frames = torch.stack([frame.rgb for frame in reader])
    checkpoint = load_checkpoint(base_directory / "models/oasis/random.safetensors")
    settings = UpscaleSettings(scale=2.0, chunk_frames=6)
    return Upscaler(checkpoint.model, checkpoint.routing, settings).upscale(frames)


def saved(client: Any, run: Any, key: str, folder: Path) -> Path:
    assert run.end == "execution_success", run.messages[-1]
    (video,) = run.outputs[key]["images"]
    return client.download(video, folder / video["filename"])


def unfinished(base_directory: Path) -> list[str]:
    return [p.name for p in (base_directory / "output").rglob("*") if ".oasis" in p.name or "oasis_input" in p.name]


def test_it_is_the_cores_result_with_sound_and_workflow(
    client: Any, loaded: dict[str, Any], expected: Tensor, base_directory: Path, tmp_path: Path
) -> None:
    """And another node takes it on: SaveVideo."""
    save = {"filename_prefix": "video/again", "format": "auto", "codec": "auto"}
    prompt = {
        **loaded,
        "up": node("video"),
        "save": {"class_type": "SaveVideo", "inputs": {"video": ["up", 0], **save}},
    }
    run = client.run(prompt)
    path = saved(client, run, "up", tmp_path)
    frames, rate, seconds = read_clip(path)
    assert (frames - expected).abs().max() < TOLERANCE
    assert float(rate) == pytest.approx(24000 / 1001, abs=0.01)
    assert seconds == pytest.approx(FRAMES / rate, abs=0.1)
    with av.open(str(path)) as file:
        notes = {name.lower(): value for name, value in file.metadata.items()}
    assert json.loads(notes["prompt"])["up"]["class_type"] == "OasisUpscaleVideo"
    again, _, sound = read_clip(saved(client, run, "save", tmp_path))
    assert again.shape == frames.shape
    assert sound == pytest.approx(seconds, abs=0.1)
    assert unfinished(base_directory) == []


def test_an_mp4_carries_the_workflow_too(client: Any, loaded: dict[str, Any], tmp_path: Path) -> None:
    path = saved(client, client.run({**loaded, "up": node("video", codec="h264", crf=20)}), "up", tmp_path)
    with av.open(str(path)) as file:
        assert json.loads(file.metadata["prompt"])["up"]["inputs"]["crf"] == 20


def test_frames_in_memory_are_taken_as_they_are(
    client: Any, loaded: dict[str, Any], base_directory: Path, tmp_path: Path
) -> None:
    parts = {"class_type": "GetVideoComponents", "inputs": {"video": ["video", 0]}}
    made = {"images": ["parts", 0], "audio": ["parts", 1], "fps": 12.0}
    prompt = {**loaded, "parts": parts, "made": {"class_type": "CreateVideo", "inputs": made}, "up": node("made")}
    prompt["seen"] = {"class_type": "SaveImage", "inputs": {"images": ["parts", 0], "filename_prefix": "seen"}}
    run = client.run(prompt)
    frames, rate, seconds = read_clip(saved(client, run, "up", tmp_path))
    given = client.pictures(run, "seen", tmp_path)
    checkpoint = load_checkpoint(base_directory / "models/oasis/random.safetensors")
    core = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(scale=2.0, chunk_frames=6)).upscale(given)
    # Either copy may round a value up or down by one, which random weights make larger.
    assert (frames - core).abs().max() < 0.02
    assert (frames - core).abs().mean() < TOLERANCE
    assert (float(rate), seconds > 1) == (12.0, True)
    assert unfinished(base_directory) == []


def test_interrupted_it_goes_on_where_it_was(
    client: Any, loaded: dict[str, Any], expected: Tensor, base_directory: Path, tmp_path: Path
) -> None:
    """The first segments (120 frames at most) are kept."""
    parts = {"class_type": "GetVideoComponents", "inputs": {"video": ["video", 0]}}
    longer = {"class_type": "RepeatImageBatch", "inputs": {"image": ["parts", 0], "amount": 15}}
    made = {"class_type": "CreateVideo", "inputs": {"images": ["longer", 0], "fps": 24.0}}
    prompt = {
        **loaded,
        "parts": parts,
        "longer": longer,
        "made": made,
        "up": node("made", filename_prefix="video/long"),
    }

    def cancel(message: dict[str, Any]) -> None:
        data = message["data"]
        if message["type"] == "progress" and data["node"] == "up" and data["value"] > 150:
            client.post("/interrupt", b"{}")

    assert client.run(prompt, on_message=cancel).end == "execution_interrupted"
    assert len(unfinished(base_directory)) >= 2
    run = client.run(prompt)
    bar = [p["value"] for p in run.data("progress") if p["node"] == "up"]
    assert min(value for value in bar if value) >= 60  # the first segment was kept
    frames, _, _ = read_clip(saved(client, run, "up", tmp_path))
    assert len(frames) == 15 * FRAMES
    whole = client.run({**prompt, "up": node("made", filename_prefix="video/whole")})
    through, _, _ = read_clip(saved(client, whole, "up", tmp_path))
    assert torch.equal(frames, through)
    assert unfinished(base_directory) == []


def has_ray(comfyui: Any) -> bool:
    found = subprocess.run([str(comfyui.python), "-c", "import ray"], capture_output=True)
    return found.returncode == 0


@pytest.mark.slow
def test_ray_makes_what_this_process_makes(
    client: Any, comfyui: Any, loaded: dict[str, Any], base_directory: Path, tmp_path: Path
) -> None:
    if not has_ray(comfyui):
        pytest.skip("ComfyUI's Python has no Ray")
    here, _, _ = read_clip(saved(client, client.run({**loaded, "up": node("video")}), "up", tmp_path))
    run = client.run({**loaded, "up": node("video", engine="all GPUs", filename_prefix="video/ray")})
    there, _, sound = read_clip(saved(client, run, "up", tmp_path))
    assert torch.equal(here, there)
    assert sound > 1
    assert unfinished(base_directory) == []


def test_an_engine_without_an_address_is_one_clear_line(client: Any, loaded: dict[str, Any]) -> None:
    run = client.run({**loaded, "up": node("video", engine="Ray address", ray_address=" ")})
    assert run.end == "execution_error"
    assert run.error == "engine is Ray address, but ray_address is empty: give auto or HOST:PORT"


def test_what_cannot_be_done_is_one_clear_line(client: Any, loaded: dict[str, Any]) -> None:
    run = client.run({**loaded, "up": node("video", codec="ffv1", preset="fast")})
    assert run.error == "preset is 'fast', but ffv1 has none; leave it out"
    run = client.run({**loaded, "up": node("video", codec="prores", crf=10)})
    assert run.end == "execution_error"
    assert run.error == "crf is 10, but prores has no such quality scale; leave it out"

"""The workflow for VideoHelperSuite, with that pack installed beside ours in a server of its own.

It is found where ``VHS_PATH`` says, or in the ComfyUI's own ``custom_nodes``. It needs opencv and imageio-ffmpeg in
ComfyUI's environment (or on ``PYTHONPATH``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oasis_core.checkpoints import embedded_path, load_checkpoint
from oasis_core.pipeline import Upscaler, UpscaleSettings

from .browser import (
    PAGE_MS,
    WORKFLOWS,
    check_opened,
    draw,
    drop,
    load_api,
    open_page,
    reload,
    run,
    screenshot,
    write_workflow,
)
from .conftest import fill_base_directory, link, running
from .test_workflows import RATE, psnr, read_clip, write_clip

pytestmark = pytest.mark.comfy

WORKFLOW = "oasis_video_helper_suite"
PACK = "ComfyUI-VideoHelperSuite"
NOTE = (
    "Needs the node pack ComfyUI-VideoHelperSuite. **Choose a video** on the left, press Run; the result, with its sound, is in "
    "ComfyUI's output folder, under `video`.\n\nAll frames are in memory at once: for long videos set `frame_load_cap`, or use "
    "the workflow oasis_long_video.\n\nTo try it: copy `assets/sample.mp4` of this node pack into ComfyUI's `input` folder."
)


def find_pack(comfyui: Any) -> Path | None:
    if named := os.environ.get("VHS_PATH"):
        return Path(named).expanduser().resolve()
    folders = (comfyui.folder / "custom_nodes").iterdir()
    return next((f for f in folders if f.name.lower() == PACK.lower()), None)


@pytest.fixture(scope="module")
def vhs_server(comfyui: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    found = find_pack(comfyui)
    if found is None:
        pytest.skip(f"NOT TESTED: {PACK} is not installed; set VHS_PATH to a checkout of it")
    base = fill_base_directory(tmp_path_factory.mktemp("with_vhs"))
    link(found, base / "custom_nodes" / PACK)
    with running(comfyui, base) as server:
        log = server.log.read_text(encoding="utf-8", errors="replace")
        assert "IMPORT FAILED" not in log, log[-4000:]
        yield server


@pytest.fixture(scope="module")
def page(vhs_server: Any) -> Iterator[Any]:
    with open_page(vhs_server) as page:
        yield page


@pytest.fixture
def clip(vhs_server: Any, tmp_path: Path) -> Path:
    """A small one, uploaded under the sample's name."""
    write_clip(tmp_path / "clip.mp4", frames=10, height=48, width=64)
    vhs_server.client.upload(tmp_path / "clip.mp4", "sample.mp4")
    return tmp_path / "clip.mp4"


@pytest.mark.skipif("WRITE_WORKFLOWS" not in os.environ, reason="writes into the checkout: WRITE_WORKFLOWS=1")
def test_write_workflow(page: Any, vhs_server: Any) -> None:
    write_workflow(page, vhs_server.client, WORKFLOW, NOTE)


def test_as_shipped(vhs_server: Any, clip: Path, tmp_path: Path) -> None:
    """Frames by the core, rate and sound of the input, and the workflow inside the file."""
    client, prompt = vhs_server.client, load_api(WORKFLOW)
    done = client.run(prompt)
    assert done.end == "execution_success", done.messages[-1]
    (saved,) = done.outputs["5"]["gifs"]
    kept = {key: saved[key] for key in ("filename", "subfolder", "type")}
    frames, rate, seconds = read_clip(client.download(kept, tmp_path / "out.mp4"))
    assert frames.shape == (10, 192, 256, 3)
    assert float(rate) == pytest.approx(float(RATE), abs=0.01)
    assert seconds == pytest.approx(10 / RATE, abs=0.1)
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "seen"}}
    seen = client.pictures(client.run({**prompt, "save": save}), "save", tmp_path)
    checkpoint = load_checkpoint(embedded_path())
    core = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings()).upscale(seen)
    assert psnr(frames, core) > 30  # H.264


def test_opens_by_drop_runs_and_shows_the_result(page: Any, vhs_server: Any, clip: Path) -> None:
    reload(page)
    drop(page, WORKFLOWS / f"{WORKFLOW}.json", "application/json")
    check_opened(page, load_api(WORKFLOW))
    screenshot(page, vhs_server, f"dropped_{WORKFLOW}")
    run(page, vhs_server.client)
    shown = """() => app.graph.nodes.find((n) => n.type === "VHS_VideoCombine").widgets.some((w) =>
        w.name === "videopreview" && (w.value?.params?.filename ?? "").startsWith("OASIS"))"""
    page.wait_for_function(shown, timeout=PAGE_MS)
    draw(page, 3000)
    screenshot(page, vhs_server, f"ran_{WORKFLOW}")

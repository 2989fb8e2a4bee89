"""Workflows and help in ComfyUI's own page, in a headless browser (skipped where playwright or Chromium is missing).

``WRITE_WORKFLOWS=1 pytest tests/comfy/test_page.py`` makes the UI form of each workflow anew from its API form, by the
page itself; do that on the oldest supported ComfyUI with its own page (``COMFYUI_FRONTEND``: its static folder).
``WRITE_HELP=1`` takes the pictures of nodes that the help pages show.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .browser import (
    ARRANGE,
    HELP,
    INFO,
    OVERLAPS,
    PAGE_MS,
    SCALE,
    WORKFLOWS,
    check_opened,
    columns,
    draw,
    drop,
    load_api,
    open_page,
    reload,
    run,
    screenshot,
    snapshot,
    upload_samples,
    write_workflow,
)
from .test_vhs import WORKFLOW as WITH_VHS
from .test_workflows import write_clip

pytestmark = pytest.mark.comfy

PACK = "ComfyUI-OASIS"
PICTURES, VIDEOS = ("SaveImage", "OasisCompare"), ("SaveVideo", "OasisUpscaleVideo")
"""Nodes that show what they made."""
PICTURE_SHOWN = "(id) => app.graph.getNodeById(Number(id)).imgs?.[0]?.naturalWidth === 256"
VIDEO_SHOWN = "(id) => app.graph.getNodeById(Number(id)).videoContainer?.querySelector('video')?.videoWidth === 256"
"""Four times the small samples' width."""
PREVIEW_SHOWN = "(id) => app.graph.getNodeById(Number(id)).imgs?.[0]?.naturalWidth > 64"
"""The last frame; 512 pixels wide on newer pages, which enlarge it."""
ALL = sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))
NAMES = [name for name in ALL if name != WITH_VHS]
HELP_PICTURES = {
    "load_model": {
        "load": {"class_type": "OasisLoadModel", "inputs": {"model_name": "oasis-tiny", "dtype": "auto"}},
        "up": {"class_type": "OasisUpscale", "inputs": {"model": ["load", 0]}},
    },
    "upscale_video": {
        "video": {"class_type": "LoadVideo", "inputs": {"file": "sample.mp4"}},
        "load": {"class_type": "OasisLoadModel", "inputs": {"model_name": "oasis-tiny", "dtype": "auto"}},
        "up": {"class_type": "OasisUpscaleVideo", "inputs": {"video": ["video", 0], "model": ["load", 0]}},
    },
}
"""The prompts that they show."""
NOTES = {
    "oasis_still_image": "**Choose a picture** on the left, press Run; the result is in ComfyUI's output "
    "folder. OASIS Compare shows it before (left of the line) and after.\n\nTo try it: copy "
    "`assets/sample.jpg` of this node pack into ComfyUI's `input` folder.",
    "oasis_routing_study": "The same frames with **two routings of the same model**, and how they differ: wiped"
    " (left: the model's own routing) and as a difference, 16 times as bright. Change `mode`, `layers` "
    "and `rules` of the lower OASIS Head Routing and press Run; the upper half is not computed "
    "again.\n\nTo try it: copy `assets/sample.mp4` of this node pack into ComfyUI's `input` folder.",
    "oasis_long_video": "**Choose a video** on the left, of any length, press Run: it is read, upscaled and "
    "written bit by bit, in constant memory.\n\nThe result, with its sound, is in ComfyUI's output "
    "folder, under `video`. Interrupted, it goes on where it was when you press Run again.\n\nTo try "
    "it: copy `assets/sample.mp4` of this node pack into ComfyUI's `input` folder.",
    "oasis_upscale_video": "**Choose a video** on the left, press Run; the result is in ComfyUI's output "
    "folder, under `video`.\n\nTo try it: copy `assets/sample.mp4` of this node pack into ComfyUI's "
    "`input` folder.\n\nLong or large clips need much memory: lower `chunk_frames` or set a `tile` if "
    "it runs out.",
}
"""What the note in each UI form says."""


@pytest.fixture(scope="module")
def page(server: Any) -> Iterator[Any]:
    with open_page(server) as page:
        yield page


@pytest.mark.skipif("WRITE_WORKFLOWS" not in os.environ, reason="writes into the checkout: WRITE_WORKFLOWS=1")
@pytest.mark.parametrize("name", NAMES)
def test_write_workflow(page: Any, client: Any, name: str) -> None:
    write_workflow(page, client, name, NOTES[name])


@pytest.mark.skipif("WRITE_HELP" not in os.environ, reason="writes into the checkout: WRITE_HELP=1")
@pytest.mark.parametrize("name", HELP_PICTURES)
def test_write_help_picture(page: Any, client: Any, name: str) -> None:
    upload_samples(client)
    reload(page)
    prompt = HELP_PICTURES[name]
    _, right, bottom = page.evaluate(ARRANGE, [prompt, columns(prompt), {"LoadVideo": 240}, "", SCALE])
    snapshot(page, right, bottom).save(HELP / "pictures" / f"{name}.jpg", quality=88)


def test_template_browser_lists_the_workflows(client: Any) -> None:
    """Each with its UI form and a thumbnail; the API forms are not listed."""
    listed = json.loads(client.get("/api/workflow_templates"))[PACK]
    assert sorted(listed) == ALL
    for name in ALL:
        assert "nodes" in json.loads(client.get(f"/api/workflow_templates/{PACK}/{name}.json"))
        assert client.get(f"/api/workflow_templates/{PACK}/{name}.jpg").startswith(b"\xff\xd8")


@pytest.mark.parametrize("name", NAMES)
def test_workflow_opens_by_drop(page: Any, client: Any, server: Any, name: str) -> None:
    upload_samples(client)
    reload(page)
    drop(page, WORKFLOWS / f"{name}.json", "application/json")
    check_opened(page, load_api(name))
    screenshot(page, server, f"dropped_{name}")


@pytest.fixture(scope="module")
def small(client: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Quick ones under the samples' names."""
    folder = tmp_path_factory.mktemp("small")
    write_clip(folder / "sample.mp4", frames=14, height=48, width=64)
    Image.new("RGB", (64, 48), (200, 60, 40)).save(folder / "sample.jpg")
    for path in folder.iterdir():
        client.upload(path, path.name)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", NAMES)
def test_from_the_template_browser_to_the_result(page: Any, client: Any, server: Any, name: str) -> None:
    """Opened there by mouse; Run; every node that saves or shows something shows it."""
    prompt = load_api(name)
    reload(page)
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK).first.click(timeout=PAGE_MS)
    page.locator(f"[data-testid=template-workflow-{name}]").wait_for(timeout=PAGE_MS)
    screenshot(page, server, "templates")
    page.locator(f"[data-testid=template-workflow-{name}] img").first.click(timeout=PAGE_MS)
    check_opened(page, prompt)
    run(page, client, lambda: page.get_by_role("button", name="Run", exact=True).first.click())
    for node, content in prompt.items():
        if content["class_type"] in PICTURES:
            page.wait_for_function(PICTURE_SHOWN, arg=node, timeout=PAGE_MS)
        elif content["class_type"] in VIDEOS:
            page.wait_for_function(VIDEO_SHOWN, arg=node, timeout=PAGE_MS)
        elif content["class_type"] == "OasisUpscale":
            page.wait_for_function(PREVIEW_SHOWN, arg=node, timeout=PAGE_MS)
    draw(page)
    screenshot(page, server, f"ran_{name}")
    assert page.evaluate(OVERLAPS) == []


@pytest.mark.usefixtures("small")
def test_a_saved_video_opens_as_a_workflow(page: Any, client: Any, server: Any, tmp_path: Path) -> None:
    """The streamed node's, dropped on the canvas."""
    reload(page)
    drop(page, WORKFLOWS / "oasis_long_video.json", "application/json")
    check_opened(page, load_api("oasis_long_video"))
    (video,) = run(page, client)["outputs"]["3"]["images"]
    path = client.download(video, tmp_path / video["filename"])
    reload(page)
    page.evaluate("() => app.graph.clear()")
    drop(page, path, "video/mp4")
    check_opened(page, load_api("oasis_long_video"))
    screenshot(page, server, "dropped_video")


def test_a_seed_stays_what_it_is(page: Any) -> None:
    """Else each run would draw another one, and nothing that is unchanged would come from the cache."""
    names = """(types) => types.map((type) => LiteGraph.createNode(type).widgets.map((w) => w.name))"""
    for widgets in page.evaluate(names, ["OasisCalibrateRouting", "OasisAutoRouting"]):
        assert widgets[-1] == "seed", widgets


@pytest.mark.parametrize("node", sorted(path.name for path in HELP.iterdir() if path.name.startswith("Oasis")))
def test_help_shows(page: Any, server: Any, node: str) -> None:
    """Click on the node, press its info button: the page with its picture, no wider than the panel."""
    reload(page)
    page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    draw(page)  # the page then fits its view
    place = """(type) => {
        const node = LiteGraph.createNode(type)
        node.pos = [300, 300]
        app.graph.add(node)
        app.canvas.ds.scale = 1
        app.canvas.ds.offset = [0, 0]
        const canvas = app.canvas.canvas.getBoundingClientRect()
        return [canvas.x + node.pos[0] + 60, canvas.y + node.pos[1] - 15]
    }"""
    x, y = page.evaluate(place, node)
    draw(page, 500)
    page.mouse.click(x, y)
    page.click(INFO, timeout=PAGE_MS)
    shown = page.locator(".node-help-content")
    shown.locator("h1").wait_for(timeout=PAGE_MS)
    title = (HELP / node / "en.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    assert shown.locator("h1").inner_text() == title
    loaded = """() => {
        const img = document.querySelector(".node-help-content img")
        return img && img.complete && img.naturalWidth > 0
    }"""
    page.wait_for_function(loaded, timeout=PAGE_MS)
    screenshot(page, server, f"help_{node}")
    assert shown.evaluate("(e) => e.scrollWidth <= e.clientWidth + 1")

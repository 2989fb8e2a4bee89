"""Workflows and help in ComfyUI's own page, in a headless browser (skipped where playwright or Chromium is missing).

``WRITE_WORKFLOWS=1 pytest tests/comfy/test_page.py`` makes the UI form of each workflow anew from its API form, by the
page itself; do that on the oldest supported ComfyUI with its own page (``COMFYUI_FRONTEND``: its static folder).
``WRITE_HELP=1`` takes the pictures of nodes that the help pages show.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.comfy

WORKFLOWS = Path(__file__).resolve().parent.parent.parent / "workflows"
PACK = "ComfyUI-OASIS"
NAMES = sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))
HELP = WORKFLOWS.parent / "web" / "docs"
SAMPLE = WORKFLOWS.parent / "assets" / "sample.mp4"
READY = """() => window.app?.graph && window.LiteGraph?.registered_node_types?.OasisUpscale
    && app.extensionManager?.workflow?.activeWorkflow && !document.querySelector(".p-blockui-mask, #splash-loader")"""
"""The nodes are known and the first workflow is on the canvas: what is put there before is lost."""
PAGE_MS = 60_000
INFO = "[data-testid=info-button]"
"""The button on a selected node that opens its help."""
SCALE = 0.9
"""Zoom at which a workflow opens."""
WITH_PREVIEW = ["LoadVideo", "SaveVideo"]
ARRANGE = """async ([prompt, columns, withPreview, note, scale]) => {
    await app.loadApiJson(prompt, "workflow")
    const left = 120, top = 150, gap = [50, 100], previewHeight = 330
    let x = left, bottom = top
    for (const column of columns) {
        let y = top, width = 0
        for (const id of column) {
            const n = app.graph.getNodeById(id) ?? app.graph.getNodeById(Number(id))
            const size = n.computeSize()
            n.size = [Math.max(n.size[0], size[0]), withPreview.includes(n.type) ? previewHeight : size[1]]
            n.pos = [x, y]
            y += n.size[1] + gap[1]
            width = Math.max(width, n.size[0])
        }
        x += width + gap[0]
        bottom = Math.max(bottom, y - gap[1])
    }
    if (note) {
        const text = LiteGraph.createNode("MarkdownNote")
        text.title = "How to use"
        text.size = [620, 130]
        text.pos = [left, bottom + gap[1]]
        text.widgets[0].value = note
        app.graph.add(text)
    }
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [0, 0]
    return [JSON.stringify(app.graph.serialize(), null, 2), x - gap[0], bottom]
}"""
"""Load a prompt, put its nodes into columns and a note below; gives the graph and where its nodes end."""
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
    "oasis_long_video": "**Choose a video** on the left, of any length, press Run: it is read, upscaled and written bit by "
    "bit, in constant memory.\n\nThe result, with its sound, is in ComfyUI's output folder, under `video`. Interrupted, "
    "it goes on where it was when you press Run again.\n\nTo try it: copy `assets/sample.mp4` of this node pack into "
    "ComfyUI's `input` folder.",
    "oasis_upscale_video": "**Choose a video** on the left, press Run; the result is in ComfyUI's output folder, under "
    "`video`.\n\nTo try it: copy `assets/sample.mp4` of this node pack into ComfyUI's `input` folder.\n\nLong or "
    "large clips need much memory: lower `chunk_frames` or set a `tile` if it runs out.",
}
"""What the note in each UI form says."""


@pytest.fixture(scope="module")
def page(server: Any) -> Iterator[Any]:
    """ComfyUI's page, loaded."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(
        (p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if p), None
    )
    if chromium is None:
        pytest.skip("no Chromium was found")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.goto(f"http://{server.client.address}/")
        page.wait_for_function(READY, timeout=PAGE_MS)
        yield page
        browser.close()


def load_api(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


def columns(prompt: dict[str, Any]) -> list[list[str]]:
    """Node ids from the sources to the results, each just before the first node that needs it."""
    steps: dict[str, int] = {}  # to the end
    while len(steps) < len(prompt):
        for node in prompt:
            users = [n for n, content in prompt.items() if any(v[0] == node for v in links(content))]
            if all(u in steps for u in users):
                steps[node] = 1 + max((steps[u] for u in users), default=-1)
    return [[n for n in prompt if steps[n] == step] for step in range(max(steps.values()), -1, -1)]


def links(content: dict[str, Any]) -> list[list[Any]]:
    return [value for value in content["inputs"].values() if isinstance(value, list)]


def draw(page: Any, ms: int = 1500) -> None:
    page.evaluate("() => app.canvas.setDirty(true, true)")
    page.wait_for_timeout(ms)


def reload(page: Any) -> None:
    page.reload()
    page.wait_for_function(READY, timeout=PAGE_MS)


def snapshot(page: Any, right: float, bottom: float) -> Image.Image:
    """The canvas from its origin to there, when previews have loaded."""
    draw(page, 3000)
    place = """(scale) => {
        app.canvas.ds.scale = scale
        app.canvas.ds.offset = [0, 0]
        const canvas = app.canvas.canvas.getBoundingClientRect()
        return [canvas.x, canvas.y]
    }"""
    x, y = page.evaluate(place, SCALE)
    draw(page)
    box = {"x": x + 90 * SCALE, "y": y + 100 * SCALE, "width": (right - 60) * SCALE, "height": (bottom - 70) * SCALE}
    return Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB")


@pytest.mark.skipif("WRITE_WORKFLOWS" not in os.environ, reason="writes into the checkout: WRITE_WORKFLOWS=1")
@pytest.mark.parametrize("name", NAMES)
def test_write_workflow(page: Any, client: Any, name: str) -> None:
    """UI form and thumbnail."""
    client.upload(SAMPLE, SAMPLE.name)
    reload(page)
    prompt = load_api(name)
    graph, right, bottom = page.evaluate(ARRANGE, [prompt, columns(prompt), WITH_PREVIEW, NOTES[name], SCALE])
    (WORKFLOWS / f"{name}.json").write_text(graph + "\n", encoding="utf-8")
    picture = snapshot(page, right, bottom)
    picture.thumbnail((800, 800), Image.Resampling.LANCZOS)
    picture.save(WORKFLOWS / f"{name}.jpg", quality=85)


@pytest.mark.skipif("WRITE_HELP" not in os.environ, reason="writes into the checkout: WRITE_HELP=1")
@pytest.mark.parametrize("name", HELP_PICTURES)
def test_write_help_picture(page: Any, client: Any, name: str) -> None:
    client.upload(SAMPLE, SAMPLE.name)
    reload(page)
    prompt = HELP_PICTURES[name]
    _, right, bottom = page.evaluate(ARRANGE, [prompt, columns(prompt), WITH_PREVIEW, "", SCALE])
    snapshot(page, right, bottom).save(HELP / "pictures" / f"{name}.jpg", quality=88)


def test_template_browser_lists_the_workflows(client: Any) -> None:
    """Each with its UI form and a thumbnail; the API forms are not listed."""
    listed = json.loads(client.get("/api/workflow_templates"))[PACK]
    assert sorted(listed) == NAMES
    for name in NAMES:
        assert "nodes" in json.loads(client.get(f"/api/workflow_templates/{PACK}/{name}.json"))
        assert client.get(f"/api/workflow_templates/{PACK}/{name}.jpg").startswith(b"\xff\xd8")


@pytest.mark.parametrize("name", NAMES)
def test_workflow_opens_by_drop(page: Any, client: Any, name: str, tmp_path: Path) -> None:
    """Every node is known, nothing is marked red, and the page makes the same prompt of it as the API form."""
    prompt = load_api(name)
    client.upload(SAMPLE, SAMPLE.name)
    reload(page)
    text = (WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")
    page.evaluate(
        'async ([text, name]) => app.handleFile(new File([text], name, {type: "application/json"}))',
        [text, f"{name}.json"],
    )
    types = sorted([*(node["class_type"] for node in prompt.values()), "MarkdownNote"])
    loaded = "(types) => JSON.stringify(app.graph.nodes.map((n) => n.type).sort()) === JSON.stringify(types)"
    page.wait_for_function(loaded, arg=types, timeout=PAGE_MS)
    draw(page)
    page.screenshot(path=tmp_path / f"{name}.png")
    red = """() => app.graph.nodes.filter((n) => n.has_errors || !(n.type in LiteGraph.registered_node_types))
        .map((n) => n.type)"""
    assert page.evaluate(red) == []
    made = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert made.keys() == prompt.keys()
    for node, content in prompt.items():
        assert made[node]["class_type"] == content["class_type"]
        assert {k: made[node]["inputs"].get(k) for k in content["inputs"]} == content["inputs"]


@pytest.mark.parametrize("node", sorted(path.name for path in HELP.iterdir() if path.name.startswith("Oasis")))
def test_help_shows(page: Any, node: str, tmp_path: Path) -> None:
    """Select the node, press its info button: the page with its picture, no wider than the panel."""
    reload(page)
    select = """(type) => {
        app.graph.clear()
        const node = LiteGraph.createNode(type)
        node.pos = [300, 300]
        app.graph.add(node)
        app.canvas.selectNodes([node])
        app.canvas.setDirty(true, true)
    }"""
    page.evaluate(select, node)
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
    page.screenshot(path=tmp_path / f"{node}.png")
    assert shown.evaluate("(e) => e.scrollWidth <= e.clientWidth + 1")

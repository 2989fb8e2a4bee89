"""ComfyUI's own page in a headless Chromium."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
WORKFLOWS = ROOT / "workflows"
HELP = ROOT / "web" / "docs"
SAMPLES = tuple(ROOT / "assets" / name for name in ("sample.mp4", "sample.jpg"))
READY = """() => window.app?.graph && window.LiteGraph?.registered_node_types?.OasisUpscale
    && app.extensionManager?.workflow?.activeWorkflow && !document.querySelector(".p-blockui-mask, #splash-loader")"""
"""The nodes are known and the first workflow is on the canvas: what is put there before is lost."""
PAGE_MS = 60_000
RUN_SECONDS = 400
INFO = "[data-testid=info-button]"
"""The button on a selected node that opens its help."""
SCALE = 0.9
"""Zoom at which a workflow opens."""
WITH_PREVIEW = {"OasisUpscale": 300, "OasisUpscaleVideo": 340} | dict.fromkeys(
    ["LoadVideo", "SaveVideo", "LoadImage", "SaveImage", "OasisCompare", "VHS_LoadVideo"], 240
)
"""Nodes that show a picture, and the room that is left for it and for what it says, in pixels."""
FEW = 5
"""Frames of the sample that a thumbnail shows the result of."""
ARRANGE = """async ([prompt, columns, withPreview, note, scale]) => {
    await app.loadApiJson(prompt, "workflow")
    const left = 120, top = 150, gap = [50, 100]
    let x = left, bottom = top
    for (const column of columns) {
        let y = top, width = 0
        for (const id of column) {
            const n = app.graph.getNodeById(id) ?? app.graph.getNodeById(Number(id))
            const size = n.computeSize()
            n.size = [Math.max(n.size[0], size[0]), size[1] + (withPreview[n.type] ?? 0)]
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
OVERLAPS = """() => {
    const title = 30, boxes = app.graph.nodes.map((n) => ({
        name: `${n.id} ${n.type}`, x: n.pos[0], y: n.pos[1] - title, w: n.size[0], h: n.size[1] + title
    }))
    const meet = (a, b) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h
    return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => meet(a, b)).map((b) => `${a.name} - ${b.name}`))
}"""
"""Pairs of nodes that lie on each other: they grow with what they show."""
RED = """() => app.graph.nodes.filter((n) => n.has_errors || !(n.type in LiteGraph.registered_node_types))
    .map((n) => n.type)"""
TYPES = "(types) => JSON.stringify(app.graph.nodes.map((n) => n.type).sort()) === JSON.stringify(types)"


@contextmanager
def open_page(server: Any) -> Iterator[Any]:
    """ComfyUI's page, loaded; skips where playwright or Chromium is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(
        (p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if p), None
    )
    if chromium is None:
        pytest.skip("no Chromium was found")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.route("**/templates/index*.json", core_templates)
        page.goto(f"http://{server.client.address}/")
        page.wait_for_function(READY, timeout=PAGE_MS)
        yield page
        browser.close()


def core_templates(route: Any) -> None:
    """ComfyUI's own list; empty where that package is of another version than the server: older pages then open nobody's."""
    answer = route.fetch()
    route.fulfill(response=answer) if answer.ok else route.fulfill(json=[])


def screenshot(page: Any, server: Any, name: str) -> None:
    """Kept: ``out/screenshots/VERSION/NAME.png`` in the checkout."""
    folder = ROOT / "out" / "screenshots" / ".".join(map(str, server.version))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")


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


def upload_samples(client: Any) -> None:
    for path in SAMPLES:
        client.upload(path, path.name)


def first_frames(source: Path, target: Path) -> Path:
    """``FEW`` of them, without the sound."""
    with av.open(str(source)) as given, av.open(str(target), "w") as out:
        video = out.add_stream("libx264", rate=given.streams.video[0].average_rate)
        size = given.streams.video[0].width, given.streams.video[0].height
        (video.width, video.height), video.pix_fmt, video.options = size, "yuv420p", {"crf": "10"}
        for frame in islice(given.decode(video=0), FEW):
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return target


def write_workflow(page: Any, client: Any, name: str, note: str) -> None:
    """UI form, and thumbnail with its results, from the API form, by the page itself."""
    upload_samples(client)
    reload(page)
    page.set_viewport_size({"width": 2600, "height": 1500})
    prompt = load_api(name)
    graph, right, bottom = page.evaluate(ARRANGE, [prompt, columns(prompt), WITH_PREVIEW, note, SCALE])
    (WORKFLOWS / f"{name}.json").write_text(graph + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        client.upload(first_frames(SAMPLES[0], Path(folder) / "few.mp4"), SAMPLES[0].name)
    run(page, client)
    draw(page, 3000)
    assert page.evaluate(OVERLAPS) == [], "leave more room"
    picture = snapshot(page, right, bottom + 20)
    picture.thumbnail((800, 800), Image.Resampling.LANCZOS)
    picture.save(WORKFLOWS / f"{name}.jpg", quality=85)
    page.set_viewport_size({"width": 1600, "height": 900})


def run(page: Any, client: Any, press: Callable[[], object] | None = None) -> dict[str, Any]:
    """What is on the canvas, to its end, and its entry in the history. ``press`` starts it in another way."""
    before = json.loads(client.get("/history"))
    if press is not None:
        press()
    else:
        page.evaluate("() => app.queuePrompt(0)")
    end = time.monotonic() + RUN_SECONDS
    while time.monotonic() < end:
        page.wait_for_timeout(500)
        done = {k: v for k, v in json.loads(client.get("/history")).items() if k not in before and v}
        if done:
            (entry,) = done.values()
            assert entry["status"]["status_str"] == "success", entry["status"]
            return entry
    raise TimeoutError(f"the prompt did not end within {RUN_SECONDS} s")


def drop(page: Any, path: Path, media_type: str) -> None:
    """A file on the canvas."""
    script = """async ([bytes, name, type]) =>
        app.handleFile(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name, {type}))"""
    page.evaluate(script, [base64.b64encode(path.read_bytes()).decode(), path.name, media_type])


def check_opened(page: Any, prompt: dict[str, Any]) -> None:
    """Every node is known, nothing is marked red, and the page makes that prompt of it again."""
    types = sorted([*(node["class_type"] for node in prompt.values()), "MarkdownNote"])
    page.wait_for_function(TYPES, arg=types, timeout=PAGE_MS)
    draw(page)
    assert page.evaluate(RED) == []
    made = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert made.keys() == prompt.keys()
    for node, content in prompt.items():
        assert made[node]["class_type"] == content["class_type"]
        assert {k: made[node]["inputs"].get(k) for k in content["inputs"]} == content["inputs"]

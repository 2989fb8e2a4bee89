"""``clients/queue_video.py`` as a user runs it: a process of its own, against the real server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .test_workflows import read_clip, write_clip

pytestmark = pytest.mark.comfy

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "clients" / "queue_video.py"
SECONDS = 240
FAST = ["--set", "model_name=random.safetensors", "--set", "scale=2"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its name has a blank and a letter outside ASCII."""
    path = tmp_path_factory.mktemp("queue") / "my clip \u00e9.mp4"
    write_clip(path, frames=12, height=36, width=52)
    return path


def command(client: Any, *words: object) -> list[str]:
    return [sys.executable, str(EXAMPLE), "--server", client.address, *map(str, words)]


def queue(client: Any, *words: object) -> subprocess.CompletedProcess[str]:
    """To its end, beside the script."""
    return subprocess.run(
        command(client, *words), capture_output=True, text=True, encoding="utf-8", timeout=SECONDS, cwd=EXAMPLE.parent
    )


def test_needs_the_standard_library_and_a_websocket_client_only() -> None:
    names = re.findall(r"^ *(?:import|from) (\w+)", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(names) - set(sys.stdlib_module_names) == {"websocket"}


def test_every_setting_of_the_node_can_be_set(client: Any, clip: Path) -> None:
    asked = json.loads(client.get("/object_info/OasisUpscaleVideo"))["OasisUpscaleVideo"]["input"]
    linked = {"video", "model"}
    told = queue(client, clip, "--set", "nothing=1").stderr
    there = set(told.split("there are: ")[1].strip().split(", "))
    assert {*asked["required"], *asked["optional"]} - linked <= there


def test_uploads_queues_follows_and_downloads(client: Any, clip: Path, tmp_path: Path) -> None:
    done = queue(client, clip, "--to", tmp_path / "results", *FAST)
    assert done.returncode == 0, done.stderr
    (path,) = map(Path, done.stdout.splitlines())
    frames, _, seconds = read_clip(path)
    assert frames.shape == (12, 72, 104, 3)
    assert seconds > 0.3
    assert "OasisUpscaleVideo: 12 of 12" in done.stderr


def test_with_a_workflow_of_this_pack(client: Any, clip: Path, tmp_path: Path) -> None:
    workflow = EXAMPLE.parent.parent / "workflows" / "api" / "oasis_upscale_video.json"
    done = queue(client, clip, "--workflow", workflow, "--to", tmp_path, *FAST)
    assert done.returncode == 0, done.stderr
    (path,) = map(Path, done.stdout.splitlines())
    assert read_clip(path)[0].shape == (12, 72, 104, 3)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--set", "scale=9"], "refused /prompt: .*scale"),
        (["--set", "scale=big"], "scale is 'big'; it must be a value such as 4.0"),
        (["--set", "strength=1"], "no node of this workflow has the setting 'strength'; there are: chunk_frames, "),
        (["--set", "width=999"], "OasisUpscaleVideo: target width is 999 for an input of 52"),
        (["--workflow", __file__], "is not a readable workflow"),
        (["--workflow", str(EXAMPLE.parent.parent / "workflows" / "oasis_upscale_video.json")], "is not the API form"),
        (["--server", "127.0.0.1:9"], "no ComfyUI at 127.0.0.1:9 "),
    ],
)
def test_what_goes_wrong_is_one_line(client: Any, clip: Path, tmp_path: Path, words: list[str], line: str) -> None:
    done = queue(client, clip, "--to", tmp_path, *words)
    assert done.returncode == 1
    assert re.search(line, done.stderr.strip().splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="a console's Ctrl-C cannot be sent to one process there")
def test_ctrl_c_takes_the_job_back(client: Any, clip: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "long.mp4", frames=200, height=90, width=160)
    words = command(client, tmp_path / "long.mp4", "--to", tmp_path / "out", "--set", "chunk_frames=4")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        seen = ""
        while "OasisUpscaleVideo: 1" not in seen:
            seen += process.stderr.read(1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 1
    assert told.splitlines()[-1] == "error: taken back"
    for _ in range(100):
        if b'"exec_info": {"queue_remaining": 0}' in client.get("/prompt"):
            return
        time.sleep(0.2)
    raise AssertionError("the job still runs")

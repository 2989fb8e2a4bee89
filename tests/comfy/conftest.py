"""A real ComfyUI server with this checkout as its custom node, and a client that lives as users' scripts do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import websocket
from PIL import Image

from oasis_core.checkpoints import save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.model import OasisConfig, OasisModel
from oasis_core.model.config import PixelDecoderConfig
from oasis_core.routing.spec import RoutingSpec

ROOT = Path(__file__).resolve().parent.parent.parent
PACK = "ComfyUI-OASIS"
START_SECONDS = 180
RUN_SECONDS = 240
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "out", "build", "dist")
TINY = OasisConfig(
    name="random",
    unshuffle=(1, 8, 8),
    latent_channels=8,
    dim=48,
    depth=2,
    heads=4,
    ffn_dim=64,
    freq_dim=16,
    decoder=PixelDecoderConfig(width=8, blocks=1, hr_width=8, hr_blocks=1),
)


class RefusedError(Exception):
    """The server did not take a prompt; ``answer`` is what it said."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer))
        self.answer = answer


@dataclass
class Run:
    """One prompt, to its end."""

    prompt_id: str
    end: str = ""
    """execution_success, execution_error or execution_interrupted."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    def data(self, kind: str) -> list[dict[str, Any]]:
        """What the websocket messages of that type said."""
        return [m["data"] for m in self.messages if m["type"] == kind]

    @property
    def error(self) -> str:
        """The line that the client shows."""
        return self.data("execution_error")[0]["exception_message"].strip()


class Client:
    """HTTP and websocket, against a server on this machine."""

    Refused = RefusedError

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.id = uuid.uuid4().hex

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as answer:
            return answer.read()

    def post(self, path: str, body: bytes, content_type: str = "application/json") -> Any:
        request = urllib.request.Request(f"http://{self.address}{path}", body, {"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def upload(self, path: Path, name: str) -> str:
        """Put a file into ComfyUI's input folder, as the page's upload button does (for videos too)."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        overwrite = (
            f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--{boundary}--\r\n'
        )
        body = head.encode() + path.read_bytes() + overwrite.encode()
        return self.post("/upload/image", body, f"multipart/form-data; boundary={boundary}")["name"]

    def download(self, saved: dict[str, str], to: Path) -> Path:
        """A file that a node saved."""
        to.write_bytes(self.get("/view?" + urllib.parse.urlencode(saved)))
        return to

    def pictures(self, run: Run, node: str, folder: Path) -> torch.Tensor:
        """What a SaveImage node of a finished run wrote: ``(T, H, W, C)`` in [0, 1]."""
        assert run.end == "execution_success", run.messages[-1]
        files = [self.download(image, folder / image["filename"]) for image in run.outputs[node]["images"]]
        return torch.stack([torch.from_numpy(np.array(Image.open(f))) for f in files]).float() / 255

    def run(self, prompt: dict[str, Any], on_message: Callable[[dict[str, Any]], None] | None = None) -> Run:
        """Queue a prompt and follow it to its end.

        Raises:
            RefusedError: the server did not take it.
        """
        ws = websocket.create_connection(f"ws://{self.address}/ws?clientId={self.id}", timeout=RUN_SECONDS)
        try:
            body = json.dumps({"prompt": prompt, "client_id": self.id}).encode()
            run = Run(self.post("/prompt", body)["prompt_id"])
            while not run.end:
                text = ws.recv()
                if not isinstance(text, str) or not text:
                    continue  # a preview picture
                message = json.loads(text)
                if message["data"].get("prompt_id") != run.prompt_id:
                    continue
                run.messages.append(message)
                if on_message is not None:
                    on_message(message)
                if message["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                    run.end = message["type"]
        except urllib.error.HTTPError as e:
            raise RefusedError(json.loads(e.read())) from None
        finally:
            ws.close()
        if run.end == "execution_success":
            run.outputs = self._history(run.prompt_id)["outputs"]
        return run

    def _history(self, prompt_id: str) -> dict[str, Any]:
        for _ in range(100):  # it can be empty just after the end
            if entry := json.loads(self.get(f"/history/{prompt_id}")).get(prompt_id):
                return entry
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} ended but is not in the history")


@dataclass(frozen=True)
class Server:
    """A running ComfyUI."""

    base: Path
    """Its base directory: models, input, output, custom_nodes."""
    client: Client
    log: Path
    comfyui: Any
    pid: int

    @property
    def version(self) -> tuple[int, ...]:
        stats = json.loads(self.client.get("/system_stats"))
        return tuple(int(part) for part in stats["system"]["comfyui_version"].split("."))


def link(source: Path, target: Path) -> None:
    """Make a node pack lie in ``custom_nodes`` too."""
    if os.name == "nt":  # links need a privilege there
        shutil.copytree(source, target, ignore=NOT_COPIED)
    else:
        target.symlink_to(source, target_is_directory=True)


def fill_base_directory(base: Path) -> Path:
    """A base directory with this checkout in ``custom_nodes`` and a small model with random weights."""
    for folder in ("custom_nodes", "input", "models/oasis", "models/diffusion_models", "user/default"):
        (base / folder).mkdir(parents=True)
    link(ROOT, base / "custom_nodes" / PACK)
    # Else a first-run dialog covers the page.
    (base / "user/default/comfy.settings.json").write_text(json.dumps({"Comfy.TutorialCompleted": True}))
    torch.manual_seed(0)
    model = OasisModel(TINY)
    with torch.no_grad():
        for parameter in model.parameters():  # at their start the last layers are zero and hide the rest
            parameter.add_(0.05 * torch.randn_like(parameter))
    routing = RoutingSpec.by_ratio(TINY.depth, TINY.heads, 0.25, 0.5)
    metadata = Metadata(TINY, routing, licence="Apache-2.0", notes="random weights for tests")
    save_checkpoint(base / "models/oasis/random.safetensors", model, metadata)
    return base


@pytest.fixture(scope="session")
def base_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_base_directory(tmp_path_factory.mktemp("comfyui"))


@contextmanager
def running(comfyui: Any, base_directory: Path) -> Iterator[Server]:
    """A server on a free port, ended by its own process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [comfyui.python, Path(__file__).with_name("launch.py"), comfyui.folder, "--cpu", "--port", str(port)]
    command += ["--base-directory", base_directory, "--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
    if root := os.environ.get("COMFYUI_FRONTEND"):  # the page of another version
        command += ["--front-end-root", root]
    path = base_directory / "comfyui.log"
    with path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=base_directory)
        try:
            client = Client(port)
            _wait_until_up(process, client, path)
            yield Server(base_directory, client, path, comfyui, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_up(process: subprocess.Popen[bytes], client: Client, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            client.get("/object_info/OasisUpscale")
            return
        except OSError:
            time.sleep(0.25)
    text = log.read_text(encoding="utf-8", errors="replace")[-4000:]
    raise RuntimeError(f"ComfyUI did not start (exit code {process.poll()}); the end of its log:\n{text}")


@pytest.fixture(scope="session")
def server(comfyui: Any, base_directory: Path) -> Iterator[Server]:
    """Started once."""
    with running(comfyui, base_directory) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Client:
    return server.client

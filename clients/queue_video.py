"""Upscale a video on a running ComfyUI: upload, queue, follow, download.

    pip install websocket-client
    python queue_video.py clip.mp4
    python queue_video.py clip.mp4 --set scale=2 --set codec=h265 --to results
    python queue_video.py clip.mp4 --workflow ../workflows/api/oasis_upscale_video.json

Needs Python 3.10, websocket-client and nothing else; ComfyUI needs the node pack ComfyUI-OASIS. Ctrl-C takes the job back.
Started again with the same video and settings, OASIS Upscale Video goes on where it was.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import websocket
except ModuleNotFoundError:
    sys.exit("queue_video.py needs websocket-client: pip install websocket-client")

Prompt = dict[str, dict[str, Any]]

STREAMED: Prompt = {
    "1": {"class_type": "LoadVideo", "inputs": {"file": ""}},
    "2": {"class_type": "OasisLoadModel", "inputs": {"model_name": "oasis-tiny", "dtype": "auto"}},
    "3": {
        "class_type": "OasisUpscaleVideo",
        "inputs": {
            "video": ["1", 0], "model": ["2", 0], "scale": 4.0, "width": 0, "height": 0, "color": "wavelet",
            "chunk_frames": 16, "tile": 0, "fidelity": 0.5, "codec": "h264", "crf": -1, "preset": "medium",
            "filename_prefix": "video/OASIS", "deinterlace": "refuse", "engine": "this GPU", "ray_address": "auto",
        },
    },
}  # fmt: skip
"""The API form of a workflow, as ComfyUI's "Export (API)" writes it."""
FILE_INPUTS = {"LoadVideo": "file", "VHS_LoadVideo": "video"}
"""Nodes that read a video, and the input that names it."""
ENDS = ("execution_success", "execution_error", "execution_interrupted")
QUIET_SECONDS = 20
"""Without a message for so long, the server is asked whether the job is still there."""
BLOCK = 1 << 20


class Failed(Exception):
    """One line for the user."""


class Server:
    """A running ComfyUI."""

    def __init__(self, address: str) -> None:
        self.address = address.removeprefix("http://").rstrip("/")
        self.id = uuid.uuid4().hex

    def ask(self, path: str, data: Any = None) -> Any:
        """GET, or POST of ``data`` as JSON; the answer's JSON. Raises Failed."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as e:
            raise Failed(f"ComfyUI refused {path}: {_reason(e.read())}") from None
        except OSError as e:
            raise Failed(f"no ComfyUI at {self.address} ({e}): start it, or say where it is with --server") from None

    def upload(self, path: Path) -> str:
        """Put a file into ComfyUI's input folder, block by block; its name there. Raises Failed."""
        boundary = uuid.uuid4().hex
        quoted = path.name.replace('"', "_")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{quoted}"\r\n\r\n'.encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + path.stat().st_size + len(tail)),
        }
        connection = http.client.HTTPConnection(self.address, timeout=600)
        try:
            # ComfyUI names a file of other content anew and takes one of the same content as it is.
            connection.request("POST", "/upload/image", _blocks(head, path, tail), headers)
            answer = connection.getresponse()
            status, text = answer.status, answer.read()
        except OSError as e:
            raise Failed(f"the upload to {self.address} broke off ({e}); {_too_large(path)}") from None
        finally:
            connection.close()
        if status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise Failed(f"ComfyUI takes no file that large; {_too_large(path)}")
        if status != http.HTTPStatus.OK:
            raise Failed(f"ComfyUI did not take {path.name}: {status} {_reason(text)}")
        return json.loads(text)["name"]

    def download(self, saved: dict[str, str], folder: Path) -> Path:
        """A file that a node saved."""
        query = urllib.parse.urlencode({key: saved[key] for key in ("filename", "subfolder", "type")})
        target = folder / saved["filename"]
        with (
            urllib.request.urlopen(f"http://{self.address}/view?{query}", timeout=600) as answer,
            target.open("wb") as f,
        ):
            shutil.copyfileobj(answer, f, BLOCK)
        return target

    def finished(self, job: str) -> dict[str, Any] | None:
        """The history entry of a job that has ended; None while it waits or runs. Raises Failed where it is gone."""
        if entry := self.ask(f"/history/{job}").get(job):
            return entry
        queue = self.ask("/queue")
        if job in [item[1] for item in queue["queue_running"] + queue["queue_pending"]]:
            return None
        time.sleep(1)  # between the queue and the history
        if entry := self.ask(f"/history/{job}").get(job):
            return entry
        raise Failed("ComfyUI no longer knows the job (was it started anew?): run this again, it goes on where it was")

    def take_back(self, job: str) -> None:
        """Stop it where it runs, else take it out of the queue."""
        running = [item[1] for item in self.ask("/queue")["queue_running"]]
        if job in running:
            self.ask("/interrupt", {"prompt_id": job})
        else:
            self.ask("/queue", {"delete": [job]})

    def follow(self, ws: websocket.WebSocket | None, job: str, names: dict[str, str]) -> dict[str, Any]:
        """Tell the progress until the job ends; its history entry. A lost connection is made anew."""
        try:
            while True:
                try:
                    message = ws.recv() if ws is not None else None
                except (websocket.WebSocketException, OSError):
                    message = None
                if message is None:  # quiet, or lost
                    if entry := self.finished(job):
                        return entry
                    if ws is None or not ws.connected:
                        time.sleep(1)
                        ws = self.connect()
                elif isinstance(message, str) and message and _tell(json.loads(message), job, names):
                    while not (entry := self.finished(job)):
                        time.sleep(0.2)
                    return entry
        finally:
            if ws is not None:
                ws.close()

    def connect(self) -> websocket.WebSocket | None:
        """To the messages; None where that fails."""
        try:
            return websocket.create_connection(f"ws://{self.address}/ws?clientId={self.id}", timeout=QUIET_SECONDS)
        except (websocket.WebSocketException, OSError):
            return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path, help="the file to upscale")
    parser.add_argument("--to", type=Path, default=Path(), help="folder for the result (default: this one)")
    parser.add_argument("--server", default="127.0.0.1:8188", help="where ComfyUI listens (default 127.0.0.1:8188)")
    parser.add_argument("--workflow", type=Path, help="another workflow, in its API form (default: streamed, as above)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, in every node that has it"
    )
    parser.add_argument("--uploaded", action="store_true", help="the video lies in ComfyUI's input folder already")
    args = parser.parse_args(argv)
    try:
        for path in upscale(args):
            print(path)
    except Failed as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def upscale(args: argparse.Namespace) -> list[Path]:
    """What the command line asks for. Raises Failed."""
    if not args.uploaded and not args.video.is_file():
        raise Failed(f"there is no file {args.video}")
    prompt = read_workflow(args.workflow) if args.workflow else json.loads(json.dumps(STREAMED))
    for setting in args.set:
        change(prompt, setting)
    args.to.mkdir(parents=True, exist_ok=True)
    server = Server(args.server)
    server.ask("/system_stats")
    give_video(prompt, str(args.video) if args.uploaded else server.upload(args.video))
    ws = server.connect()  # before the job is queued: a short one could end unheard
    job = server.ask("/prompt", {"prompt": prompt, "client_id": server.id})["prompt_id"]
    try:
        entry = server.follow(ws, job, {node: content["class_type"] for node, content in prompt.items()})
    except KeyboardInterrupt:
        server.take_back(job)
        raise Failed("taken back") from None
    finally:
        print(file=sys.stderr)
    if entry["status"]["status_str"] != "success":
        raise Failed(why(entry))
    return [server.download(file, args.to) for file in saved_files(entry["outputs"])]


def read_workflow(path: Path) -> Prompt:
    """A workflow in its API form. Raises Failed."""
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise Failed(f"{path} is not a readable workflow ({e})") from None
    if not isinstance(prompt, dict) or not all(isinstance(n, dict) and "class_type" in n for n in prompt.values()):
        raise Failed(f"{path} is not the API form of a workflow; export it with ComfyUI's Export (API)")
    return prompt


def change(prompt: Prompt, setting: str) -> None:
    """``NAME=VALUE`` into every node with an input of that name; the value in the type of the one that is there."""
    name, _, text = setting.partition("=")
    nodes = [n["inputs"] for n in prompt.values() if name in n["inputs"] and not isinstance(n["inputs"][name], list)]
    if not nodes:
        known = sorted({k for n in prompt.values() for k, v in n["inputs"].items() if not isinstance(v, list)})
        raise Failed(f"no node of this workflow has the setting {name!r}; there are: {', '.join(known)}")
    for inputs in nodes:
        kind = type(inputs[name])
        try:
            inputs[name] = json.loads(text.lower()) if kind is bool else kind(text)
        except ValueError:
            raise Failed(f"{name} is {text!r}; it must be a value such as {inputs[name]!r}") from None


def give_video(prompt: Prompt, name: str) -> None:
    """Write the uploaded file's name into the node that reads a video. Raises Failed where there is not just one."""
    readers = [node for node in prompt.values() if node["class_type"] in FILE_INPUTS]
    if len(readers) != 1:
        raise Failed(
            f"the workflow has {len(readers)} nodes that read a video ({', '.join(FILE_INPUTS)}); it needs one"
        )
    readers[0]["inputs"][FILE_INPUTS[readers[0]["class_type"]]] = name


def saved_files(outputs: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """What the nodes wrote into the output folder."""
    lists = [value for output in outputs.values() for value in output.values() if isinstance(value, list)]
    return [f for files in lists for f in files if isinstance(f, dict) and f.get("type") == "output"]


def why(entry: dict[str, Any]) -> str:
    """The line of the node that failed."""
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            return f"{data['node_type']}: {data['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return "the job was interrupted"
    return "the job failed; ComfyUI's log says more"


def _tell(message: dict[str, Any], job: str, names: dict[str, str]) -> bool:
    """Print progress; True at the job's end."""
    data = message.get("data") or {}
    if data.get("prompt_id") != job:
        return False
    if message["type"] == "progress":
        name = names.get(str(data.get("node")), "")
        print(f"\r{name}: {data['value']:.0f} of {data['max']:.0f}   ", end="", file=sys.stderr, flush=True)
    return message["type"] in ENDS


def _blocks(head: bytes, path: Path, tail: bytes) -> Iterator[bytes]:
    yield head
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block
    yield tail


def _reason(text: bytes) -> str:
    """One line out of ComfyUI's refusal."""
    try:
        answer = json.loads(text)
        errors = [e for node in answer.get("node_errors", {}).values() for e in node["errors"]]
        return "; ".join(f"{e['message']}: {e['details']}" for e in errors) or answer["error"]["message"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return text.decode(errors="replace").strip()[:200] or "no reason given"


def _too_large(path: Path) -> str:
    return (
        f"{path.name} has {path.stat().st_size / 1e6:.0f} MB: start ComfyUI with a larger --max-upload-size (100 MB if not "
        "set), or copy the file into its input folder and give its name there with --uploaded"
    )


if __name__ == "__main__":
    sys.exit(main())

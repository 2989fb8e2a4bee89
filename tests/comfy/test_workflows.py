"""The workflows in ``workflows/``, queued as they are: API form over HTTP, followed by websocket, results checked."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from oasis_core.checkpoints import embedded_path, load_checkpoint
from oasis_core.geometry import resize
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.video_io import VideoReader

pytestmark = pytest.mark.comfy

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLE = ROOT / "assets" / "sample.mp4"
UPSCALE_VIDEO = ROOT / "workflows" / "api" / "oasis_upscale_video.json"
LONG_VIDEO = ROOT / "workflows" / "api" / "oasis_long_video.json"
RATE = Fraction(24000, 1001)
MIN_PSNR = 30.0
"""Of the saved video against the frames that went into it: SaveVideo's H.264 on a clip with sharp edges."""


def write_clip(path: Path, frames: int, height: int, width: int) -> None:
    """A moving smooth pattern with a hard edge, and a tone of the same length."""
    torch.manual_seed(0)
    pattern = resize(torch.rand(1, 6, 8, 3), height, width + 3 * frames)[0]
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=RATE)
        video.width, video.height, video.pix_fmt, video.options = width, height, "yuv420p", {"crf": "10"}
        audio = out.add_stream("aac", rate=44100, layout="stereo")
        for i in range(frames):
            picture = pattern[:, 3 * i : 3 * i + width].clone()
            picture[height // 4 : height // 2, 8 + 2 * i : 24 + 2 * i] = 0.9
            frame = av.VideoFrame.from_ndarray((picture * 255).to(torch.uint8).numpy(), format="rgb24")
            out.mux(video.encode(frame))
        samples = round(frames / RATE * 44100)
        tone = (0.2 * np.sin(np.arange(samples) * 2 * np.pi * 440 / 44100)).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
        sound.sample_rate = 44100
        out.mux(audio.encode(sound))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))


def read_clip(path: Path) -> tuple[Tensor, Fraction, float]:
    """Frames ``(T, H, W, 3)`` in [0, 1], frame rate, seconds of audio."""
    with av.open(str(path)) as file:
        rate = file.streams.video[0].average_rate
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with av.open(str(path)) as file:
        seconds = sum(f.samples / f.sample_rate for f in file.decode(audio=0)) if file.streams.audio else 0.0
    return torch.from_numpy(np.stack(frames)).float() / 255, rate, seconds


def psnr(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return -10 * (a - b).square().mean().log10().item()


def saved_video(client: Any, run: Any, folder: Path) -> Path:
    assert run.end == "execution_success", run.messages[-1]
    (video,) = [output["images"][0] for output in run.outputs.values() if output.get("animated")]
    return client.download(video, folder / video["filename"])


def test_upscale_video(client: Any, tmp_path: Path) -> None:
    """The workflow as shipped, on a small clip under the sample's name."""
    write_clip(tmp_path / "clip.mp4", frames=18, height=48, width=64)
    prompt = json.loads(UPSCALE_VIDEO.read_text(encoding="utf-8"))
    client.upload(tmp_path / "clip.mp4", prompt["1"]["inputs"]["file"])
    run = client.run(prompt)
    frames, rate, seconds = read_clip(saved_video(client, run, tmp_path))
    assert frames.shape == (18, 192, 256, 3)
    assert float(rate) == pytest.approx(float(RATE), abs=0.01)
    assert seconds == pytest.approx(18 / RATE, abs=0.1)
    # The same prompt, with what goes in and out of our node as pictures: nothing is computed again.
    png = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "lr"}}
    again = client.run({**prompt, "lr": png, "sr": {**png, "inputs": {"images": ["4", 0], "filename_prefix": "sr"}}})
    assert "4" in again.data("execution_cached")[0]["nodes"]
    lr, sr = (client.pictures(again, node, tmp_path) for node in ("lr", "sr"))
    checkpoint = load_checkpoint(embedded_path())
    core = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings()).upscale(lr)
    assert psnr(sr, core) > 45  # pictures are cut to 8 bits, and newer ComfyUI's video frames are not 8-bit values
    assert psnr(sr, core) > psnr(sr, resize(lr, 192, 256)) + 6  # it is not plain interpolation
    assert psnr(frames, sr) > MIN_PSNR


def test_long_video(client: Any, tmp_path: Path) -> None:
    """The streamed workflow as shipped, on a small clip under the sample's name: the core's result, with the sound."""
    write_clip(tmp_path / "clip.mp4", frames=18, height=48, width=64)
    prompt = json.loads(LONG_VIDEO.read_text(encoding="utf-8"))
    client.upload(tmp_path / "clip.mp4", prompt["1"]["inputs"]["file"])
    run = client.run(prompt)
    frames, rate, seconds = read_clip(saved_video(client, run, tmp_path))
    assert float(rate) == pytest.approx(float(RATE), abs=0.01)
    assert seconds == pytest.approx(18 / RATE, abs=0.1)
    lr = torch.stack([frame.rgb for frame in VideoReader(tmp_path / "clip.mp4")])
    checkpoint = load_checkpoint(embedded_path())
    core = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings()).upscale(lr)
    assert psnr(frames, core) > 35  # H.264 at its default quality


@pytest.mark.slow
def test_bundled_sample(client: Any, tmp_path: Path) -> None:
    """What a new user does: the sample into ComfyUI's input folder, the workflow, Run."""
    client.upload(SAMPLE, SAMPLE.name)
    run = client.run(json.loads(UPSCALE_VIDEO.read_text(encoding="utf-8")))
    given, given_rate, given_seconds = read_clip(SAMPLE)
    frames, rate, seconds = read_clip(saved_video(client, run, tmp_path))
    assert frames.shape == (len(given), 4 * given.shape[1], 4 * given.shape[2], 3)
    assert float(rate) == pytest.approx(float(given_rate), abs=0.01)
    assert seconds == pytest.approx(given_seconds, abs=0.1)
    assert psnr(resize(frames, *given.shape[1:3]), given) > 25

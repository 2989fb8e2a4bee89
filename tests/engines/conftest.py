"""A tiny random model and a clip of several shots, for jobs that several workers share."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from oasis_core.cli import main
from oasis_core.engines.cluster import LOOPBACK

from ..tiny_job import options as upscale_options
from ..tiny_job import save_random_model

FRAMES, CUT = 60, 23


@pytest.fixture(scope="session", autouse=True)
def _reach(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What Ray reads once in a process, before its first use: else it takes 127.0.0.1 for the machine's address in the network,
    and asks for a token of each Ray's own. And a cache for the shared Ray's workers, which live longer than a test."""
    with pytest.MonkeyPatch.context() as patch:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        cache = {"OASIS_CACHE": str(tmp_path_factory.mktemp("cache"))}
        for name, value in {**LOOPBACK, **token, **cache}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Of a Ray with two cores on this machine, which all tests may join that do not start one of their own."""
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("shared_ray.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip()
    finally:
        child.communicate("", timeout=60)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model") / "random.safetensors")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shots of moving squares with B-frames, a key frame every 10 frames, uneven time stamps, and sound."""
    return make_clip(tmp_path_factory.mktemp("clip") / "in.mkv", 0)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, clip: Path, model: Path) -> Path:
    """What one worker makes."""
    path = tmp_path_factory.mktemp("whole") / "whole.mkv"
    assert main(["upscale", str(clip), str(path), *options(model)]) == 0
    return path


def make_clip(path: Path, seed: int, frames: int = FRAMES) -> Path:
    """64x64."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "10", "bf": "2", "x264-params": "scenecut=0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=48000, layout="mono")
        for i in range(frames):
            picture = np.roll(noise if i < CUT else 255 - noise.transpose(1, 0, 2), i, 0)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = 40 * i + 7 * (i % 3), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for start in range(0, frames * 1920, 1024):
            tone = (np.sin(np.arange(start, start + 1024) / 20) * 8000).astype(np.int16)[None]
            heard = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = 48000, start, Fraction(1, 48000)
            container.mux(sound.encode(heard))
        container.mux(sound.encode(None))
    return path


def options(model: Path, codec: str = "ffv1") -> list[str]:
    """``tiny_job.options``, by default of a codec that loses nothing."""
    return upscale_options(model, codec=codec)


def content(path: Path) -> tuple[list[tuple[bytes, object]], list[bytes]]:
    """Every picture with its time, and every packet of sound."""
    with av.open(str(path)) as container:
        pictures = [(f.to_ndarray(format="rgb24").tobytes(), f.time) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        return pictures, [bytes(p) for p in container.demux(audio=0) if p.size]

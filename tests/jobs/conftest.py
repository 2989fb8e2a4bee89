"""A clip of two shots with sound, a tiny random model, and ways to break what works on them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.cli import main
from oasis_core.model import OasisModel

from ..tiny_job import options, save_random_model

FRAMES = 40
CUT = 23


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model") / "random.safetensors")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shots of moving stripes with sound, uneven time stamps in a base of 1/30000 s, and a clock that starts late."""
    path = tmp_path_factory.mktemp("clip") / "in.mp4"
    base = Fraction(1, 30000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30000, 1001), options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = base
        sound = container.add_stream("aac", rate=48000, layout="mono")
        y, x = np.mgrid[:64, :64]
        for i in range(FRAMES):
            wave = np.sin((x + 2 * i) / 5) if i < CUT else np.cos((y - 3 * i) / 9)
            picture = np.stack([wave, wave * (x / 64), -wave], -1) * 100 + 128
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = 1001 * i + 300 * (i % 3), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for start in range(0, FRAMES * 1600, 1024):
            tone = (np.sin(np.arange(start, start + 1024) / 20) * 8000).astype(np.int16)[None]
            piece = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
            container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
    return path


def content(path: Path) -> tuple[list[bytes], list[Fraction], list[tuple[Fraction, bytes]]]:
    """Decoded frames, their seconds, and the sound's packets."""
    if path.is_dir():
        files = sorted(path.iterdir())
        return [f.read_bytes() for f in files], [Fraction(int(f.stem.split("_")[1])) for f in files], []
    with av.open(str(path)) as container:
        frames = [(f.to_ndarray(format="rgb24").tobytes(), f.pts * f.time_base) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = [
            ((p.pts or 0) * p.time_base, bytes(p))
            for s in container.streams.audio
            for p in container.demux(s)
            if p.size
        ]
    return [f for f, _ in frames], [t for _, t in frames], sound


def run(clip: Path, out: Path, model: Path, *more: str, segment: int = 6, codec: str = "h264") -> int:
    return main(["upscale", str(clip), str(out), *options(model, segment, codec), *more])


def stop_after(monkeypatch: pytest.MonkeyPatch, calls: int, error: BaseException) -> None:
    """The model's nth decoding raises ``error``."""
    real, count = OasisModel.decode, 0

    def decode(self: OasisModel, *args: object, **named: object) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == calls:
            raise error
        return real(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(OasisModel, "decode", decode)


def fails_once(monkeypatch: pytest.MonkeyPatch, module: object, name: str, calls: int, error: BaseException) -> None:
    real, count = getattr(module, name), 0

    def act(*args: object, **named: object) -> object:
        nonlocal count
        count += 1
        if count == calls:
            raise error
        return real(*args, **named)

    monkeypatch.setattr(module, name, act)

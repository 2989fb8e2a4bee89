"""Damaged files of every kind: no crash, no hang, no memory blow-up, no traceback; one line at most.

Mutation number i of a target is the same in every run. To see one again: ``fuzz_worker.py TARGET SEEDS i i+1 KEEP``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.checkpoints import save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.jobs.manifest import Border, Manifest, SegmentRecord
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.plan import Position
from oasis_core.routing import RoutingSpec

WORKER = Path(__file__).with_name("fuzz_worker.py")
FEW = {"video": 60, "checkpoint": 100, "routing": 200, "manifest": 200}
MANY = {"video": 5000, "checkpoint": 2000, "routing": 1500, "manifest": 1500}
VIDEOS = {
    "video_h264.mp4": ("libx264", "yuv420p", {"g": "4", "bf": "2"}),
    "video_h264.mkv": ("libx264", "yuv420p10le", {"g": "4"}),
    "video_h264.ts": ("libx264", "yuv420p", {"g": "4"}),
    "video_fields.mp4": ("libx264", "yuv420p", {"x264-params": "interlaced=1"}),
    "video_h265.mp4": ("libx265", "yuv420p", {"x265-params": "log-level=none:keyint=4"}),
    "video_vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "4"}),
    "video_av1.mkv": ("libsvtav1", "yuv420p", {"preset": "12"}),
    "video_mpeg4.avi": ("mpeg4", "yuv420p", {"g": "4"}),
    "video_mpeg2.mpg": ("mpeg2video", "yuv420p", {"g": "4", "bf": "2"}),
    "video_ffv1.mkv": ("ffv1", "gbrp10le", {}),
    "video_prores.mov": ("prores_ks", "yuv422p10le", {}),
    "video_mjpeg.mov": ("mjpeg", "yuvj420p", {}),
    "video_image.png": ("png", "rgb24", {}),
    "video_image.gif": ("gif", "rgb8", {}),
}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound files, one of each kind."""
    folder = tmp_path_factory.mktemp("seeds")
    picture = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8) // 2
    for name, (codec, pix_fmt, options) in VIDEOS.items():
        path = folder / name
        if path.suffix == ".png":
            av.VideoFrame.from_ndarray(picture, format="rgb24").save(str(path))
            continue
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 80, 64, pix_fmt
            sound = container.add_stream("mp2", rate=48000) if path.suffix == ".mpg" else None
            for i in range(10):
                frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * i, 0), format="rgb24").reformat(format=pix_fmt)
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
            if sound is not None:
                piece = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 19200), np.int16), format="s16", layout="stereo")
                piece.sample_rate, piece.pts = 48000, 0
                container.mux([*sound.encode(piece), *sound.encode(None)])
    config = OasisConfig(
        name="random", unshuffle=(1, 8, 8), latent_channels=4, dim=24, depth=2, heads=2, ffn_dim=24, freq_dim=8,
        decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    routing = RoutingSpec.by_ratio(2, 2, 0.5, 0.5)
    torch.manual_seed(0)
    save_checkpoint(
        folder / "checkpoint.safetensors", OasisModel(config), Metadata(config, routing, "Apache-2.0", "notes")
    )
    (folder / "routing.json").write_text(routing.to_json())
    manifest = Manifest({"input.bytes": 5, "setting.scale": 2.0, "output.crf": None, "model": "abc", "x": True})
    for i in range(3):
        segment = SegmentRecord(f"segment_{i:05d}.nut", 6 * i, 6 * i + 6, 0, 240 * i, 77, 1, "abc", 1.5)
        manifest = manifest.with_segment(segment, Border(Position(6 * i + 6, 0), i == 2, "cut off", 720))
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder


def fuzz(target: str, seeds: Path, count: int) -> list[str]:
    """What went wrong; a worker that dies is started again after the file that killed it."""
    found, first = [], 0
    while first < count:
        argv = [sys.executable, "-X", "faulthandler", str(WORKER), target, str(seeds), str(first), str(count)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, errors="replace")
        lines = done.stdout.splitlines()
        found += [line for line in lines if line.startswith("WRONG")]
        if done.returncode == 0:
            break
        numbers = [int(line) for line in lines if line.isdigit()]
        assert numbers, f"{target}: sound files cannot be read\n{done.stderr[-3000:]}"
        found.append(f"DIED {numbers[-1]} with {done.returncode}: {json.dumps(done.stderr[-1500:])}")
        first = numbers[-1] + 1
    return found


@pytest.mark.parametrize("target", FEW)
def test_a_few_damaged_files(seeds: Path, target: str) -> None:
    assert fuzz(target, seeds, FEW[target]) == []


@pytest.mark.slow
@pytest.mark.parametrize("target", MANY)
def test_ten_thousand_damaged_files(seeds: Path, target: str) -> None:
    assert fuzz(target, seeds, MANY[target]) == []

"""Jobs whose frames are packed where they are made: the file that the host's packing gives."""

from __future__ import annotations

import weakref
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.checkpoints import load_checkpoint
from oasis_core.model import OasisModel
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import Position
from oasis_core.ready import ready
from oasis_core.video_io import VideoReader, WriterSettings
from oasis_core.video_io.device_packing import DevicePacking
from oasis_core.video_job import upscale_video

from .conftest import FRAMES, content, run, stop_after

LOSSLESS = [("ffv1", "out.mkv", ()), ("ffv1", "out.mkv", ("--depth", "10")), ("h264", "out.mp4", ("--crf", "0"))]


def pack_there(monkeypatch: pytest.MonkeyPatch, there: bool = True) -> list[int]:
    """Whatever the device; the numbers of the frames that are made so come into the list."""
    numbers, frame = [], DevicePacking.frame

    def counted(self: DevicePacking, row: torch.Tensor, number: int) -> av.VideoFrame:
        numbers.append(number)
        return frame(self, row, number)

    monkeypatch.setattr(DevicePacking, "frame", counted)
    monkeypatch.setattr("oasis_core.jobs.packers.packs_on", lambda device, packing: there and not packing.images)
    return numbers


def codes(path: Path) -> np.ndarray:
    """Of all frames, as they are stored."""
    with av.open(str(path)) as container:
        names = {"bgr0": "rgb24"}  # which NumPy does not get from PyAV
        frames = [f.to_ndarray(format=names.get(f.format.name, f.format.name)) for f in container.decode(video=0)]
    return np.stack(frames).astype(int)


def check_alike(one: Path, other: Path) -> None:
    differing = np.abs(codes(one) - codes(other))
    assert len(differing) == FRAMES
    assert differing.max() <= 1
    assert (differing == 0).mean() >= 0.999
    assert content(one)[1:] == content(other)[1:]  # times and sound


@pytest.mark.parametrize(("codec", "name", "more"), LOSSLESS)
def test_a_job_that_goes_on(
    tmp_path: Path,
    model: Path,
    clip: Path,
    codec: str,
    name: str,
    more: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host's packing in one go; the device's in one go, and interrupted twice."""
    host, whole, resumed = (tmp_path / f"{which}_{name}" for which in ("host", "whole", "resumed"))
    assert run(clip, host, model, *more, codec=codec) == 0
    numbers = pack_there(monkeypatch)
    assert run(clip, whole, model, *more, codec=codec) == 0
    assert sorted(numbers) == list(range(1, FRAMES + 1))
    check_alike(host, whole)
    for at in (17, 9):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, at, KeyboardInterrupt())
            resume = ("--resume",) if at != 17 else ()
            assert run(clip, resumed, model, *more, *resume, codec=codec) == 130
    assert run(clip, resumed, model, *more, "--resume", codec=codec) == 0
    assert content(resumed) == content(whole)


def test_images_are_packed_on_the_host(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = pack_there(monkeypatch)
    assert run(clip, tmp_path / "out", model, codec="png") == 0
    assert not numbers
    assert len(list((tmp_path / "out").iterdir())) == FRAMES


@pytest.mark.parametrize("there", [False, True])
def test_pictures_are_shown(
    tmp_path: Path, model: Path, clip: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Previews are of pictures, wherever these are packed."""
    numbers = pack_there(monkeypatch, there)
    checkpoint, shown = load_checkpoint(model), []
    upscaler = ready(
        checkpoint, checkpoint.routing, UpscaleSettings(scale=2.0, chunk_frames=5, chunk_overlap=1), "auto", False
    )
    upscale_video(VideoReader(clip), tmp_path / "out.mp4", upscaler, WriterSettings(), show=shown.append)
    assert bool(numbers) is there
    assert 1 < len(shown) <= FRAMES
    assert all(tuple(picture.shape) == (128, 128, 3) and picture.is_floating_point() for picture in shown)


def test_what_is_no_number_ends_the_job(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pack_there(monkeypatch)
    pack = DevicePacking.pack

    def broken(self: DevicePacking, frames: torch.Tensor) -> torch.Tensor:
        return pack(self, frames * float("nan"))

    monkeypatch.setattr(DevicePacking, "pack", broken)
    assert run(clip, tmp_path / "out.mp4", model) == 2
    assert "frame 1 holds NaN or infinite values" in capfd.readouterr().err


def test_finished_frames_are_gone_before_the_next_are_made(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made of them is all that waits beside the next decoding."""
    checkpoint, made = load_checkpoint(model), list[weakref.ref[torch.Tensor]]()
    upscaler = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(scale=2.0, chunk_frames=5, at_once=2))
    real = OasisModel.decode

    def decode(self: OasisModel, *args: object, **named: object) -> torch.Tensor:
        assert all(frames() is None for frames in made)
        return real(self, *args, **named)  # type: ignore[arg-type]

    def finish(frames: torch.Tensor) -> torch.Tensor:
        made.append(weakref.ref(frames))
        return frames[:, :1, :1, 0].clone()

    monkeypatch.setattr(OasisModel, "decode", decode)
    rows = [part.frames for part in upscaler.parts(iter(torch.rand(12, 64, 64, 3)), Position(), finish=finish)]
    assert sum(map(len, rows)) == 12
    assert len(made) > 5


@pytest.mark.gpu
@pytest.mark.parametrize(("codec", "name", "more"), LOSSLESS)
def test_on_cuda(tmp_path: Path, clip: Path, codec: str, name: str, more: tuple[str, ...]) -> None:
    """Frames packed on the GPU and on the host after it, both of the embedded model."""
    options = (*more, "--device", "cuda")
    with pytest.MonkeyPatch.context() as patch:
        assert not pack_there(patch, there=False)
        assert run(clip, tmp_path / f"host_{name}", Path("oasis-tiny"), *options, codec=codec) == 0
    with pytest.MonkeyPatch.context() as patch:
        numbers, frame = [], DevicePacking.frame
        patch.setattr(DevicePacking, "frame", lambda *given: numbers.append(given[2]) or frame(*given))
        assert run(clip, tmp_path / f"there_{name}", Path("oasis-tiny"), *options, codec=codec) == 0
    assert sorted(numbers) == list(range(1, FRAMES + 1))
    check_alike(tmp_path / f"host_{name}", tmp_path / f"there_{name}")

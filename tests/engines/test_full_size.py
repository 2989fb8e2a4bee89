"""Full-size models (here made small) on several workers: a decoder with a memory, its file, and a plan for the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from oasis_core.checkpoints.decoder import load_decoder
from oasis_core.checkpoints.read import load_checkpoint
from oasis_core.cli import main
from oasis_core.engines.film import FilmRequest
from oasis_core.engines.orders import Order, Outcome, Source, WorkerSettings
from oasis_core.engines.ray_job import upscale_on_ray
from oasis_core.engines.told import RaySettings
from oasis_core.engines.worker import SegmentWorker
from oasis_core.jobs.fit import WAN_PLANS, fit
from oasis_core.jobs.folder import JobFolder
from oasis_core.jobs.manifest import Manifest
from oasis_core.jobs.scan import Scan
from oasis_core.model.decoders import DecodePlan
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.video_io import VideoReader, WriterSettings
from oasis_core.video_job import JobSettings

from ..test_full_size_pipeline import files, pictures
from .ray_runs import marked, needs_ray
from .test_shared_decisions import keep_last

FRAMES, CUT = 50, 21
SEGMENT = 8
SETTINGS = UpscaleSettings(scale=1.0, chunk_frames=5, chunk_overlap=1)
"""Chunks take over every 4 frames, so that the decoder begins anew at every second one."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A clip of two shots, a model and its decoder."""
    folder = tmp_path_factory.mktemp("made")
    _, model, decoder = files(folder)
    clip, rng = folder / "clip.mkv", np.random.default_rng(1)
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv444p"
        for i in range(FRAMES):
            picture = np.full((16, 16, 3), 2 * i if i < CUT else 250 - 2 * i, np.uint8)
            picture += rng.integers(0, 5, (16, 16, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return clip, model, decoder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, made: tuple[Path, Path, Path]) -> tuple[np.ndarray, Manifest]:
    """What one process makes, and its manifest."""
    out, last = tmp_path_factory.mktemp("whole") / "whole.mkv", list[Manifest]()
    with pytest.MonkeyPatch.context() as patch:
        keep_last(patch, last)
        assert main(command(made, out)) == 0
    return pictures(out), last[0]


def command(made: tuple[Path, Path, Path], out: Path) -> list[str]:
    clip, model, decoder = map(str, made)
    return ["upscale", clip, str(out), "--model", model, "--decoder", decoder, "--scale", "1", "--codec", "ffv1",
            "--device", "cpu", "--chunk", "5", "--overlap", "1", "--segment", str(SEGMENT)]  # fmt: skip


def borders(manifest: Manifest) -> list[tuple[int, int]]:
    return [(s.start, s.stop) for s in manifest.segments]


def upscaler_of(made: tuple[Path, Path, Path], settings: UpscaleSettings = SETTINGS) -> Upscaler:
    checkpoint = load_checkpoint(made[1])
    checkpoint.model.attach_decoder(load_decoder(made[2]))
    return Upscaler(checkpoint.model, checkpoint.routing, settings).restarting(SEGMENT)


def test_a_scan_puts_borders_where_one_process_does(
    made: tuple[Path, Path, Path], whole: tuple[np.ndarray, Manifest]
) -> None:
    upscaler = upscaler_of(made)
    assert upscaler.restart_chunks == 2
    expected = borders(whole[1])
    assert any(start == CUT for start, _ in expected)
    assert len(expected) >= 5
    scan = list(Scan(VideoReader(made[0]), upscaler, Manifest({}), SEGMENT))
    assert [(t.start.frame, t.stop) for t in scan] == expected
    for segment, task in zip(whole[1].segments[:-1], scan[1:], strict=True):  # from any of them on
        begun = Manifest({}, segments=whole[1].segments[: whole[1].segments.index(segment) + 1])
        again = Scan(VideoReader(made[0]), upscaler, begun, SEGMENT)
        assert [(t.start, t.stop) for t in again] == [(t.start, t.stop) for t in scan[scan.index(task) :]]


@needs_ray
@pytest.mark.slow
def test_two_workers_make_what_one_process_makes(
    address: str, tmp_path: Path, made: tuple[Path, Path, Path], whole: tuple[np.ndarray, Manifest],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, last = tmp_path / "out.mkv", list[Manifest]()
    keep_last(monkeypatch, last)
    ray = ["--engine", "ray", "--address", address, "--workers", "2"]
    assert main([*command(made, out), *ray]) == 0
    assert (pictures(out) == whole[0]).all()
    assert whole[0].shape == (FRAMES, 16, 16, 3)
    assert whole[0].std() > 5
    assert borders(last[-1]) == borders(whole[1])
    # Begun here, ended there.
    half = tmp_path / "half.mkv"
    add, count = JobFolder.add, 0

    def stop(self: JobFolder, *given: Any) -> None:
        nonlocal count
        add(self, *given)
        count += 1
        if count == 2:
            raise OSError("the end")

    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "add", stop)
        assert main(command(made, half)) == 2
    assert main([*command(made, half), *ray, "--resume"]) == 0
    assert (pictures(half) == whole[0]).all()
    # What is missing is told before anything is begun.
    capsys.readouterr()
    bare = [word for word in command(made, tmp_path / "x.mkv") if word not in ("--decoder", str(made[2]))]
    assert main([*bare, *ray]) == 2
    assert "--decoder" in capsys.readouterr().err
    assert main([*(w.replace("vae.", "no.") for w in command(made, tmp_path / "x.mkv")), *ray]) == 2
    assert "decoder file not found" in capsys.readouterr().err
    assert not (tmp_path / "x.mkv.oasis").exists()


@needs_ray
@pytest.mark.slow
def test_the_plan_is_the_smallest_worker_s_and_files_come_to_those_that_lack_them(
    address: str, tmp_path: Path, made: tuple[Path, Path, Path], whole: tuple[np.ndarray, Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    small, plan = 1 << 10, WAN_PLANS[-1]
    fitted = fit(upscaler_of(made, replace(SETTINGS, chunk_frames=9)), FRAMES, 16, 16, small)
    assert (fitted.model.decoder.plan, fitted.settings.chunk_frames) == (plan, 5)
    said, far, last = tmp_path / "said", tmp_path / "far", list[Manifest]()
    said.mkdir()
    far.mkdir()

    class Poor(SegmentWorker):
        """One has little memory; neither finds model or decoder where the driver does."""

        def __init__(self, settings: WorkerSettings, server: Any = None, text: str = "") -> None:
            import tempfile

            tempfile.tempdir = str(far)
            assert settings.decoder is not None
            elsewhere = Path("elsewhere")
            there = replace(
                settings, model=str(elsewhere / Path(settings.model).name),
                decoder=str(elsewhere / Path(settings.decoder).name),
            )  # fmt: skip
            super().__init__(there, server, text)
            self._facts = replace(self._facts, budget=small if marked(said / "poor") else 1 << 60)

        def make(self, order: Order) -> Outcome:
            outcome = super().make(order)
            used = self._upscaler.model.decoder.plan.to_text()  # type: ignore[union-attr, operator]
            (said / f"plan-{order.attempt}-{used}-{order.chunk_frames}").touch()
            return outcome

    keep_last(monkeypatch, last)
    out = tmp_path / "out.mkv"
    loaded = WorkerSettings(
        str(made[1]), None, replace(SETTINGS, chunk_frames=9), "cpu", "auto", "auto", False, str(made[2])
    )
    [result] = upscale_on_ray(
        [FilmRequest(Source(made[0]), out)], loaded, WriterSettings("ffv1"), JobSettings(False, SEGMENT),
        RaySettings(address, 2), worker=Poor,
    )  # fmt: skip
    assert result.error is None
    assert (last[-1].decode_plan, last[-1].chunk_frames) == (plan, 5)
    used = {note.name.split("-", 2)[2] for note in said.glob("plan-*")}
    assert used == {f"{plan.to_text()}-5"}
    assert np.abs(pictures(out).astype(int) - whole[0]).max() <= 1  # of those chunks; decoder tiles round otherwise
    assert not list(far.iterdir())


def test_a_plan_reads_back() -> None:
    for plan in WAN_PLANS:
        assert DecodePlan.of_text(plan.to_text()) == plan
        assert Manifest.from_json(Manifest({}, decoder=plan.to_text()).to_json()).decode_plan == plan
    for bad in ("", "1,2,3", "a,24,1,", "-1,24,1,", "0,24,1,nowhere", "0,24,1,cpu,"):
        with pytest.raises(ValueError, match="plan is"):
            Manifest.from_json(Manifest({}, decoder=bad).to_json())

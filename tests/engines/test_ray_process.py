"""A Ray job in a process of its own, as ComfyUI's node runs it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from oasis_core.cli import main
from oasis_core.engines.orders import WorkerSettings
from oasis_core.engines.ray_process import RayRequest, upscale_in_process
from oasis_core.engines.told import RaySettings
from oasis_core.jobs.folder import job_path, read_manifest
from oasis_core.pipeline import UpscaleSettings
from oasis_core.video_io import Deinterlace, WriterSettings
from oasis_core.video_job import JobSettings

from .conftest import content, make_clip, options
from .ray_runs import needs_ray

FRAMES = 300


def request(clip: Path, out: Path, model: Path, resume: bool = False, address: str | None = None) -> RayRequest:
    settings = UpscaleSettings(scale=2.0, chunk_frames=5, chunk_overlap=1)
    worker = WorkerSettings(str(model), None, settings, "cpu", "fp32", "auto", False)
    notes = {"workflow": '{"a": "\u653e\u5927\\n"}'}
    return RayRequest(
        clip, out, None, notes, worker, WriterSettings("ffv1"), JobSettings(resume, 6), RaySettings(address, 2)
    )


def test_a_request_survives_its_journey(tmp_path: Path) -> None:
    asked = request(tmp_path / "a.mkv", tmp_path / "b.mkv", tmp_path / "m")
    assert RayRequest.from_json(asked.to_json()) == asked
    assert "\n" not in asked.to_json()
    fields = RayRequest(**{**vars(asked), "deinterlace": Deinterlace.of("field")})
    assert RayRequest.from_json(fields.to_json()) == fields


@needs_ray
@pytest.mark.slow
def test_cancelled_and_gone_on_with(address: str, tmp_path: Path, model: Path) -> None:
    clip, out, whole = make_clip(tmp_path / "in.mkv", 6, FRAMES), tmp_path / "out.mkv", tmp_path / "whole.mkv"
    assert main(["upscale", str(clip), str(whole), *options(model)]) == 0
    seen: list[tuple[float, int | None]] = []

    class Cancelled(Exception):
        pass

    def poll() -> None:
        if seen and seen[-1][0] > 20:
            raise Cancelled

    began = time.monotonic()
    with pytest.raises(Cancelled):
        upscale_in_process(request(clip, out, model), lambda done, total: seen.append((done, total)), poll)
    assert time.monotonic() - began < 60
    manifest = read_manifest(job_path(out))
    assert manifest is not None
    assert 0 < manifest.finished < FRAMES
    with pytest.raises(OSError, match="go on with --resume"):
        upscale_in_process(request(clip, out, model, address=address))
    done = upscale_in_process(request(clip, out, model, resume=True, address=address))
    assert (done.frames, done.width, done.height) == (FRAMES, 128, 128)
    assert done.kept >= manifest.finished
    assert content(out) == content(whole)

"""Jobs that run out of memory go on with less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oasis_core.checkpoints import load_checkpoint
from oasis_core.jobs.shrink import smaller
from oasis_core.model import OasisModel
from oasis_core.pipeline import Upscaler, UpscaleSettings

from .conftest import FRAMES, content, run, stop_after


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("MPS backend out of memory (...)")])
def test_out_of_memory_goes_on_with_half_the_chunk(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:  # fmt: skip
    real, sizes = OasisModel.restore, []

    def restore(self: OasisModel, z_l: torch.Tensor, *args: object) -> torch.Tensor:
        sizes.append(z_l.shape[2])
        if z_l.shape[2] > 2 and len(sizes) > 3:
            raise error
        return real(self, z_l, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(OasisModel, "restore", restore)
    assert run(clip, tmp_path / "out.mp4", model) == 0
    assert len(content(tmp_path / "out.mp4")[0]) == FRAMES
    lines = [r.getMessage() for r in caplog.records if "out of memory" in r.getMessage()]
    assert lines == ["out of memory with chunk 5, tile by size: going on from frame 8 with chunk 2, tile by size"]
    assert max(sizes[4:]) == 2


def test_a_smaller_plan_survives_an_interruption(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same frames whether or not the job is also interrupted, before or after its chunks were halved."""

    def limited(patch: pytest.MonkeyPatch) -> None:
        real, calls = OasisModel.restore, []

        def restore(self: OasisModel, z_l: torch.Tensor, *args: object) -> torch.Tensor:
            calls.append(1)
            if z_l.shape[2] > 2 and len(calls) > 3:
                raise torch.OutOfMemoryError
            return real(self, z_l, *args)  # type: ignore[arg-type]

        patch.setattr(OasisModel, "restore", restore)

    whole, out = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    with monkeypatch.context() as patch:
        limited(patch)
        assert run(clip, whole, model, codec="ffv1") == 0
    monkeypatch.setenv("OASIS_CACHE", str(tmp_path / "cache"))  # else it would begin with the first job's plan
    with monkeypatch.context() as patch:
        limited(patch)
        stop_after(patch, 25, KeyboardInterrupt())
        assert run(clip, out, model, codec="ffv1") == 130
    assert run(clip, out, model, "--resume", codec="ffv1") == 0
    assert content(out) == content(whole)


def test_where_nothing_fits_the_error_names_what_to_lower(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def restore(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(OasisModel, "restore", restore)
    assert run(clip, tmp_path / "out.mp4", model, "--scale", "4") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "even with chunk 1, tile 128: lower the output size (scale, or width and height)" in error[-1]
    assert list(tmp_path.iterdir()) == []


def test_plans_shrink_to_the_end(model: Path) -> None:
    checkpoint = load_checkpoint(model)
    up: Upscaler | None = Upscaler(
        checkpoint.model, checkpoint.routing, UpscaleSettings(chunk_frames=16, chunk_overlap=5, tile_overlap=208)
    )
    seen = []
    while up is not None:
        seen.append((up.settings.chunk_frames, up.settings.tile))
        up = smaller(up, 540, 960)
    assert seen == [(16, None), (8, None), (4, None), (2, None), (1, None), (1, 640), (1, 320), (1, 160), (1, 128)]


def test_tiles_shrink_in_whole_tokens(model: Path) -> None:
    """Half of 656 pixels, 41 tokens of 16, is none."""
    checkpoint = load_checkpoint(model)
    up: Upscaler | None = Upscaler(
        checkpoint.model, checkpoint.routing, UpscaleSettings(chunk_frames=1, tile=656, tile_overlap=240)
    )
    seen = []
    while up is not None:
        seen.append((up.settings.tile, up.settings.tile_overlap))
        up = smaller(up, 540, 960)
    assert seen == [(656, 240), (320, 160), (160, 80), (128, 64)]

"""Workers that see no file of the driver's, and batches of many films."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from oasis_core.cli import main
from oasis_core.engines.orders import Order, Outcome, Source
from oasis_core.engines.worker import SegmentWorker

from .conftest import FRAMES, content, make_clip, options
from .ray_runs import needs_ray, on_ray


@needs_ray
@pytest.mark.slow
def test_files_go_through_the_object_store(address: str, tmp_path: Path, clip: Path, model: Path, whole: Path) -> None:
    """Workers that see neither input nor job folder; blocks so small that every file takes many."""
    far, seen, out = tmp_path / "far", tmp_path / "seen", tmp_path / "out.mkv"
    far.mkdir()
    seen.mkdir()

    class Far(SegmentWorker):
        def __init__(self, *given: Any) -> None:
            import tempfile

            from oasis_core.engines import far_files

            tempfile.tempdir, far_files.BLOCK = str(far), 5000
            super().__init__(*given)

        def _open(self, source: Source) -> Any:
            (seen / str(source.path).replace("/", "_")).touch()
            return super()._open(source)

    [result] = on_ray(address, [clip], out, model, Far, streamed=True)
    assert result.error is None
    assert content(out) == content(whole)
    assert len(list(seen.iterdir())) == 1  # one copy for both workers
    assert all("far_oasis_" in place.name for place in seen.iterdir())
    assert [place.name for place in far.iterdir()] == []


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "frame_%05d.png"])
def test_images_go_through_the_object_store(address: str, tmp_path: Path, clip: Path, model: Path, name: str) -> None:
    """A folder or a pattern in, a folder out."""
    images, whole, out = tmp_path / "images", tmp_path / "whole", tmp_path / "out"
    assert main(["upscale", str(clip), str(images), *options(model, "png")]) == 0
    assert main(["upscale", str(images / name), str(whole), *options(model, "png")]) == 0
    far = tmp_path / "far"
    far.mkdir()

    class Far(SegmentWorker):
        def __init__(self, *given: Any) -> None:
            import tempfile

            tempfile.tempdir = str(far)
            super().__init__(*given)

    [result] = on_ray(address, [images / name], out, model, Far, streamed=True, codec="png")
    assert result.error is None
    assert [p.name for p in sorted(out.iterdir())] == [p.name for p in sorted(whole.iterdir())]
    assert all((out / p.name).read_bytes() == p.read_bytes() for p in whole.iterdir())
    assert list(far.iterdir()) == []


@needs_ray
@pytest.mark.slow
def test_a_batch_keeps_workers_busy_across_files(
    address: str, tmp_path: Path, clip: Path, model: Path, whole: Path
) -> None:
    """The first film's last segment ends only when one of another film has begun, by another worker."""
    films, out = [clip, *(make_clip(tmp_path / f"{seed}.mkv", seed, 40) for seed in (3, 4))], tmp_path / "out"
    (tmp_path / "bad.mkv").write_text("no video")
    out.mkdir()
    begun = tmp_path / "begun"
    begun.mkdir()

    class Meeting(SegmentWorker):
        def _make(self, order: Order) -> Outcome:
            me, last = str(os.getpid()), order.source.path.stem == "in" and order.task.stop == FRAMES
            (begun / (f"last-{me}" if last else f"{order.source.path.stem}-{me}")).touch()
            until = time.monotonic() + 60
            while last and not any(not p.name.endswith(f"-{me}") for p in begun.glob("[34]-*")):
                if time.monotonic() > until:
                    raise RuntimeError("no other worker began another film")
                time.sleep(0.02)
            return super()._make(order)

    results = on_ray(address, [*films[:2], tmp_path / "bad.mkv", films[2]], out, model, Meeting)
    assert list(begun.glob("last-*"))
    assert [r.error is None for r in results] == [True, True, False, True]
    assert results[2].error is not None
    assert results[2].error.startswith("bad.mkv: ")
    assert content(out / "in.mkv") == content(whole)
    for film in films[1:]:
        alone = tmp_path / f"alone_{film.name}"
        assert main(["upscale", str(film), str(alone), *options(model)]) == 0
        assert content(out / film.name) == content(alone)
    assert sorted(p.name for p in out.iterdir()) == sorted(f.name for f in films)

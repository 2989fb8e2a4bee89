"""Segments made one by one, in any order, by anyone: the result is that of one pass."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import pytest

from oasis_core.checkpoints import load_checkpoint
from oasis_core.cli import main
from oasis_core.jobs.begin_and_end import join, open_video_job, output_size, what_is_asked
from oasis_core.jobs.fingerprint import hash_model
from oasis_core.jobs.folder import JobFolder, job_path
from oasis_core.jobs.one_segment import make_segment
from oasis_core.jobs.scan import Scan, SegmentTask
from oasis_core.jobs.segment_files import segment_name
from oasis_core.jobs.segments import BorderFinder, plan_segments
from oasis_core.jobs.shrink import with_plan
from oasis_core.pipeline import UpscaleSettings
from oasis_core.plan import Position
from oasis_core.ready import ready
from oasis_core.video_io import VideoReader, WriterSettings

from .conftest import CUT, FRAMES, content, options


class Parts:
    """A job as the command opens it, its segments still to be made."""

    def __init__(self, clip: Path, target: Path, model: Path, codec: str = "ffv1", resume: bool = False) -> None:
        checkpoint = load_checkpoint(model)
        settings = UpscaleSettings(scale=2.0, chunk_frames=5, chunk_overlap=1)
        self.upscaler = ready(checkpoint, checkpoint.routing, settings, "auto", False)  # folded, as the command does
        self.reader, self.writer, self.target = VideoReader(clip), WriterSettings(codec), target
        self.size = output_size(self.reader, self.upscaler)
        asked = what_is_asked(self.reader, self.upscaler, self.writer, hash_model(checkpoint.model), 6)
        self.folder: JobFolder = open_video_job(self.reader, target, self.size, self.writer, asked, resume)

    def plan(self) -> list[SegmentTask]:
        scan = Scan(self.reader, self.upscaler, self.folder.manifest, 6)
        tasks = list(scan)
        self.folder.update(self.folder.manifest.with_length(scan.length, scan.problem, scan.end, scan.exact))
        return tasks

    def make(self, task: SegmentTask) -> None:
        path = self.folder.path / f"{segment_name(task.start.frame)}-{random.randrange(99)}"
        reader = VideoReader(self.reader.path)
        self.folder.add_finished(make_segment(reader, self.upscaler, task, path, self.writer))

    def end(self) -> None:
        with self.folder:
            join(self.folder, self.target, self.size, self.reader, self.writer)


@pytest.mark.parametrize(("codec", "name"), [("ffv1", "out.mkv"), ("h264", "out.mp4")])
def test_any_order_gives_what_one_pass_gives(tmp_path: Path, clip: Path, model: Path, codec: str, name: str) -> None:
    whole, out = tmp_path / f"whole{name}", tmp_path / name
    assert main(["upscale", str(clip), str(whole), *options(model, codec)]) == 0
    parts = Parts(clip, out, model, codec)
    tasks = parts.plan()
    assert [(t.start, t.stop) for t in tasks] == [(s.start, s.stop) for s in plan_segments(FRAMES, [CUT], 5, 1, 1, 6)]
    random.Random(0).shuffle(tasks)
    for task in tasks:
        assert not parts.folder.manifest.complete
        parts.make(task)
    assert parts.folder.manifest.complete
    parts.end()
    assert content(out) == content(whole)
    assert not job_path(out).exists()


def test_segments_packed_where_they_are_made(
    tmp_path: Path, clip: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; the file is that of one pass which packs so, too. (Against the host's: jobs/test_packed_on_device.py.)"""
    monkeypatch.setattr("oasis_core.jobs.packers.packs_on", lambda device, packing: not packing.images)
    whole, out = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    assert main(["upscale", str(clip), str(whole), *options(model)]) == 0
    parts = Parts(clip, out, model)
    for task in parts.plan():
        parts.make(task)
    parts.end()
    assert content(out) == content(whole)


@pytest.mark.parametrize("seed", range(3))
def test_one_pass_fills_the_gaps_that_others_have_left(tmp_path: Path, clip: Path, model: Path, seed: int) -> None:
    whole, out = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    assert main(["upscale", str(clip), str(whole), *options(model)]) == 0
    parts = Parts(clip, out, model)
    made = random.Random(seed).sample(parts.plan(), 4)
    with parts.folder:
        for task in made:
            parts.make(task)
    names = {file.name: file.stat().st_mtime_ns for file in parts.folder.path.glob("segment_*")}
    assert len(names) == 4
    with pytest.MonkeyPatch.context() as patch:
        removed: list[str] = []
        patch.setattr(JobFolder, "remove", lambda self: removed.extend(s.name for s in self.manifest.segments))
        assert main(["upscale", str(clip), str(out), *options(model), "--resume"]) == 0
    assert set(names) <= set(removed)  # what was there was used
    assert all((parts.folder.path / name).stat().st_mtime_ns == stamp for name, stamp in names.items())
    assert content(out) == content(whole)


def test_gaps_are_filled_after_memory_ran_out(tmp_path: Path, clip: Path, model: Path) -> None:
    """Chunks of another size end elsewhere: every frame comes once all the same."""
    out = tmp_path / "out.mkv"
    parts = Parts(clip, out, model)
    tasks = parts.plan()
    for task in tasks[1::3]:
        parts.make(task)
    parts.folder.update(parts.folder.manifest)
    parts.upscaler = with_plan(parts.upscaler, 3, None)
    rest = parts.plan()
    spans = sorted([(t.start.frame, t.stop) for t in rest] + [(t.start.frame, t.stop) for t in tasks[1::3]])
    assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])]
    assert spans[-1][1] == FRAMES
    for task in rest:
        parts.make(task)
    parts.end()
    assert len(content(out)[0]) == FRAMES


def test_a_damaged_segment_after_a_gap_is_made_again_alone(tmp_path: Path, clip: Path, model: Path) -> None:
    whole, out = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    assert main(["upscale", str(clip), str(whole), *options(model)]) == 0
    parts = Parts(clip, out, model)
    tasks = parts.plan()
    with parts.folder:
        for task in tasks[2:5]:
            parts.make(task)
    damaged = parts.folder.path / parts.folder.manifest.ahead[1].name
    damaged.write_bytes(damaged.read_bytes()[:-9] + bytes(9))
    again = Parts(clip, out, model, resume=True)
    assert [t.start for t in again.plan()] == [t.start for t in (*tasks[:2], tasks[3], *tasks[5:])]
    again.folder.__exit__(None, None, None)
    assert main(["upscale", str(clip), str(out), *options(model), "--resume"]) == 0
    assert content(out) == content(whole)


def test_a_worker_with_another_input_is_refused(tmp_path: Path, clip: Path, model: Path) -> None:
    from .conftest import make_clip

    parts = Parts(clip, tmp_path / "out.mkv", model)
    other = VideoReader(make_clip(tmp_path / "other.mkv", 1))
    with parts.folder, pytest.raises(ValueError, match="frame 0 is not what it was"):
        make_segment(other, parts.upscaler, parts.plan()[0], parts.folder.path / "segment_x", parts.writer)
    assert not list(parts.folder.path.glob("segment_*"))


def test_borders_come_to_light_as_they_are_planned() -> None:
    generator = random.Random(0)
    for _ in range(300):
        length, factor, size = generator.randint(1, 120), generator.choice([1, 4]), generator.randint(1, 6)
        cuts, full = set(generator.sample(range(1, 120), 5)), generator.randint(1, 30)
        overlap, every = generator.randrange(size), generator.choice([1, 1, 2, 3, None])
        planned = plan_segments(length, cuts, size, overlap, factor, full, every)
        if every is None:
            assert all(s.start.frame == s.start.shot for s in planned)
        for first in generator.sample(planned, min(3, len(planned))):  # from the start of any segment
            finder = BorderFinder(first.start, size, overlap, factor, full, every)
            told = [finder.add(number in cuts) for number in range(first.start.frame, length)]
            expected = [s.start for s in planned if s.start.frame > first.start.frame]
            assert [border for border in told if border is not None] == expected


def test_the_plan_of_a_stream_of_variable_rate_has_its_time_stamps(tmp_path: Path, clip: Path, model: Path) -> None:
    tasks = Parts(clip, tmp_path / "out.mkv", model).plan()
    assert [t.pts for t in tasks] == [40 * t.start.frame + 7 * (t.start.frame % 3) for t in tasks]
    assert VideoReader(clip).info.time_base == Fraction(1, 1000)
    assert tasks[0].start == Position()

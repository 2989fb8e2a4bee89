"""Who worked and who waited while reader, model and writer ran beside each other; and the benchmark that tells it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from oasis_core.checkpoints import load_checkpoint
from oasis_core.jobs.overlap import ReadAhead, WriteBehind
from oasis_core.jobs.stamps import summed
from oasis_core.pipeline import UpscaleSettings
from oasis_core.ready import ready
from oasis_core.video_io import Frame, VideoReader, WriterSettings
from oasis_core.video_io.planes import _between
from oasis_core.video_job import upscale_video

from .test_cli import make_clip
from .tiny_job import save_random_model

ROOT = Path(__file__).parents[1]
STEP = 0.02


def slowly(count: int) -> Iterator[int]:
    for number in range(count):
        time.sleep(STEP)
        yield number


def test_a_slow_reader_works_and_a_slow_consumer_does_not_count() -> None:
    with ReadAhead(slowly(5), 2) as slow:
        assert list(slow) == list(range(5))
    assert slow.worked >= 5 * STEP
    with ReadAhead(range(5), 1) as quick:
        for _ in quick:
            time.sleep(STEP)
    assert quick.worked < 5 * STEP


def test_a_slow_writer_works_and_a_slow_producer_does_not_count() -> None:
    with WriteBehind[int](lambda _: time.sleep(STEP), 1) as slow:
        for number in range(5):
            slow.put(number)
    assert slow.worked >= 5 * STEP
    with WriteBehind[int](lambda _: None, 1) as quick:
        for number in slowly(5):
            quick.put(number)
    assert quick.worked < 5 * STEP


def test_what_a_writer_took_before_it_failed_counts() -> None:
    def fail(_: int) -> None:
        time.sleep(STEP)
        raise OSError("disk")

    behind = WriteBehind[int](fail, 1)
    with pytest.raises(OSError, match="disk"), behind:
        behind.put(1)
    assert behind.worked >= STEP


def test_a_job_tells_its_parts(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_random_model(tmp_path / "random.safetensors"))
    upscaler = ready(checkpoint, checkpoint.routing, UpscaleSettings(scale=2.0, chunk_frames=5), "auto", False)
    clip = make_clip(tmp_path / "in.mkv", 9, 64, 64)
    done = upscale_video(VideoReader(clip), tmp_path / "out.mp4", upscaler, WriterSettings())
    assert 0 <= done.waited_for_reader <= done.waited
    assert 0 < done.joining < done.seconds
    assert done.waited + done.joining < done.seconds
    assert 0 < done.reading < done.seconds
    assert 0 < done.writing < done.seconds


def test_checksums_are_made_where_frames_are_read() -> None:
    frames = [Frame(torch.rand(8, 8, 3), n) for n in range(3)]
    expected = [Frame(frame.rgb, 0).checksum for frame in frames]
    for number, frame in enumerate(summed(frames)):
        assert frame.__dict__["checksum"] == expected[number]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 3), (45, 80)])
def test_twice_as_large_is_linear(shape: tuple[int, int], axis: int) -> None:
    """Samples in the middle of their pair; a quarter of a code of 10 bits is exact in fp32."""
    codes = np.random.default_rng(0).integers(0, 1024, shape).astype(np.float32)
    at = (np.arange(2 * shape[axis]) + 0.5) / 2 - 0.5
    expected = np.apply_along_axis(lambda line: np.interp(at, np.arange(len(line)), line), axis, codes)
    made = _between(codes, 2, axis)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, expected)


@pytest.mark.slow
def test_streaming_tells_each_case(tmp_path: Path) -> None:
    found = tmp_path / "streaming.json"
    argv = [sys.executable, "streaming.py", "20", "--preset", "ultrafast", "--device", "cpu", "--json", str(found)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(argv, cwd=ROOT / "benchmarks", env=environment, check=True, stdout=subprocess.DEVNULL)
    (case,) = json.loads(found.read_text())["results"].items()
    assert case[0].endswith("x264 ultrafast")
    for name in (
        "busy_share_of_the_reader_thread",
        "busy_share_of_the_writer_thread",
        "idle_share_of_the_model_thread",
    ):
        assert 0 <= case[1][name] < 1
    for name in (
        "model_thread_ms_a_frame", "model_thread_ms_a_frame_without_files", "decoder_alone_frames_per_second",
        "reader_alone_frames_per_second", "encoder_alone_frames_per_second_one_file",
        "encoder_alone_frames_per_second_segments",
    ):  # fmt: skip
        assert case[1][name] > 0

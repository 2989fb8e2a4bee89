"""What a job will need is told before, and its memory does not grow."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from oasis_core.checkpoints import load_checkpoint
from oasis_core.jobs.folder import job_path
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.video_io import VideoReader, WriterSettings
from oasis_core.video_job import upscale_video

from .conftest import run, stop_after


def test_a_plan_is_told_and_nothing_is_done(
    tmp_path: Path, model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    assert run(clip, out, model, "--plan") == 0
    told = capsys.readouterr().out
    names = [line.split(":")[0] for line in told.splitlines()]
    assert names == ["output", "chunk", "tile", "segments", "memory", "disk", "time"]
    assert "128x128, 40 frames" in told
    assert "5 frames, 1 latent frames shared" in told
    assert "frames per second (measured now" in told
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        stop_after(patch, 20, KeyboardInterrupt())
        run(clip, out, model)
    state = (job_path(out) / "manifest.json").read_bytes()
    capsys.readouterr()
    assert run(clip, out, model, "--plan") == 0
    assert "for the 24 frames left" in capsys.readouterr().out
    assert (job_path(out) / "manifest.json").read_bytes() == state


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_stays_flat_over_thousands_of_frames(tmp_path: Path, model: Path) -> None:
    """20,000 frames with a cut every 500: the last quarter takes no more than 3 % over the second."""
    frames, size = 20_000, 32
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        y, x = np.mgrid[:size, :size]
        for i in range(frames):
            wave = np.sin((x * (i // 500 % 3) + y + i) / 4) * 100 + 128
            picture = np.repeat(wave[..., None], 3, -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    pages: list[int] = []

    def note(done: int, total: int | None) -> None:
        if done % 100 == 0:
            pages.append(int(Path("/proc/self/statm").read_text().split()[1]))

    checkpoint = load_checkpoint(model)
    up = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(scale=1.0, chunk_frames=8))
    done = upscale_video(VideoReader(path), tmp_path / "out.mkv", up, WriterSettings(), note)
    assert done.frames == frames
    quarter = len(pages) // 4
    early, late = np.mean(pages[quarter : 2 * quarter]), np.mean(pages[3 * quarter :])
    print(f"resident: {early * 4 / 1024:.1f} MiB in the second quarter, {late * 4 / 1024:.1f} MiB in the last; {done}")
    assert late / early < 1.03

"""Interlaced video: refused, or taken apart into fields."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from oasis_core.cli import main
from oasis_core.video_io import Deinterlace, VideoReader

from .test_faithful_video import bar_codes, bar_picture, planar, store


def field_clip(path: Path, frames: int = 10, size: int = 64, top_first: bool = True) -> tuple[Path, np.ndarray]:
    """A bar that moves 4 pixels a field, and its pictures at field rate ``(2 frames, H, W)``."""
    x = np.arange(size)
    moments = np.stack([np.tile(((x - 4 * t) % size < 16) * 200 + 20, (size, 1)) for t in range(2 * frames)])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"x264-params": "interlaced=1", "crf": "0"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv444p"
        graph = av.filter.Graph()
        nodes = [
            graph.add_buffer(width=size, height=size, format="yuv444p", time_base=Fraction(1, 25)),
            graph.add("setfield", "tff" if top_first else "bff"),  # PyAV alone cannot tell x264 which field comes first
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        for i in range(frames):
            woven = moments[2 * i].copy()
            later = slice(1, None, 2) if top_first else slice(0, None, 2)
            woven[later] = moments[2 * i + 1][later]
            frame = planar(np.stack([woven, *[np.full_like(woven, 128)] * 2]), "yuv444p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            graph.vpush(frame)
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode(None))
    return path, moments


def grey(reader: VideoReader) -> np.ndarray:
    """Luma codes of what a reader gives, ``(T, H, W)``."""
    return np.stack([f.rgb.numpy().mean(-1) * 219 + 16 for f in reader])


def test_interlaced_video_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = field_clip(tmp_path / "in.mp4")
    for more in ((), ("--plan",)):
        assert main(["upscale", str(source), str(tmp_path / "out.mp4"), *more]) == 2
        error = capsys.readouterr().err.strip()
        assert "interlaced" in error
        assert "(--deinterlace) to frame" in error
        assert len(error.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]
    assert main(["upscale", str(source), str(tmp_path / "out.mp4"), "--deinterlace", "fast"]) == 2
    assert "allowed: frame, field, none" in capsys.readouterr().err


@pytest.mark.parametrize("top_first", [True, False])
def test_deinterlacing_takes_fields_apart(tmp_path: Path, top_first: bool) -> None:
    """Against the pictures at field rate: what is left is the filter's error at moving edges, not a comb."""
    source, moments = field_clip(tmp_path / "in.mp4", top_first=top_first)
    woven = grey(VideoReader(source, deinterlace=Deinterlace.NONE))
    for mode, want in ((Deinterlace.FRAME, moments[::2]), (Deinterlace.FIELD, moments)):
        reader = VideoReader(source, deinterlace=mode)
        got = grey(reader)
        assert got.shape == want.shape
        assert len(got) == reader.info.frames
        error = np.abs(got - want)[2:-2].mean()
        comb = np.abs(woven - moments[::2])[2:-2].mean()
        assert error < comb / 8


def test_field_rate_has_twice_the_frames_in_the_same_time(tmp_path: Path) -> None:
    source, _ = field_clip(tmp_path / "in.mp4")
    reader = VideoReader(source, deinterlace=Deinterlace.FIELD)
    times = [frame.pts * reader.info.time_base for frame in reader]
    assert times == [Fraction(i, 50) for i in range(20)]
    assert reader.info.rate == 50
    assert reader.end is not None
    assert reader.end * reader.info.time_base == Fraction(2, 5)


def test_progressive_video_is_left_alone(tmp_path: Path) -> None:
    source = store(
        tmp_path / "in.mkv", [bar_picture(bar_codes(1, False, 8, Fraction(3, 4)))] * 3, "yuv444p", (1, 1, 1, 1)
    )
    reader = VideoReader(source)
    reader.check_progressive()
    assert not reader.info.interlaced

"""Video in and out on generated clips: pixels, time stamps, colours, audio, and what happens to bad files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.video_io import CODECS, VideoReader, VideoWriter, WriterSettings, probe
from oasis_core.video_io.color_tags import ColorTags, rgb_to_yuv, yuv_to_rgb
from oasis_core.video_io.writer import as_fraction

BARS = (
    np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]], np.float32)
    * 0.75
)


def bars(height: int = 64, width: int = 128) -> torch.Tensor:
    return torch.from_numpy(np.repeat(np.repeat(BARS[None], height, 0), width // 8, 1))


def moving(frames: int, height: int = 48, width: int = 64) -> torch.Tensor:
    ramp = torch.linspace(0, 1, width).expand(height, width)
    return torch.stack([torch.stack([ramp.roll(4 * t, 1), ramp, 1 - ramp], -1) for t in range(frames)])


def make_clip(
    path: Path, frames: torch.Tensor, *, pts: list[int] | None = None, tags: tuple[int, int] = (1, 1), audio: str | None = None,
    rotation: int = 0, aspect: Fraction = Fraction(1), crf: int = 0,
) -> Path:  # fmt: skip
    """A small H.264 4:4:4 clip by PyAV alone; ``tags``: matrix and range."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv444p"
        context = stream.codec_context
        context.time_base, context.sample_aspect_ratio = Fraction(1, 1000), aspect
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = (
            tags[0],
            tags[1],
            tags[0],
            tags[0],
        )
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream(audio, rate=48000, layout="mono") if audio else None
        for i, rgb in enumerate(frames.numpy()):
            planes = rgb_to_yuv(rgb, ColorTags(tags[0], tags[1] == 2), 8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), format="yuv444p")
            frame.pts, frame.time_base = (pts[i] if pts else 40 * i), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            tone = (np.sin(np.arange(48000) / 20) * 8000).astype(np.int16)[None]
            block = 960
            for start in range(0, 40 * len(frames) * 48, block):
                piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone[:, :block]), format="s16", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
                container.mux(sound.encode(piece))
            container.mux(sound.encode(None))
    return path


def copy(source: Path, target: Path, settings: WriterSettings) -> VideoReader:
    reader = VideoReader(source)
    with VideoWriter(target, reader.info.width, reader.info.height, reader.info, settings, audio_from=source) as writer:
        for frame in reader:
            writer.write(frame.rgb[None], [frame.pts])
    return VideoReader(target)


@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("depth", [8, 10, 16])
def test_yuv_and_rgb_are_inverse(matrix: int, full: bool, depth: int) -> None:
    rgb = np.random.default_rng(0).random((16, 16, 3), np.float32)
    tags = ColorTags(matrix, full)
    back = yuv_to_rgb(rgb_to_yuv(rgb, tags, depth), tags, depth)
    assert np.abs(back - rgb).max() < 2.5 / (2**depth - 1)


def test_known_code_values() -> None:
    """White, black and pure red of BT.709 limited range, from the standard's equations (ITU-R BT.709-6, item 3 and 5)."""
    rgb = np.array([[[1, 1, 1], [0, 0, 0], [1, 0, 0]]], np.float32)
    codes = rgb_to_yuv(rgb, ColorTags(1, False), 8)[:, 0].T
    assert codes.tolist() == [[235, 128, 128], [16, 128, 128], [63, 102, 240]]


@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("full", [1, 2])
def test_colour_bars_survive_reading_and_writing(tmp_path: Path, matrix: int, full: int) -> None:
    source = make_clip(tmp_path / "in.mp4", bars()[None].repeat(3, 1, 1, 1), tags=(matrix, full))
    first = next(iter(VideoReader(source))).rgb
    assert (first - bars()).abs().max() < 2 / 255
    again = copy(source, tmp_path / "out.mkv", WriterSettings("h264", crf=0))
    middle = slice(4, 12)  # away from the edges between bars, where chroma is shared
    assert (next(iter(again)).rgb[:, middle] - bars()[:, middle]).abs().max() < 3 / 255
    assert (again.info.color.matrix, again.info.color.full_range) == (matrix, full == 2)


@pytest.mark.parametrize("codec", ["h264", "h265", "av1"])
def test_the_encoder_is_given_its_preset(tmp_path: Path, codec: str) -> None:
    source = make_clip(tmp_path / "in.mkv", moving(12).repeat_interleave(4, 1).repeat_interleave(4, 2))
    made = dict[str | None, bytes]()
    for preset in (None, "medium", "ultrafast", "veryslow"):
        made[preset] = copy(source, tmp_path / f"{preset}.mp4", WriterSettings(codec, preset=preset)).path.read_bytes()
    assert made[None] == made["medium"]
    assert WriterSettings(codec, preset="medium") == WriterSettings(codec)  # an unfinished job goes on with either
    assert len({made["medium"], made["ultrafast"], made["veryslow"]}) == 3


def test_ffv1_is_lossless(tmp_path: Path) -> None:
    frames = (torch.rand(3, 33, 35, 3, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    info = probe(make_clip(tmp_path / "in.mp4", moving(3)))
    with VideoWriter(tmp_path / "out.mkv", 35, 33, info, WriterSettings("ffv1")) as writer:
        writer.write(frames, [0, 40, 80])
    got = torch.stack([f.rgb for f in VideoReader(tmp_path / "out.mkv")])
    torch.testing.assert_close(got, frames, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("codec", "ending"), [("h264", ".mp4"), ("h265", ".mkv"), ("av1", ".mp4"), ("prores", ".mov"), ("ffv1", ".mkv")]
)
def test_every_codec_keeps_size_frames_and_picture(tmp_path: Path, codec: str, ending: str) -> None:
    source = make_clip(tmp_path / "in.mp4", moving(5, 64, 96), audio="aac")
    again = copy(source, tmp_path / f"out{ending}", WriterSettings(codec))
    frames = [f.rgb for f in again]
    assert len(frames) == 5
    assert frames[0].shape == (64, 96, 3)
    assert (torch.stack(frames) - moving(5, 64, 96)).abs().mean() < 0.03
    assert again.info.audio == ("aac",)


@pytest.mark.parametrize("codec", ["h264", "h265", "ffv1"])
def test_odd_sizes_are_kept(tmp_path: Path, codec: str) -> None:
    source = make_clip(tmp_path / "in.mp4", moving(3, 65, 67))
    again = copy(source, tmp_path / "out.mkv", WriterSettings(codec))
    assert (again.info.width, again.info.height) == (67, 65)
    assert (next(iter(again)).rgb - moving(1, 65, 67)[0]).abs().mean() < 0.03


def test_variable_frame_rate_keeps_its_time_stamps(tmp_path: Path) -> None:
    stamps = [0, 40, 130, 170, 400]
    source = make_clip(tmp_path / "in.mkv", moving(5), pts=stamps)
    reader = copy(source, tmp_path / "out.mkv", WriterSettings())
    assert [round(float(f.pts * reader.info.time_base) * 1000) for f in reader] == stamps


def test_rotation_is_applied_and_aspect_kept(tmp_path: Path) -> None:
    frames = moving(2, 48, 64)
    source = make_clip(tmp_path / "in.mp4", frames, rotation=90, aspect=Fraction(4, 3))
    reader = VideoReader(source)
    assert (reader.info.width, reader.info.height) == (48, 64)
    assert reader.info.sample_aspect == Fraction(3, 4)
    got = next(iter(reader)).rgb
    turned = torch.rot90(frames[0], reader.info.rotation // 90, (0, 1))
    assert (got - turned).abs().mean() < 0.02
    assert copy(source, tmp_path / "out.mp4", WriterSettings()).info.sample_aspect == Fraction(3, 4)


def test_audio_is_copied_packet_by_packet(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", moving(10), audio="aac")
    copy(source, tmp_path / "out.mp4", WriterSettings())
    packets = []
    for path in (source, tmp_path / "out.mp4"):
        with av.open(str(path)) as container:
            packets.append([bytes(p) for p in container.demux(container.streams.audio[0]) if p.pts is not None])
    assert packets[0] == packets[1]


def test_audio_that_cannot_be_copied_is_encoded_anew(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", moving(5, 64, 64), audio="aac")
    assert copy(source, tmp_path / "out.webm", WriterSettings("av1")).info.audio == ("opus",)


def test_png_sequence_out_and_in(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", moving(4))
    again = copy(source, tmp_path / "frames", WriterSettings("png"))
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == [f"frame_{i:05d}.png" for i in range(4)]
    assert again.info.frames == 4
    pattern = VideoReader(tmp_path / "frames" / "frame_%05d.png", fps=Fraction(30))
    assert pattern.info.rate == 30
    assert torch.equal(torch.stack([f.rgb for f in pattern]), torch.stack([f.rgb for f in again]))


def test_a_cut_off_file_gives_what_it_has_and_says_so(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", torch.rand(60, 64, 64, 3), crf=18)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    reader = VideoReader(cut)
    count = sum(1 for _ in reader)
    assert 0 < count < 60


def test_a_cut_off_file_with_a_header_is_reported(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "in.mp4", torch.rand(60, 64, 64, 3), crf=18)
    copy(whole, tmp_path / "fast.mp4", WriterSettings())  # its header comes first
    cut = tmp_path / "cut.mp4"
    cut.write_bytes((tmp_path / "fast.mp4").read_bytes()[: (tmp_path / "fast.mp4").stat().st_size // 2])
    reader = VideoReader(cut)
    count = sum(1 for _ in reader)
    assert 0 < count < 60
    assert reader.problem is not None
    assert "cut.mp4" in reader.problem


def test_bad_inputs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="input not found"):
        VideoReader(tmp_path / "none.mp4")
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(ValueError, match="not a video"):
        VideoReader(text)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.mp4"):
        VideoReader(tmp_path / "empty.mp4")
    with pytest.raises(ValueError, match="holds no images"):
        VideoReader(tmp_path / "no_%03d.png")
    (tmp_path / "frame.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"folder with videos \(empty\.mp4\); --batch"):
        VideoReader(tmp_path)


def test_targets_are_refused_before_any_work(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "in.mp4", moving(2)))
    for target, settings, error in (
        (tmp_path / "none" / "out.mp4", WriterSettings(), OSError),
        (tmp_path, WriterSettings(), OSError),
        (tmp_path / "out.xyz", WriterSettings(), ValueError),
        (tmp_path / "out.webm", WriterSettings("h264"), ValueError),
        (tmp_path, WriterSettings("png"), OSError),
    ):
        with pytest.raises(error):
            VideoWriter(target, 64, 48, info, settings)
    with pytest.raises(ValueError, match="odd size"):
        VideoWriter(tmp_path / "out.mp4", 65, 65, info, WriterSettings("av1"))
    for bad in (
        {"codec": "h266"}, {"crf": 99}, {"codec": "prores", "crf": 5}, {"preset": "placebo"},
        {"codec": "ffv1", "preset": "fast"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="allowed|must be|leave it out"):
            WriterSettings(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frame rate"):
        as_fraction("fast")


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "in.mp4", moving(2)))
    before = sorted(tmp_path.iterdir())
    for codec, name in (("h264", "out.mp4"), ("png", "frames")):
        with pytest.raises(RuntimeError), VideoWriter(tmp_path / name, 64, 48, info, WriterSettings(codec)) as writer:
            writer.write(moving(1), [0])
            raise RuntimeError
        with (
            pytest.raises(ValueError, match="no frames"),
            VideoWriter(tmp_path / name, 64, 48, info, WriterSettings(codec)),
        ):
            pass
    assert sorted(tmp_path.iterdir()) == before


def test_codec_table_names_encoders_that_exist() -> None:
    assert {c.encoder for c in CODECS.values()} <= av.codec.codecs_available

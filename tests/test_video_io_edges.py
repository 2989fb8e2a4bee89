"""Video that is damaged, turned, packed or numbered in ways that a first version got wrong."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.video_io import VideoReader, VideoWriter, WriterSettings, probe
from oasis_core.video_io.color_tags import ColorTags, rgb_to_codes
from oasis_core.video_io.planes import make_frame, read_planes
from oasis_core.video_io.reader import to_rgb

QUADRANTS = np.zeros((48, 64, 3), np.uint8)
QUADRANTS[:24, :32], QUADRANTS[:24, 32:], QUADRANTS[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def noise(frames: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(frames)]


def clip(
    path: Path, frames: list[np.ndarray], *, turn: tuple[float, bool, bool] | None = None, first_pts: int = 0
) -> Path:
    """H.264 by PyAV alone, 25 frames per second, every fifth frame a key frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv444p"
        if turn is not None:
            stream.set_display_rotation(*turn)
        for i, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = first_pts + i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def images(folder: Path, values: dict[str, int], size: tuple[int, int] = (32, 32)) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in values.items():
        av.VideoFrame.from_ndarray(np.full((*size, 3), value, np.uint8), format="rgb24").save(str(folder / name))
    return folder


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [False, True])
def test_every_way_a_picture_can_lie_comes_upright(tmp_path: Path, degrees: int, mirror: bool) -> None:
    """Degrees are counter-clockwise; PyAV's ``frame.rotation`` takes a mirrored picture for one turned by 180."""
    source = clip(tmp_path / "in.mp4", [QUADRANTS] * 2, turn=(degrees, mirror, False))
    with VideoReader(source) as reader:
        got = next(iter(reader)).rgb
    want = np.rot90(QUADRANTS, degrees // 90)
    want = want[:, ::-1] if mirror else want  # av_display_matrix_flip negates the matrix's results, so it comes second
    assert tuple(got.shape) == want.shape == (reader.info.height, reader.info.width, 3)
    assert np.abs(got.numpy() - want / 255).mean() < 0.03


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_cut_off_file_says_so(tmp_path: Path, suffix: str) -> None:
    """A cut Matroska file ends without an error: only the announced length tells. (Transport streams announce none.)"""
    source = clip(tmp_path / "in.mp4", noise(40))
    whole = tmp_path / f"whole{suffix}"
    options = {"movflags": "+faststart"} if suffix == ".mp4" else {}
    with (
        av.open(str(source)) as old,
        av.open(str(whole), "w", options=options) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    with VideoReader(whole) as reader:
        assert sum(1 for _ in reader) == 40
        assert reader.problem is None
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with VideoReader(cut) as reader:
        assert 10 < sum(1 for _ in reader) < 40
    assert reader.problem is not None
    assert cut.name in reader.problem
    assert "\n" not in reader.problem


def test_damage_in_the_middle_costs_what_it_hits_and_no_more(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4", noise(40))
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(data)
    with VideoReader(bad) as reader:
        stamps = [frame.pts for frame in reader]
    assert len(stamps) > 30
    assert stamps[-1] * reader.info.time_base == Fraction(39, 25)
    assert reader.problem is not None
    assert "damaged" in reader.problem


def test_images_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = images(tmp_path / "frames", {"f10.png": 100, "f2.png": 20, "f1.png": 10})
    for path in (folder, folder / "f%d.png"):
        assert [round(float(f.rgb.mean()) * 255) for f in VideoReader(path)] == [10, 20, 100]


def test_an_image_of_another_size_or_that_is_broken_ends_the_sequence(tmp_path: Path) -> None:
    folder = images(images(tmp_path / "a", {"1.png": 9}), {"2.png": 9}, (48, 32))
    reader = VideoReader(folder)
    assert [tuple(f.rgb.shape) for f in reader] == [(32, 32, 3)]
    assert "frame 2 is 32x48 after 32x32" in str(reader.problem)
    folder = images(tmp_path / "b", {"1.png": 9, "2.png": 9, "3.png": 9})
    (folder / "2.png").write_bytes(b"junk")
    reader = VideoReader(folder)
    assert len(list(reader)) == 1
    assert "2.png" in str(reader.problem)


def test_text_and_covers_are_no_videos(tmp_path: Path) -> None:
    """FFmpeg renders text as a picture of a terminal, and an audio file's cover is a video stream to it."""
    text = tmp_path / "notes.txt"
    text.write_text("hello\n" * 50)
    with pytest.raises(ValueError, match="text"):
        VideoReader(text)
    song = tmp_path / "song.mp3"
    with av.open(str(song), "w") as container:
        sound, cover = container.add_stream("mp3", rate=44100), container.add_stream("png", rate=1)
        cover.width = cover.height = 32
        cover.pix_fmt, cover.disposition = "rgb24", 0x400
        container.mux([*cover.encode(av.VideoFrame(32, 32, "rgb24")), *cover.encode(None)])
        piece = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), format="s16", layout="stereo")
        piece.sample_rate = 44100
        container.mux([*sound.encode(piece), *sound.encode(None)])
    with pytest.raises(ValueError, match="no video stream"):
        VideoReader(song)


def test_a_clock_that_starts_late_starts_at_zero_in_the_output(tmp_path: Path) -> None:
    """Recordings of broadcasts start anywhere; an MP4 would begin with hours of nothing."""
    source = clip(tmp_path / "in.ts", noise(4), first_pts=25 * 3600)
    info = probe(source)
    assert info.start >= 3600
    with VideoWriter(tmp_path / "out.mp4", 64, 64, info, WriterSettings(), audio_from=source) as writer:
        for frame in VideoReader(source):
            writer.write(frame.rgb[None], [frame.pts])
    out = VideoReader(tmp_path / "out.mp4")
    assert [f.pts * out.info.time_base for f in out] == [Fraction(i, 25) for i in range(4)]


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv422p", "yuv420p", "yuv444p10le", "yuv422p10le", "yuv420p10le"])
@pytest.mark.parametrize("centred", [False, True])
def test_chroma_is_placed_where_it_is_read(pix_fmt: str, centred: bool) -> None:
    """Ramps survive subsampling and enlargement: any shift of chroma would show as an offset."""
    depth = 10 if "10" in pix_fmt else 8
    ramp = np.linspace(40, 200, 64, dtype=np.float32) * 2 ** (depth - 8)
    codes = np.stack(
        [np.broadcast_to(ramp, (64, 64)), np.broadcast_to(ramp, (64, 64)), np.broadcast_to(ramp[:, None], (64, 64))]
    )
    back = read_planes(make_frame(codes, pix_fmt, centred=centred), centred=centred)
    inner = (slice(None), slice(4, -4), slice(4, -4))
    assert np.abs(back - codes)[inner].max() <= 1


@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize("size", [(36, 64), (37, 45), (180, 320), (90, 1280)])
def test_colours_are_the_formula_to_the_bit(size: tuple[int, int], depth: int) -> None:
    """Unfinished jobs find their frames by checksums of these values: quicker ways to them may not round otherwise."""
    height, width = size
    frame = av.VideoFrame(width, height, "yuv420p" if depth == 8 else "yuv420p10le")
    generator, kind, planes = np.random.default_rng(0), "u1" if depth == 8 else "<u2", []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)
        rows[:] = generator.integers(0, 2**depth, rows.shape)
        planes.append(rows[:, : plane.width].astype(np.float32))
    luminance, *chrominance = planes
    for i, c in enumerate(chrominance):  # every step is exact in fp32: the order does not matter
        c = np.stack([c, (c + np.pad(c, ((0, 0), (0, 1)), "edge")[:, 1:]) / 2], -1).reshape(len(c), -1)
        above, below = (np.pad(c, ((1, 1), (0, 0)), "edge")[rows] for rows in (slice(None, -2), slice(2, None)))
        c = np.stack([0.75 * c + 0.25 * above, 0.75 * c + 0.25 * below], 1).reshape(-1, c.shape[1])
        chrominance[i] = c[:height, :width]
    unit, kr, kb = 2 ** (depth - 8), 0.2126, 0.0722
    y = (luminance - 16 * unit) / (219 * unit)
    cb, cr = ((c - 128 * unit) / (224 * unit) for c in chrominance)
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    np.testing.assert_array_equal(to_rgb(frame, ColorTags(1, False)), np.stack([red, green, blue], -1))


def test_chroma_of_420_sits_on_the_even_columns() -> None:
    """ITU-T H.264, figure E-1, type 0: a step at column 32 gives chroma column 16 three quarters of the new value."""
    codes = np.zeros((3, 64, 64), np.float32)
    codes[1:, :, 32:] = 200
    plane = make_frame(codes, "yuv420p", centred=False).planes[1]
    row = np.frombuffer(memoryview(plane), np.uint8)[:32]
    assert row[14:19].tolist() == [0, 0, 150, 200, 200]


@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "nv12", "yuyv422", "uyvy422", "yuva420p", "yuv411p"])
def test_packed_and_planar_pictures_give_the_same_colour(matrix: int, pix_fmt: str) -> None:
    tags = ColorTags(matrix, False)
    codes = rgb_to_codes(np.broadcast_to(np.array([0.8, 0.2, 0.1], np.float32), (32, 32, 3)), tags, 8)
    frame = make_frame(codes, "yuv444p", centred=False)
    frame = frame.reformat(format=pix_fmt)
    assert np.abs(to_rgb(frame, tags)[16, 16] - (0.8, 0.2, 0.1)).max() < 2 / 255


def test_frames_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    info = probe(clip(tmp_path / "in.mp4", noise(2)))
    with (
        pytest.raises(ValueError, match="NaN"),
        VideoWriter(tmp_path / "out.mp4", 64, 64, info, WriterSettings()) as writer,
    ):
        writer.write(torch.full((1, 64, 64, 3), float("nan")), [0])
    assert not (tmp_path / "out.mp4").exists()


def test_rgb_images_become_limited_range_video(tmp_path: Path) -> None:
    """Full range H.264 is washed out or crushed in many players: only a source that is so keeps it."""
    info = VideoReader(images(tmp_path / "frames", {"1.png": 128})).info
    with VideoWriter(tmp_path / "out.mp4", 32, 32, info, WriterSettings()) as writer:
        writer.write(torch.full((1, 32, 32, 3), 128 / 255), [0])
    out = VideoReader(tmp_path / "out.mp4")
    assert not out.info.color.full_range
    assert (next(iter(out)).rgb - 128 / 255).abs().max() < 2 / 255


def test_h265_refuses_frames_that_it_corrupts_memory_on(tmp_path: Path) -> None:
    info = probe(clip(tmp_path / "in.mp4", noise(2)))
    with pytest.raises(ValueError, match="at least 64"):
        VideoWriter(tmp_path / "out.mp4", 62, 64, info, WriterSettings("h265"))


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_h265_carries_the_tag_that_apple_needs(tmp_path: Path, suffix: str) -> None:
    info = probe(clip(tmp_path / "in.mp4", noise(2)))
    with VideoWriter(tmp_path / f"out{suffix}", 64, 64, info, WriterSettings("h265")) as writer:
        writer.write(torch.zeros(2, 64, 64, 3), [0, 512])
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"


def test_every_audio_track_comes_over_with_its_language(tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        tracks = [container.add_stream(codec, rate=48000, layout="stereo") for codec in ("aac", "flac")]
        for track, language in zip(tracks, ("eng", "fra"), strict=True):
            track.metadata["language"] = language
        for rgb in noise(3):
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(video.encode(None))
        for track in tracks:
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 4800), np.int16), format="s16", layout="stereo")
            piece.sample_rate, piece.pts = 48000, 0
            container.mux([*track.encode(piece), *track.encode(None)])
    reader = VideoReader(source)
    for suffix, codec, sound in ((".mkv", "h264", ("aac", "flac")), (".webm", "av1", ("opus", "opus"))):
        target = tmp_path / f"out{suffix}"
        with VideoWriter(target, 64, 64, reader.info, WriterSettings(codec), audio_from=source) as writer:
            for frame in reader:
                writer.write(frame.rgb[None], [frame.pts])
        with av.open(str(target)) as container:
            assert tuple(s.codec_context.name for s in container.streams.audio) == sound
            assert [s.language for s in container.streams.audio] == ["eng", "fra"]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(("rate", "samples"), [(8000, 3), (44100, 1)])
def test_sound_in_packets_shorter_than_matroskas_unit(tmp_path: Path, suffix: str, rate: int, samples: int) -> None:
    """Several have the same time stamp there, in milliseconds, which MP4 does not take."""
    source, target = tmp_path / "in.mkv", tmp_path / f"out{suffix}"
    tone = (np.sin(np.arange(rate // 5 // samples * samples) / 9) * 9000).astype(np.int16)
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for rgb in noise(5):
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(video.encode(None))
        for start in range(0, len(tone), samples):
            piece = av.AudioFrame.from_ndarray(tone[None, start : start + samples], format="s16", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = rate, start, Fraction(1, rate)
            container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
    reader = VideoReader(source)
    with VideoWriter(target, 64, 64, reader.info, WriterSettings(), audio_from=source) as writer:
        for frame in reader:
            writer.write(frame.rgb[None], [frame.pts])
    with av.open(str(target)) as container:
        heard = [(f.pts * f.time_base, f.to_ndarray()[0]) for f in container.decode(audio=0)]
    assert (np.concatenate([piece for _, piece in heard]) == tone).all()
    position = 0
    for time, piece in heard:  # no drift
        assert abs(float(time) - position / rate) < 0.002
        position += len(piece)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_very_short_h265_can_be_written_again_and_again(tmp_path: Path, frames: int) -> None:
    """x265 gives clips of two frames a decoding time from stray memory; MP4 then refused most of them."""
    info = probe(clip(tmp_path / "in.mp4", noise(2)))
    for _ in range(6):
        with VideoWriter(tmp_path / "out.mp4", 64, 64, info, WriterSettings("h265")) as writer:
            writer.write(torch.zeros(frames, 64, 64, 3), [512 * i for i in range(frames)])
        assert len(list(VideoReader(tmp_path / "out.mp4"))) == frames


def test_frames_that_are_too_long_are_refused(tmp_path: Path) -> None:
    av.VideoFrame.from_ndarray(np.zeros((16, 16400, 3), np.uint8), format="rgb24").save(str(tmp_path / "long.png"))
    with pytest.raises(ValueError, match="16400x16; a side can have 16384"):
        VideoReader(tmp_path / "long.png")

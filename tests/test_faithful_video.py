"""Depth, colour tags, fields, durations, edit lists and side tracks: what comes in goes out, on clips that PyAV makes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.cli import main
from oasis_core.color import ColorMethod
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import RoutingSpec
from oasis_core.video_io import Deinterlace, VideoReader, VideoWriter, WriterSettings, probe
from oasis_core.video_io.color_tags import ColorTags
from oasis_core.video_job import JobSettings, upscale_video

SIZE = 64
KR_KB = {1: ("0.2126", "0.0722"), 5: ("0.299", "0.114"), 6: ("0.299", "0.114"), 9: ("0.2627", "0.0593")}
"""ITU-R BT.709-6 item 3.2, BT.601-7 section 2.5.1, BT.2020-2 table 4."""
PQ, HLG = 16, 18
BARS = [(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1), (0, 0, 0)]


def bar_codes(matrix: int, full: bool, depth: int, level: Fraction) -> list[tuple[int, int, int]]:
    """Y, Cb, Cr of the eight bars by the standards' equations, in exact arithmetic."""
    kr, kb = map(Fraction, KR_KB[matrix])
    top = 2**depth - 1
    found = []
    for bar in BARS:
        r, g, b = (level * c for c in bar)
        y = kr * r + (1 - kr - kb) * g + kb * b
        cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
        if full:
            codes = [y * top, cb * top + 2 ** (depth - 1), cr * top + 2 ** (depth - 1)]
        else:
            codes = [(219 * y + 16) * 2 ** (depth - 8), *((224 * c + 128) * 2 ** (depth - 8) for c in (cb, cr))]
        found.append(tuple(min(top, int(c + Fraction(1, 2))) for c in codes))
    return found  # type: ignore[return-value]


def half_a_code(matrix: int, full: bool, depth: int) -> float:
    """What rounding of Y, Cb and Cr can change in R, G or B: the largest row of the matrix (B's, with Kb the smallest)."""
    luma, chroma = (2**depth - 1,) * 2 if full else (219 * 2 ** (depth - 8), 224 * 2 ** (depth - 8))
    return 0.5 / luma + 0.5 * 2 * (1 - float(KR_KB[matrix][1])) / chroma + 1e-6


def test_the_bars_of_this_test_are_the_published_ones() -> None:
    """75 % bars of SMPTE EG 1 / RP 219 as every test generator has them."""
    assert bar_codes(6, False, 8, Fraction(3, 4)) == [
        (180, 128, 128), (162, 44, 142), (131, 156, 44), (112, 72, 58), (84, 184, 198), (65, 100, 212), (35, 212, 114),
        (16, 128, 128),
    ]  # fmt: skip
    assert bar_codes(1, False, 8, Fraction(3, 4))[1:4] == [(168, 44, 136), (145, 147, 44), (133, 63, 52)]


def planar(codes: np.ndarray, pix_fmt: str) -> av.VideoFrame:
    """``(3, H, W)`` whole numbers to a frame, plane by plane (4:4:4 or, where planes are constant, any)."""
    frame = av.VideoFrame(codes.shape[2], codes.shape[1], pix_fmt)
    for plane, values in zip(frame.planes, codes, strict=True):
        raw = np.ascontiguousarray(values[: plane.height, : plane.width]).astype("<u2" if "10" in pix_fmt else "u1")
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : raw.shape[1] * raw.itemsize] = raw.view(np.uint8)
        plane.update(rows.tobytes())
    return frame


def store(
    path: Path, pictures: Sequence[np.ndarray], pix_fmt: str, tags: tuple[int, int, int, int], codec: str = "ffv1"
) -> Path:
    """Code values ``(3, H, W)`` losslessly into a file; tags: primaries, transfer, matrix, range."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[1:], pix_fmt
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = tags
        for codes in pictures:
            frame = planar(codes, pix_fmt)
            frame.colorspace, frame.color_range = tags[2:]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def bar_picture(codes: list[tuple[int, int, int]]) -> np.ndarray:
    row = np.repeat(np.array(codes).T, 16, axis=1)
    return np.repeat(row[:, None], SIZE, axis=1)


def copy(source: Path, target: Path, settings: WriterSettings) -> VideoReader:
    reader = VideoReader(source)
    with VideoWriter(target, reader.info.width, reader.info.height, reader.info, settings, audio_from=source) as writer:
        for frame in reader:
            writer.write(frame.rgb[None], [frame.pts])
    return VideoReader(target)


def stored(path: Path) -> tuple[np.ndarray, tuple[int, int, int, int], str]:
    """First frame's luma, and chroma, as they lie in the file (no conversion), tags and format."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        c = stream.codec_context
        tags = (int(c.color_primaries), int(c.color_trc), frame.colorspace, frame.color_range)
        planes = []
        for plane in frame.planes:
            kind, size = ("<u2", 2) if "10" in frame.format.name else ("u1", 1)
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height]
            values = np.ascontiguousarray(rows[:, : plane.width * size]).view(kind).astype(int)
            planes.append(np.kron(values, np.ones((SIZE // plane.height, 128 // plane.width), int)))
        return np.stack(planes), tags, frame.format.name


# Colours.


@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("depth", "codec"), [(8, "h264"), (10, "h264"), (10, "h265"), (10, "prores")])
@pytest.mark.parametrize("level", [Fraction(3, 4), Fraction(1)])
def test_colour_bars_come_out_within_one_code_value(
    tmp_path: Path, matrix: int, full: bool, depth: int, codec: str, level: Fraction
) -> None:
    codes = bar_codes(matrix, full, depth, level)
    pix_fmt = "yuv444p" if depth == 8 else "yuv444p10le"
    tags = (matrix, {1: 1, 5: 6, 6: 6, 9: 14}[matrix], matrix, 2 if full else 1)
    source = store(tmp_path / "in.mkv", [bar_picture(codes)] * 3, pix_fmt, tags)
    want = np.array([[level * c for c in bar] for bar in BARS], float)
    got = next(iter(VideoReader(source))).rgb[SIZE // 2, 8::16].numpy()
    assert np.abs(got - want).max() <= half_a_code(matrix, full, depth)
    settings = WriterSettings(codec) if codec == "prores" else WriterSettings(codec, crf=0)
    copy(source, tmp_path / "out.mov", settings)
    planes, told, fmt = stored(tmp_path / "out.mov")
    assert ("10" in fmt) == (depth == 10)
    if codec == "prores":  # its header has no full range, and one name for each curve and matrix
        codes = bar_codes(matrix, False, depth, level)
        tags = (matrix, 1, 6 if matrix == 5 else matrix, 1)
    assert told == tags
    error = np.abs(planes[:, SIZE // 2, 8::16] - np.array(codes).T)  # the middle of each bar
    assert error.max() <= 1


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize(
    ("codec", "name", "fmt"),
    [("h264", "out.mp4", "yuv420p10le"), ("h265", "out.mp4", "yuv420p10le"), ("h265", "out.mkv", "yuv420p10le"),
     ("av1", "out.mp4", "yuv420p10le"), ("av1", "out.webm", "yuv420p10le"), ("prores", "out.mov", "yuv422p10le")],
)  # fmt: skip
def test_hdr_stays_hdr(tmp_path: Path, transfer: int, codec: str, name: str, fmt: str) -> None:
    tags = (9, transfer, 9, 1)
    source = store(tmp_path / "in.mkv", [bar_picture(bar_codes(9, False, 10, Fraction(1, 2)))] * 3, "yuv444p10le", tags)
    copy(source, tmp_path / name, WriterSettings(codec))
    _, told, got = stored(tmp_path / name)
    assert (told, got) == (tags, fmt)


def test_hdr_that_names_no_primaries_is_bt_2020() -> None:
    tags = ColorTags.of(2, 1, 2, PQ, 480)
    assert (tags.matrix, tags.primaries) == (9, 9)
    assert tags.for_output(1080, yuv=True) == tags
    assert ColorTags.of(2, 1, 2, 2, 480).for_output(1080, yuv=True) == ColorTags(1, False, 1, 1)
    assert ColorTags.of(9, 1, 2, 2, 1080).for_output(2160, yuv=True) == ColorTags(9, False, 9, 14)
    assert ColorTags.of(0, 2, 9, PQ, 1080).for_output(2160, yuv=False) == ColorTags(9, False, 9, PQ)


def test_a_matrix_that_is_not_known_is_refused(tmp_path: Path) -> None:
    source = store(tmp_path / "in.mkv", [np.full((3, SIZE, SIZE), 500)], "yuv444p10le", (9, PQ, 14, 1))
    with pytest.raises(ValueError, match=r"colour matrix is number 14"):
        VideoReader(source)


def ramp_picture() -> np.ndarray:
    """Every 10-bit code of limited range, four pixels wide each, on neutral chroma."""
    luma = np.repeat(np.arange(64, 941), 4)[:3504]
    return np.stack([np.tile(luma, (SIZE, 1)), *[np.full((SIZE, len(luma)), 512)] * 2])


def luma(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        plane = frame.planes[0]
        return np.frombuffer(memoryview(plane), "<u2").reshape(-1, plane.line_size // 2)[0, : plane.width].astype(int)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ten_bits_go_through_reader_model_and_writer_without_bands(tmp_path: Path, dtype: torch.dtype) -> None:
    """A model that adds nothing, at scale 1: each of 877 steps of a PQ ramp comes out, in bf16 too."""
    source = store(tmp_path / "in.mkv", [ramp_picture()] * 2, "yuv444p10le", (9, PQ, 9, 1))
    config = OasisConfig(
        name="identity", unshuffle=(1, 8, 8), latent_channels=4, dim=24, depth=1, heads=2, ffn_dim=24, freq_dim=8,
        decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    model = OasisModel(config)
    model.init_weights()
    for color in (ColorMethod.NONE, ColorMethod.WAVELET):
        settings = UpscaleSettings(scale=1.0, color=color)
        up = Upscaler(model.to(dtype).eval(), RoutingSpec.by_ratio(1, 2, 0.5, 0.5), settings)
        out = tmp_path / f"{color.value}.mkv"
        upscale_video(VideoReader(source), out, up, WriterSettings("h265", crf=0))
        error = luma(out) - ramp_picture()[0, 0]
        assert np.abs(error).max() <= 1


def test_nothing_is_clipped_when_it_is_read(tmp_path: Path) -> None:
    """Super-white and sub-black of limited range (ITU-R BT.2100 table 9: video data from 4 to 1019)."""
    codes = np.full((3, SIZE, SIZE), 512)
    codes[0, :, :32], codes[0, :, 32:] = 1019, 4
    source = store(tmp_path / "in.mkv", [codes], "yuv444p10le", (9, HLG, 9, 1))
    rgb = next(iter(VideoReader(source))).rgb
    assert float(rgb[0, 0, 0]) == pytest.approx((1019 - 64) / 876, abs=1e-5)
    assert float(rgb[0, -1, 0]) == pytest.approx((4 - 64) / 876, abs=1e-5)


@pytest.mark.parametrize(
    ("codec", "name", "depth"), [("ffv1", "out.mkv", 10), ("ffv1", "out.mkv", 16), ("png", "out", 16)]
)
def test_lossless_codecs_hold_the_depth_of_the_source(tmp_path: Path, codec: str, name: str, depth: int) -> None:
    source = store(tmp_path / "in.mkv", [np.full((3, 33, 35), 500)] * 2, "yuv444p10le", (9, PQ, 9, 1))
    top = 2**depth - 1
    frames = (torch.rand(2, 33, 35, 3, generator=torch.Generator().manual_seed(0)) * top).round() / top
    settings = WriterSettings(codec, depth=None if depth == 10 else depth)
    with VideoWriter(tmp_path / name, 35, 33, probe(source), settings) as writer:
        writer.write(frames, [0, 40])
    again = VideoReader(tmp_path / name)
    torch.testing.assert_close(torch.stack([f.rgb for f in again]), frames, atol=1e-6, rtol=0)
    assert again.info.bit_depth == depth
    assert (again.info.color.primaries, again.info.color.transfer) == (9, PQ)


def test_depth_is_the_user_s_choice(tmp_path: Path) -> None:
    source = store(tmp_path / "in.mkv", [ramp_picture()] * 2, "yuv444p10le", (1, 1, 1, 1))
    for depth, fmt in ((8, "yuv420p"), (10, "yuv420p10le"), (None, "yuv420p10le")):
        copy(source, tmp_path / "out.mkv", WriterSettings("h264", depth=depth))
        assert stored_format(tmp_path / "out.mkv") == fmt
    with pytest.raises(ValueError, match="depth is 12 bits; h264 has 8, 10"):
        WriterSettings("h264", depth=12)


def stored_format(path: Path) -> str:
    with av.open(str(path)) as container:
        return str(container.streams.video[0].codec_context.pix_fmt)


# Fields.


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


# Time.


def timed_clip(path: Path, stamps: list[int], last: int, b_frames: int, options: dict[str, str] | None = None) -> Path:
    """Milliseconds in, each frame shown until the next, the last one for ``last``."""
    base = Fraction(1, 1000)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": str(b_frames), "b-adapt": "0"})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.codec_context.time_base = base
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 200, (SIZE, SIZE, 3), np.uint8)
        packets = []
        for i, pts in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 2 * i, 0), format="rgb24")
            frame.pts, frame.time_base = pts, base
            packets += stream.encode(frame)
        packets += stream.encode(None)
        shown = [*sorted(p.pts for p in packets if p.pts is not None), stamps[-1] + last]
        begin = packets[0].dts
        for packet in packets:
            packet.duration = shown[shown.index(packet.pts) + 1] - packet.pts
            if packet is packets[-1] and path.suffix == ".mp4":  # there samples' durations are those of decoding
                packet.duration = shown[-1] - shown[0] - (packet.dts - begin)
            container.mux(packet)
    return path


def times(path: Path) -> tuple[list[float], float]:
    reader = VideoReader(path)
    base = reader.info.time_base
    stamps = [round(float(frame.pts * base), 4) for frame in reader]
    assert reader.end is not None
    return stamps, round(float(reader.end * base), 4)


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    config = OasisConfig(
        name="random", unshuffle=(1, 8, 8), latent_channels=4, dim=24, depth=1, heads=2, ffn_dim=24, freq_dim=8,
        decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    model = OasisModel(config)
    model.init_weights()
    return Upscaler(model.eval(), RoutingSpec.by_ratio(1, 2, 0.5, 0.5), UpscaleSettings(scale=2.0, chunk_frames=3))


STAMPS = [0, 40, 130, 170, 400, 440, 500]


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("source", ["in.mp4", "in.mkv"])
@pytest.mark.parametrize("target", ["out.mp4", "out.mkv", "out.mov"])
def test_every_frame_is_shown_as_long_as_in_the_source(
    tmp_path: Path, upscaler: Upscaler, b_frames: int, source: str, target: str
) -> None:
    """Uneven time stamps, the last frame's duration included, through segments and joining."""
    path = timed_clip(tmp_path / source, STAMPS, 300, b_frames)
    want = [s / 1000 for s in STAMPS], 0.8
    assert times(path) == want
    upscale_video(VideoReader(path), tmp_path / target, upscaler, WriterSettings(), job=JobSettings(segment_frames=3))
    assert times(tmp_path / target) == want
    with av.open(str(tmp_path / target)) as container:
        assert container.duration == 800_000  # microseconds: what a player's clock says


def test_an_edit_list_is_honoured(tmp_path: Path, upscaler: Upscaler) -> None:
    """An MP4 that was cut without encoding anew hides its first frames: they are decoded and not shown."""
    whole = timed_clip(tmp_path / "whole.mp4", [40 * i for i in range(12)], 40, 2)
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as old, av.open(str(cut), "w", container_options={"avoid_negative_ts": "disabled"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        base = old.streams.video[0].time_base
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None and packet.pts is not None:
                packet.pts -= round(Fraction(1, 5) / base)
                packet.dts -= round(Fraction(1, 5) / base)
                packet.stream = stream
                new.mux(packet)
    assert b"elst" in cut.read_bytes()
    wanted = [f.rgb for f in VideoReader(whole)][5:]
    reader = VideoReader(cut)
    got = list(reader)
    assert reader.problem is None
    assert [round(float(f.pts * reader.info.time_base), 4) for f in got] == [0.04 * i for i in range(7)]
    assert torch.equal(torch.stack([f.rgb for f in got]), torch.stack(wanted))
    done = upscale_video(VideoReader(cut), tmp_path / "out.mp4", upscaler, WriterSettings())
    assert (done.frames, done.problem) == (7, None)


# Sound, subtitles, chapters.

SRT = "1\n00:00:00,100 --> 00:00:00,500\nHello\n\n2\n00:00:00,600 --> 00:00:00,900\nTwo\nlines\n"


def film(path: Path) -> Path:
    """One second with two tracks of sound, two of subtitles and two chapters."""
    text = path.with_suffix(".srt")
    text.write_text(SRT)
    with av.open(str(path), "w") as container, av.open(str(text)) as first, av.open(str(text)) as second:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = SIZE, SIZE, "yuv420p"
        sounds = [container.add_stream(codec, rate=48000, layout="mono") for codec in ("aac", "flac")]
        texts = [container.add_stream_from_template(t.streams.subtitles[0]) for t in (first, second)]
        for track, language in zip((*sounds, *texts), ("eng", "fra", "eng", "spa"), strict=True):
            track.metadata["language"] = language
        milli = Fraction(1, 1000)
        container.set_chapters([
            {"id": i + 1, "start": a, "end": b, "time_base": milli, "metadata": {"title": title}}
            for i, (a, b, title) in enumerate([(0, 400, "One"), (400, 1000, "Two")])
        ])  # fmt: skip
        for i in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), 5 * i, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for sound in sounds:
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.int16), format="s16", layout="mono")
            piece.sample_rate, piece.pts = 48000, 0
            container.mux([*sound.encode(piece), *sound.encode(None)])
        for source, track in zip((first, second), texts, strict=True):
            for packet in source.demux():
                if packet.size:
                    packet.stream = track
                    container.mux(packet)
    text.unlink()
    return path


def told(path: Path) -> dict[str, object]:
    """Kinds and languages of tracks, subtitles as (start, end, text) in seconds from the first frame, chapters likewise.

    Matroska has no time before 0, where AAC's encoder delay lies: there everything starts 21 ms late.
    """
    with av.open(str(path)) as container:
        late = next(container.decode(video=0)).time
        tracks = [(s.type, s.metadata.get("language")) for s in container.streams if s.type in ("audio", "subtitle")]
        texts = []
        for stream in container.streams.subtitles:
            container.seek(0)
            for packet in container.demux(stream):
                found = stream.codec_context.decode2(packet) if packet.size else None
                words = [r.ass.decode().split(",", 8)[-1] for r in (found.rects if found else ())]
                if words and words != [""]:
                    at = [(packet.pts + more) * packet.time_base for more in (0, packet.duration)]
                    texts.append((*(round(float(t) - late, 3) for t in at), words[0]))
        chapters = [
            (float(c["start"] * c["time_base"]), float(c["end"] * c["time_base"]), c["metadata"]["title"])
            for c in container.chapters()
        ]
    return {"tracks": sorted(tracks), "texts": texts, "chapters": chapters}


@pytest.mark.parametrize(
    ("codec", "name"),
    [("h265", "out.mp4"), ("h265", "out.mkv"), ("av1", "out.mp4"), ("av1", "out.webm"), ("h264", "out.mp4")],
)
def test_hdr10_metadata_comes_along(
    tmp_path: Path, upscaler: Upscaler, codec: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Written by PyAV with x265's own text, through segments and their joining, read by FFmpeg."""
    source, target = tmp_path / "in.mkv", tmp_path / name
    told = "log-level=error:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"x265-params": told})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries, stream.codec_context.colorspace = PQ, 9, 9
        for i in range(12):
            picture = av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), 20 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p10le")))
        container.mux(stream.encode(None))
    with caplog.at_level("INFO"):
        upscale_video(VideoReader(source), target, upscaler, WriterSettings(codec), job=JobSettings(segment_frames=5))
    found, parts = (
        probe(target).hdr10,
        [Fraction(v, 50000) for v in (34000, 16000, 13250, 34500, 7500, 3000, 15635, 16450)],
    )
    assert ("does not keep the input's HDR10 metadata" in caplog.text) == (codec == "h264")
    if codec == "h264":
        assert found is None
        return
    assert found is not None
    assert found.light == (1000, 400)
    assert found.display is not None
    assert found.display == pytest.approx([*parts, Fraction(50, 10000), 1000], abs=2e-4 if codec == "av1" else 0)


@pytest.mark.parametrize(
    ("codec", "name"), [("h264", "out.mkv"), ("h264", "out.mp4"), ("av1", "out.webm"), ("prores", "out.mov")]
)
def test_sound_subtitles_and_chapters_come_along(tmp_path: Path, upscaler: Upscaler, codec: str, name: str) -> None:
    source = film(tmp_path / "in.mkv")
    want = told(source)
    assert len(want["texts"]) == 4  # type: ignore[arg-type]
    upscale_video(VideoReader(source), tmp_path / name, upscaler, WriterSettings(codec))
    assert told(tmp_path / name) == want
    if name == "out.mp4":  # and back: MP4's own kind of subtitles, which Matroska does not hold
        upscale_video(VideoReader(tmp_path / name), tmp_path / "back.mkv", upscaler, WriterSettings())
        assert told(tmp_path / "back.mkv") == want


def test_subtitles_that_cannot_go_in_are_told(
    tmp_path: Path, upscaler: Upscaler, caplog: pytest.LogCaptureFixture
) -> None:
    source = film(tmp_path / "in.mkv")
    upscale_video(VideoReader(source), tmp_path / "out.avi", upscaler, WriterSettings())
    assert "cannot hold" in caplog.text
    with av.open(str(tmp_path / "out.avi")) as container:
        assert [s.type for s in container.streams] == ["video", "audio", "audio"]

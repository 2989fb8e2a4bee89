"""Depth and colour tags: what comes in goes out, on clips that PyAV makes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.color import ColorMethod
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import RoutingSpec
from oasis_core.video_io import VideoReader, VideoWriter, WriterSettings, probe
from oasis_core.video_io.color_tags import ColorTags
from oasis_core.video_job import upscale_video

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

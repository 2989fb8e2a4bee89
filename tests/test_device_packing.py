"""Pictures packed by torch, where they are made: the planes that NumPy makes of them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from oasis_core.decode_order import Part
from oasis_core.jobs.packers import Packers
from oasis_core.landing import kept, landed
from oasis_core.plan import Position
from oasis_core.video_io import VideoInfo, WriterSettings
from oasis_core.video_io import device_packing as module
from oasis_core.video_io.color_tags import BT601, BT709, BT2020, ColorTags
from oasis_core.video_io.device_packing import DevicePacking, packs_on
from oasis_core.video_io.packing import Packing

ONE = Fraction(1)
USUAL = ColorTags(BT709, False)
INFO = VideoInfo(48, 40, 9, 25 * ONE, ONE / 25, 0, ONE, "yuv420p", 8, ColorTags(1, False), ())
CPU, CUDA = "cpu", pytest.param("cuda", marks=pytest.mark.gpu)
FORMATS = {
    "yuv420p": 8, "yuv422p": 8, "yuv444p": 8, "yuv440p": 8, "yuv420p10le": 10, "yuv422p10le": 10, "yuv444p10le": 10,
    "yuv420p16le": 16, "gbrp": 8, "gbrp10le": 10, "gbrp16le": 16, "bgr0": 8, "rgb24": 8,
}  # fmt: skip


def packing(name: str, height: int, width: int, tags: ColorTags = USUAL) -> Packing:
    """To any format, also those that no codec of ours takes."""
    made = Packing(width, height, INFO, WriterSettings("h264"))
    made.pixel_format, made.depth, made.tags, made.rgb = name, FORMATS[name], tags, not name.startswith("yuv")
    return made


def pictures(height: int, width: int, frames: int = 3) -> torch.Tensor:
    """Noise, whose every edge is a hard one, a ramp, and a checkerboard of columns; some values lie outside of [0, 1]."""
    generator = torch.Generator().manual_seed(height * width)
    noise = torch.rand(frames, height, width, 3, generator=generator) * 1.2 - 0.1
    noise[0, :, :, 1] = torch.linspace(0, 1, width)
    noise[-1, :, ::2] = 1 - noise[-1, :, ::2].round()
    return noise


def values(frame: av.VideoFrame) -> list[np.ndarray]:
    """Each plane's code values, without what lies beside the picture."""
    if frame.format.name in ("bgr0", "rgb24"):
        return [frame.to_ndarray(format="rgb24").astype(int)]
    depth, planes = frame.format.components[0].bits, []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        size = plane.width * (1 if depth <= 8 else 2)
        planes.append(np.ascontiguousarray(rows[:, :size]).view("u1" if depth <= 8 else "<u2").astype(int))
    return planes


def check_alike(own: Packing, frames: torch.Tensor) -> None:
    """Within a code value everywhere, and equal but for ties (one in a small plane).

    At 16 bits fp32 itself leaves up to 1/256 of a code at each step: NumPy's chroma is a code off what fp64 gives in up to 0.6 %
    of the values, and a GPU, which joins products and sums, rounds otherwise again.
    """
    differing = 0.02 if own.depth > 12 else 0.001
    there = DevicePacking(own)
    rows = there.pack(frames).cpu()
    assert rows.dtype == torch.uint8
    for number, (row, picture) in enumerate(zip(rows, frames.cpu(), strict=True), 1):
        expected, got = own(picture, number), there.frame(row, number)
        assert isinstance(expected, av.VideoFrame)
        assert got.format.name == expected.format.name
        assert (got.colorspace, got.color_range) == (expected.colorspace, expected.color_range)
        for one, other in zip(values(expected), values(got), strict=True):
            assert one.shape == other.shape
            assert np.abs(one - other).max() <= 1
            assert (one != other).sum() <= max(1, differing * one.size)


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize(("height", "width"), [(40, 48), (38, 50), (2, 2)])
@pytest.mark.parametrize("name", FORMATS)
def test_planes_are_those_of_numpy(name: str, height: int, width: int, device: str) -> None:
    check_alike(packing(name, height, width), pictures(height, width).to(device))


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("name", ["yuv444p", "yuv444p10le", "gbrp10le", "bgr0"])
def test_odd_sides(name: str, device: str) -> None:
    check_alike(packing(name, 37, 45), pictures(37, 45).to(device))
    check_alike(packing("yuv422p10le", 37, 46), pictures(37, 46).to(device))


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [BT601, BT709, BT2020])
@pytest.mark.parametrize("name", ["yuv420p", "yuv422p10le"])
def test_matrices_and_ranges(name: str, matrix: int, full: bool, device: str) -> None:
    check_alike(packing(name, 40, 48, ColorTags(matrix, full)), pictures(40, 48).to(device))


@pytest.mark.parametrize("codec", ["h264", "h265", "av1", "prores", "ffv1"])
@pytest.mark.parametrize("depth", [None, 10])
def test_what_codecs_take(codec: str, depth: int | None) -> None:
    if (codec, depth) != ("prores", None):
        check_alike(Packing(64, 66, INFO, WriterSettings(codec, depth=depth)), pictures(66, 64))
    check_alike(Packing(64, 66, replace(INFO, bit_depth=16), WriterSettings(codec)), pictures(66, 64))


def test_few_frames_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, there = pictures(40, 48, 7), DevicePacking(packing("yuv420p", 40, 48))
    together = there.pack(frames)
    for pixels in (1, 2 * 40 * 48):
        monkeypatch.setattr(module, "PIXELS", pixels)
        assert there.pack(frames).equal(together)
    assert together.shape == (7, 40 * 48 * 3 // 2 + 1)
    assert there.pack(frames.half()).shape == together.shape


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("name", ["yuv420p", "gbrp16le", "bgr0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_told_with_its_frame(
    name: str, value: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oasis_core.jobs.packers.packs_on", lambda device, packing: True)
    frames = pictures(40, 48).to(device)
    frames[1, 7, 9, 1] = value
    with Packers(packing(name, 40, 48), device) as packers:
        assert packers.finish is not None
        first, second, third = (packers.put(row, n) for n, row in enumerate(packers.finish(frames).cpu(), 16))
        assert first.result()
        assert third.result()
        with pytest.raises(ValueError, match="frame 17 holds NaN or infinite values"):
            second.result()


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"frames are \(1, 2, 2, 3\); expected \(n, 40, 48, 3\)"):
        DevicePacking(packing("yuv420p", 40, 48)).pack(torch.zeros(1, 2, 2, 3))
    with pytest.raises(ValueError, match="chroma is one sample to 4x1 pixels"):
        module._shrink(torch.zeros(1, 4, 4), 4, 1)


def test_where_pictures_are_packed() -> None:
    for codec, device, there in (
        ("h264", "cpu", False),
        ("h264", "cuda", True),
        ("ffv1", "mps", False),
        ("png", "cuda", False),
    ):
        own = Packing(48, 40, INFO, WriterSettings(codec))
        assert packs_on(device, own) is there
        with Packers(own, device) as packers:
            assert (packers.finish is not None) is there


@pytest.mark.gpu
def test_packed_rows_land_as_they_are() -> None:
    """Through the pinned staging, of changing sizes."""
    there = DevicePacking(packing("yuv420p10le", 40, 48))
    parts = [Part(there.pack(pictures(40, 48, n).cuda()), Position(n), True) for n in (3, 1, 5, 2)]
    for part, ended in zip(parts, [kept(p.frames) for p in landed(iter(parts))], strict=True):
        assert ended.device.type == "cpu"
        assert ended.equal(part.frames.cpu())

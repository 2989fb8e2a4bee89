"""Sizes exactly as asked for, no shift, padding that crops away."""

from __future__ import annotations

import math

import pytest
import torch

from oasis_core.geometry import Geometry, crop, plan_geometry, resize, upsample_and_pad

EPS = 1e-5  # fp32 resampling: tap positions round to about 1e-6 pixels (worst seen over 300 seeds: 2.6e-6)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((180, 320), 4, (720, 1280)),
        ((16, 16), 1, (16, 16)),
        ((17, 33), 1.5, (26, 50)),  # 25.5 and 49.5, both to even
        ((123, 457), 2.3, (283, 1051)),
        ((16, 4000), 4.0, (64, 16000)),
    ],
)
def test_scale_gives_the_rounded_size(size: tuple[int, int], scale: float, expected: tuple[int, int]) -> None:
    geometry = plan_geometry(*size, scale=scale)
    assert (geometry.out_h, geometry.out_w) == expected == (geometry.pad_h, geometry.pad_w)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"width": 640}, (360, 640)),
        ({"height": 720}, (720, 1280)),
        ({"width": 501}, (282, 501)),
        ({"width": 1280, "height": 180}, (180, 1280)),
        ({"width": 320}, (180, 320)),
    ],
)
def test_target_size_is_exact(target: dict[str, int], expected: tuple[int, int]) -> None:
    geometry = plan_geometry(180, 320, **target)  # type: ignore[arg-type]
    assert (geometry.out_h, geometry.out_w) == expected


def test_one_target_side_at_the_range_s_end_is_always_accepted() -> None:
    for in_h in range(16, 60):
        for in_w in range(16, 60, 7):
            for factor in (1, 4):
                geometry = plan_geometry(in_h, in_w, width=in_w * factor)
                assert (geometry.out_h, geometry.out_w) == (in_h * factor, in_w * factor)


def test_padding_is_the_next_multiple() -> None:
    for in_h in range(16, 40):
        geometry = plan_geometry(in_h, in_h + 5, scale=1.5, multiple=(16, 24))
        assert geometry.pad_h % 16 == 0
        assert geometry.pad_w % 24 == 0
        assert 0 <= geometry.pad_h - geometry.out_h < 16
        assert 0 <= geometry.pad_w - geometry.out_w < 24


@pytest.mark.parametrize("scale", [0.5, 9, math.nan, math.inf, -2, 0, 0.999, 4.001])
def test_scale_outside_its_range_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=rf"^scale is {scale}; it must be from 1 to 4 .*$"):
        plan_geometry(64, 64, scale=scale)


@pytest.mark.parametrize(
    ("size", "target", "message"),
    [
        ((15, 64), {"scale": 2}, "input is 64x15 pixels; it must be at least 16x16"),
        ((64, 0), {"scale": 2}, "input is 0x64"),
        ((64, 64), {}, "either a scale or a target size, not both or neither"),
        ((64, 64), {"scale": 2, "width": 128}, r"\(scale 2, width 128, height None\)"),
        ((64, 80), {"width": 79}, "target width is 79 for an input of 80; it must be from 80 to 320"),
        ((64, 80), {"height": 257}, "target height is 257 for an input of 64; it must be from 64 to 256"),
        ((64, 80), {"width": 160, "height": 63}, "target height is 63"),
        ((64, 80), {"width": 0}, "target width is 0"),
        ((64, 80), {"height": -5}, "target height is -5"),
    ],
)
def test_other_sizes_are_refused_in_one_line(size: tuple[int, int], target: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        plan_geometry(*size, **target)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(16, 16), (19, 31), (40, 24)])
@pytest.mark.parametrize("scale", [1.0, 1.5, 3.7, 4.0])
@pytest.mark.parametrize("multiple", [(1, 1), (16, 16), (16, 256)])
def test_crop_undoes_the_padding(size: tuple[int, int], scale: float, multiple: tuple[int, int]) -> None:
    geometry = plan_geometry(*size, scale=scale, multiple=multiple)
    frames = torch.rand(2, *size, 3)
    given = frames.clone()
    pixels = upsample_and_pad(frames, geometry)
    assert torch.equal(frames, given)
    assert pixels.shape == (1, 3, 2, geometry.pad_h, geometry.pad_w)
    assert pixels.dtype == torch.float32
    assert pixels.abs().max() <= 1
    padded = pixels[0].permute(1, 2, 3, 0)
    cropped = crop(padded, geometry)
    torch.testing.assert_close((cropped + 1) / 2, resize(frames, geometry.out_h, geometry.out_w), atol=EPS, rtol=0)
    # The padding repeats the last row and column, more often than the frame is wide if need be.
    last_column = padded[:, :, geometry.out_w - 1 : geometry.out_w]
    assert torch.equal(padded[:, :, geometry.out_w :], last_column.expand_as(padded[:, :, geometry.out_w :]))
    last_row = padded[:, geometry.out_h - 1 : geometry.out_h]
    assert torch.equal(padded[:, geometry.out_h :], last_row.expand_as(padded[:, geometry.out_h :]))


def test_padding_may_exceed_the_frame() -> None:
    frames = torch.rand(1, 16, 16, 3)
    pixels = upsample_and_pad(frames, Geometry(16, 16, 16, 16, 128, 64))
    assert pixels.shape == (1, 3, 1, 128, 64)
    assert torch.equal(pixels[0, :, 0, 127, 63], pixels[0, :, 0, 15, 15])


def test_scale_1_changes_nothing() -> None:
    frames = torch.rand(2, 20, 24, 3)
    assert torch.equal(resize(frames, 20, 24), frames)


@pytest.mark.parametrize("scale", [1.25, 1.5, 2.0, 3.0, 3.3, 4.0])
@pytest.mark.parametrize("side", [17, 24])
def test_resampling_does_not_shift(side: int, scale: float) -> None:
    frames = torch.rand(1, side, side, 3)
    symmetric = (frames + frames.flip(1)) / 2
    symmetric = (symmetric + symmetric.flip(2)) / 2
    geometry = plan_geometry(side, side, scale=scale)
    out = resize(symmetric, geometry.out_h, geometry.out_w)
    torch.testing.assert_close(out, out.flip(1), atol=EPS, rtol=0)
    torch.testing.assert_close(out, out.flip(2), atol=EPS, rtol=0)


@pytest.mark.parametrize(("side", "target"), [(17, 26), (24, 96), (31, 40), (20, 73)])
def test_a_gradient_stays_where_it_was(side: int, target: int) -> None:
    """Away from the edges a linear ramp over pixel centres is the same ramp on the finer grid."""
    centres = (torch.arange(side) + 0.5) / side
    frames = centres[None, None, :, None].expand(1, side, side, 3)
    out = resize(frames, target, target)[0, target // 2, :, 0]
    expected = (torch.arange(target) + 0.5) / target
    inner = slice(math.ceil(3 * target / side), -math.ceil(3 * target / side))  # bicubic reaches 2 input pixels
    torch.testing.assert_close(out[inner], expected[inner], atol=EPS, rtol=0)
    assert abs(float(out.mean()) - 0.5) < 1e-5


def test_overshoot_is_clamped() -> None:
    frames = torch.zeros(1, 16, 16, 3)
    frames[:, :, 8:] = 1
    out = resize(frames, 64, 64)
    assert out.min() == 0
    assert out.max() == 1


def test_frames_of_another_size_are_refused() -> None:
    geometry = plan_geometry(16, 20, scale=2, multiple=(16, 16))
    with pytest.raises(ValueError, match=r"frames are \(1, 20, 16, 3\); expected \(T, 16, 20, 3\)"):
        upsample_and_pad(torch.rand(1, 20, 16, 3), geometry)
    with pytest.raises(ValueError, match=r"frames are \(1, 32, 40, 3\); expected \(T, 32, 48, C\)"):
        crop(torch.rand(1, 32, 40, 3), geometry)

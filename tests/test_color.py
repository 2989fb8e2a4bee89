"""Colour correction on constructed cases with known answers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kornia.color import lab_to_rgb, rgb_to_lab
from torch import Tensor

from oasis_core import color
from oasis_core.color import ColorMethod, correct_color

CORRECTIONS = [ColorMethod.ADAIN, ColorMethod.WAVELET, ColorMethod.LAB]
# Lab goes through powers and a matrix and its rounded inverse; the others are sums in fp32.
FIXED_POINT = {ColorMethod.NONE: 0.0, ColorMethod.ADAIN: 1e-6, ColorMethod.WAVELET: 1e-6, ColorMethod.LAB: 1e-4}


def picture(frames: int = 2, height: int = 48, width: int = 64, low: float = 0.25, high: float = 0.75) -> Tensor:
    """Smooth shapes with texture, ``(T, H, W, 3)`` in [low, high]; each frame another one."""
    g = torch.Generator().manual_seed(3)
    coarse = F.interpolate(torch.rand(frames, 3, 5, 6, generator=g), size=(height, width), mode="bilinear")
    fine = torch.rand(frames, 3, height, width, generator=g)
    return (low + (high - low) * (0.7 * coarse + 0.3 * fine)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("method", ColorMethod)
def test_the_reference_itself_is_a_fixed_point(method: ColorMethod) -> None:
    frames = picture(low=0, high=1)
    torch.testing.assert_close(correct_color(frames, frames, method), frames, atol=FIXED_POINT[method], rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("method", ColorMethod)
def test_flat_frames_are_a_fixed_point(method: ColorMethod, value: float) -> None:
    frames = torch.full((1, 20, 30, 3), value)
    torch.testing.assert_close(correct_color(frames, frames, method), frames, atol=1e-4, rtol=0)


def test_detail_below_the_flat_threshold_is_a_fixed_point() -> None:
    frames = 0.5 + 1e-4 * picture(1)
    torch.testing.assert_close(correct_color(frames, frames, ColorMethod.ADAIN), frames, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ColorMethod)
def test_streamed_equals_whole(method: ColorMethod) -> None:
    sr, reference = picture(4), picture(4).flip(0)
    streamed = [correct_color(sr[i : i + 1], reference[i : i + 1], method) for i in range(4)]
    assert torch.equal(torch.cat(streamed), correct_color(sr, reference, method))


def test_none_only_clamps() -> None:
    frames = torch.tensor([-0.5, 0.25, 1.5]).expand(1, 4, 4, 3)
    assert torch.equal(correct_color(frames, picture(1, 4, 4), ColorMethod.NONE), frames.clamp(0, 1))


def test_adain_removes_a_tint() -> None:
    reference = picture()
    gain, offset = torch.tensor([1.2, 0.6, 0.9]), torch.tensor([-0.1, 0.2, 0.05])
    out = correct_color(reference * gain + offset, reference, ColorMethod.ADAIN)
    torch.testing.assert_close(out, reference, atol=1e-4, rtol=0)


def test_adain_moves_a_flat_frame_to_the_reference_s_mean() -> None:
    """A standard deviation of 0 (a fade from black): no division by it, and no rounding noise blown up."""
    reference = picture(1, 240, 320)
    out = correct_color(torch.full_like(reference, 0.7), reference, ColorMethod.ADAIN)
    torch.testing.assert_close(out, reference.mean((1, 2), keepdim=True).expand_as(out), atol=2e-4, rtol=0)


def test_adain_gives_a_flat_reference_s_colour() -> None:
    out = correct_color(picture(1), torch.full((1, 48, 64, 3), 0.4), ColorMethod.ADAIN)
    torch.testing.assert_close(out, torch.full_like(out, 0.4), atol=5e-3, rtol=0)  # about one 8-bit code value


def test_wavelet_removes_a_constant_tint() -> None:
    reference = picture()
    out = correct_color(reference + torch.tensor([0.1, -0.2, 0.05]), reference, ColorMethod.WAVELET)
    torch.testing.assert_close(out, reference, atol=1e-6, rtol=0)


def test_wavelet_removes_a_low_frequency_tint() -> None:
    reference = picture(1, 96, 512, 0.3, 0.7)
    phase = torch.linspace(0, 2 * torch.pi, 512)[None, None, :, None]  # one period over the width
    tint = 0.1 * torch.sin(phase) * torch.tensor([1.0, -1.0, 0.5])
    left = (correct_color(reference + tint, reference, ColorMethod.WAVELET) - reference).abs()
    # The cascade's variance is sum(4^i) / 2 = 13^2 pixels: 1 - exp(-(13 * 2 pi / 512)^2 / 2) = 1.3 % is left inside.
    assert left[:, :, 64:-64].max() < 0.015 * tint.abs().max()
    assert left.max() < 0.1 * tint.abs().max()  # replicated borders flatten the slope


def test_wavelet_keeps_fine_detail() -> None:
    """A checkerboard has no low frequencies: it stays, whatever the reference's level."""
    board = (torch.arange(48)[:, None] + torch.arange(64)) % 2 * 0.2 - 0.1
    sr = (0.5 + board)[None, ..., None].expand(-1, -1, -1, 3)
    out = correct_color(sr, torch.full_like(sr, 0.6), ColorMethod.WAVELET)
    inner = (slice(None), slice(1, -1), slice(1, -1))  # replicated corners do not cancel
    torch.testing.assert_close(out[inner], (sr + 0.1)[inner], atol=2e-3, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 90, 150), (1, 3, 5, 200), (1, 3, 70, 1), (1, 1, 1, 1)])
def test_wavelet_in_blocks_is_the_same(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    pair = color._sums_in_blocks(x), color._sums_of_frames(x)
    torch.testing.assert_close(*(y * 16.0**-color.WAVELET_LEVELS for y in pair), atol=1e-6, rtol=1e-6)


def test_wavelet_equals_the_formula_written_with_convolutions() -> None:
    """high(sr) + low(reference), depthwise, in fp64; also on frames smaller than the kernel."""
    kernel = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)

    def low(x: Tensor) -> Tensor:
        for step in (1, 2, 4, 8, 16):
            x = F.conv2d(F.pad(x, (step,) * 4, mode="replicate"), kernel, dilation=step, groups=3)
        return x

    for height, width in [(16, 16), (40, 70), (5, 90)]:
        sr, reference = picture(2, height, width), picture(2, height, width).flip(0, 1)
        x, y = (f.double().permute(0, 3, 1, 2) for f in (sr, reference))
        expected = (x - low(x) + low(y)).permute(0, 2, 3, 1).clamp(0, 1).float()
        torch.testing.assert_close(correct_color(sr, reference, ColorMethod.WAVELET), expected, atol=1e-6, rtol=0)


def to_lab(frames: Tensor) -> Tensor:
    return rgb_to_lab(frames.permute(0, 3, 1, 2))


def from_lab(lab: Tensor) -> Tensor:
    return lab_to_rgb(lab, clip=False).permute(0, 2, 3, 1)


def test_lab_removes_a_shift_and_gain_of_a_and_b() -> None:
    reference = picture(2, low=0.35, high=0.65)
    lab = to_lab(reference)
    tinted = from_lab(torch.cat([lab[:, :1], lab[:, 1:] * 0.8 + torch.tensor([6.0, -9.0]).view(1, 2, 1, 1)], dim=1))
    assert (tinted - reference).abs().max() > 0.04
    assert 0 <= tinted.min() <= tinted.max() <= 1
    torch.testing.assert_close(correct_color(tinted, reference, ColorMethod.LAB), reference, atol=1e-4, rtol=0)


def test_lab_keeps_lightness() -> None:
    sr, reference = picture(1, low=0.4, high=0.6), picture(2, low=0.35, high=0.65)[1:] * 0.8
    out = to_lab(correct_color(sr, reference, ColorMethod.LAB))
    torch.testing.assert_close(out[:, 0], to_lab(sr)[:, 0], atol=0.02, rtol=0)  # L is 0 to 100
    expected = to_lab(reference)[:, 1:]
    torch.testing.assert_close(out[:, 1:].mean((2, 3)), expected.mean((2, 3)), atol=0.02, rtol=0)
    torch.testing.assert_close(out[:, 1:].std((2, 3)), expected.std((2, 3)), atol=0.02, rtol=0)


@pytest.mark.parametrize("method", ColorMethod)
def test_output_is_fp32_within_0_and_1(method: ColorMethod) -> None:
    sr = (picture(2) * 3 - 1).to(torch.bfloat16)
    out = correct_color(sr, picture(2, low=0, high=1), method)
    assert out.dtype == torch.float32
    assert out.shape == sr.shape
    assert 0 <= out.min() <= out.max() <= 1


@pytest.mark.parametrize("method", ColorMethod)
def test_inputs_are_left_alone(method: ColorMethod) -> None:
    sr, reference = picture(1) * 1.5, picture(1)
    before = sr.clone(), reference.clone()
    correct_color(sr, reference, method)
    assert torch.equal(sr, before[0])
    assert torch.equal(reference, before[1])


def test_methods_by_name() -> None:
    assert [ColorMethod.of(m.value) for m in ColorMethod] == list(ColorMethod)
    with pytest.raises(ValueError, match=r"^colour method is 'sepia'; allowed: none, adain, wavelet, lab$"):
        ColorMethod.of("sepia")
    with pytest.raises(ValueError, match="'sepia'; allowed"):
        correct_color(picture(1), picture(1), "sepia")  # type: ignore[arg-type]


def test_frames_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 48, 64, 3\), reference \(1, 48, 60, 3\)"):
        correct_color(picture(1), picture(1, 48, 60), ColorMethod.ADAIN)
    with pytest.raises(ValueError, match=r"\(48, 64, 3\)"):
        correct_color(picture(1)[0], picture(1)[0], ColorMethod.WAVELET)

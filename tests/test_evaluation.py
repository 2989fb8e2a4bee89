"""Scores with known answers, on film (the bundled sample) and on pictures made for the purpose."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from oasis_core.evaluation import vmaf
from oasis_core.evaluation.clips import ClipFile
from oasis_core.evaluation.metrics import LARGEST_PSNR, FrameQuality, LowResolution
from oasis_core.evaluation.score import Judge, Measure
from oasis_core.evaluation.temporal import Flicker, WarpError
from oasis_core.evaluation.vmaf import Vmaf
from oasis_core.video_io import VideoReader

SAMPLE = Path(__file__).parents[1] / "assets" / "sample.mp4"
Frames = list[np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These pictures are small: on busy cores, threads that wait for each other take five times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@pytest.fixture(scope="module")
def film() -> Frames:
    """Five frames of the sample, 160x128, within [30, 220]: brightness may change without clipping."""
    return [(30 + f[40:168, 80:240] * (190 / 255)).round().astype(np.uint8) for f in islice(ClipFile(SAMPLE), 5)]


def pan(film: Frames, columns: int = 4, count: int = 4) -> Frames:
    """A still picture that moves right by whole pixels each frame: new columns come in at the left."""
    wide = cv2.resize(film[0], (320, 256), interpolation=cv2.INTER_CUBIC)
    return [np.ascontiguousarray(wide[64:192, 100 - columns * t : 260 - columns * t]) for t in range(count)]


def blurred(frames: Frames, sigma: float) -> Frames:
    return [cv2.GaussianBlur(f, (0, 0), sigma) for f in frames]


def alternating(frames: Frames, levels: int) -> Frames:
    """Brighter and darker by ``levels``, in turn."""
    return [(f.astype(int) + (-1) ** t * levels).astype(np.uint8) for t, f in enumerate(frames)]


def scores(measure: Measure, truth: Frames, output: Frames) -> dict[str, float]:
    for hr, sr in zip(truth, output, strict=True):
        measure.add(hr, sr)
    return measure.result()


def test_an_identical_clip_scores_the_best_there_is(judge: Judge, film: Frames) -> None:
    found = judge.score(film, film)
    assert found["psnr"] == found["lrgt_psnr"] == LARGEST_PSNR
    assert found["ssim"] == pytest.approx(1, abs=1e-6)
    assert found["stlpips_alex"] == found["stlpips_vgg"] == found["flicker"] == 0
    assert found["ewarp"] == found["ewarp_truth"] > 0
    assert found["vmaf"] > 97
    assert found["vmaf_neg"] > 97


def test_more_blur_scores_worse(judge: Judge, film: Frames) -> None:
    found = [judge.score(film[:3], blurred(film[:3], sigma)) for sigma in (0.7, 1.5, 3.0)]
    for key, sign in (
        ("psnr", 1), ("ssim", 1), ("vmaf", 1), ("vmaf_neg", 1), ("lrgt_psnr", 1), ("stlpips_alex", -1), ("stlpips_vgg", -1)
    ):  # fmt: skip
        values = [sign * f[key] for f in found]
        assert values[0] > values[1] > values[2], (key, values)
    assert found[2]["ewarp"] < found[2]["ewarp_truth"]  # steady because it is blurred


def test_psnr_of_a_known_error() -> None:
    gray = np.full((64, 64, 3), 128, np.uint8)
    brighter = gray + 10
    assert scores(FrameQuality(), [gray], [brighter])["psnr"] == pytest.approx(20 * np.log10(255 / 10), abs=1e-4)
    assert scores(LowResolution(), [gray], [brighter])["lrgt_psnr"] == pytest.approx(20 * np.log10(255 / 10))
    # The mean is over frames in dB, an equal frame with its cap; lrgt is of the clip's whole error.
    both = [gray, gray], [gray, brighter]
    assert scores(FrameQuality(), *both)["psnr"] == pytest.approx((LARGEST_PSNR + 20 * np.log10(25.5)) / 2, abs=1e-4)
    assert scores(LowResolution(), *both)["lrgt_psnr"] == pytest.approx(20 * np.log10(25.5 * 2**0.5))


def test_low_resolution_does_not_see_fine_texture() -> None:
    gray = np.full((64, 64, 3), 128, np.uint8)
    checks = gray + (8 - 16 * (np.indices((64, 64)).sum(0) % 2))[..., None].astype(np.int8)
    checks = checks.astype(np.uint8)
    assert scores(FrameQuality(), [gray], [checks])["psnr"] == pytest.approx(20 * np.log10(255 / 8), abs=1e-4)
    assert scores(LowResolution(), [gray], [checks])["lrgt_psnr"] == LARGEST_PSNR


@pytest.mark.parametrize("sigma", [0.6, 2.0])
def test_ssim_equals_an_independent_implementation(film: Frames, sigma: float) -> None:
    """The authors' formula in float64, windows inside the frame only."""
    window = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    window /= window.sum()

    def smooth(x: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            x = np.apply_along_axis(np.convolve, axis, x, window, "valid")
        return x

    a, b = (f.astype(float) for f in (film[0], blurred(film[:1], sigma)[0]))
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b, cov = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2, smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    expected = (light * (2 * cov + c2) / (var_a + var_b + c2)).mean()
    found = scores(FrameQuality(), film[:1], blurred(film[:1], sigma))["ssim"]
    assert found == pytest.approx(expected, abs=2e-4)


def test_a_still_has_no_warp_error_and_no_flicker(film: Frames) -> None:
    still = film[:1] * 3
    assert scores(WarpError(), still, still) == {"ewarp": 0, "ewarp_truth": 0}
    assert scores(Flicker(), still, blurred(still, 2)) == {"flicker": 0}


def test_motion_is_compensated(film: Frames) -> None:
    moving = pan(film)
    naive = 1e3 * np.mean([np.square(b / 255 - a / 255).mean() for a, b in pairwise(moving)])
    assert scores(WarpError(), moving, moving)["ewarp"] < 0.02 * naive


@pytest.mark.parametrize("levels", [4, 9])
def test_alternating_brightness_costs_what_it_must(film: Frames, levels: int) -> None:
    """Each frame differs from the one before by twice the levels, wherever the picture moves."""
    expected = 1e3 * (2 * levels / 255) ** 2
    still, moving = film[:1] * 4, pan(film)
    assert scores(WarpError(), still, alternating(still, levels))["ewarp"] == pytest.approx(expected)
    found = scores(WarpError(), moving, alternating(moving, levels))
    assert found["ewarp"] == pytest.approx(expected + found["ewarp_truth"], rel=0.03)
    for frames in (still, moving):
        assert scores(Flicker(), frames, alternating(frames, levels))["flicker"] == pytest.approx(2 * levels / 255)


def test_pixels_that_only_one_frame_sees_do_not_count(film: Frames) -> None:
    before, after = pan(film, columns=8, count=2)
    wrong = after.copy()
    wrong[:, :6] = 0  # came in at the left
    found = scores(WarpError(), [before, after], [before, wrong])
    assert found["ewarp"] == pytest.approx(found["ewarp_truth"], abs=0.02)
    wrong[:, 40:46] = 0
    assert scores(WarpError(), [before, after], [before, wrong])["ewarp"] > 1


def test_vmaf_is_fooled_by_sharpening_and_neg_is_not(film: Frames) -> None:
    soft = blurred(film, 1.0)
    sharp = [cv2.addWeighted(f, 2.5, b, -1.5, 0) for f, b in zip(soft, blurred(soft, 2.0), strict=True)]
    found = []
    for output in (soft, sharp):
        with Vmaf() as measure:
            found.append(scores(measure, film, output))
    gain = {key: found[1][key] - found[0][key] for key in ("vmaf", "vmaf_neg")}
    assert gain["vmaf"] > gain["vmaf_neg"] + 3


def test_vmaf_works_in_any_temporary_folder(film: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvmaf's options would take a drive's colon for a separator: ffmpeg is given names without folders."""
    folder = tmp_path / ("it's [a], b=c; d" if os.name == "nt" else r"it's [a], b=c; C:\d")
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with Vmaf() as measure:
        assert scores(measure, film[:2], film[:2])["vmaf"] > 90
    assert list(folder.iterdir()) == []
    assert not any(sign in word for word in vmaf.command()[1:] for sign in ("/", str(folder)))


def test_vmaf_tells_why_it_failed(film: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vmaf.why_not() is None
    with Vmaf() as measure:
        measure.add(film[0], film[0])
        bad = [word.replace("vmaf_v0.6.1", "none_such") for word in vmaf.command()]
        monkeypatch.setattr(vmaf, "command", lambda: bad)
        with pytest.raises(OSError, match="ffmpeg could not measure VMAF"):
            measure.result()


def test_without_libvmaf_the_rest_is_measured(
    film: Frames, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def listed(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, " .. vmafmotion        V->V       Calculate\n", "")

    monkeypatch.setattr(subprocess, "run", listed)
    found = Judge().score(film[:1], film[:1])
    assert "VMAF is left out" in caplog.text
    assert set(found) == {"psnr", "ssim", "lrgt_psnr", "stlpips_alex", "stlpips_vgg"}  # one frame: nothing in time


def test_the_frames_that_both_have_count(judge: Judge, film: Frames, caplog: pytest.LogCaptureFixture) -> None:
    assert judge.score(film[:2], film[:3])["psnr"] == LARGEST_PSNR
    assert "2 frames of truth, 3 of output" in caplog.text


def test_sides_are_cropped_to_a_multiple_of_8(judge: Judge, film: Frames) -> None:
    truth = [np.ascontiguousarray(f[:91, :101]) for f in film[:2]]
    spoilt = [f.copy() for f in truth]
    for f in spoilt:
        f[88:], f[:, 96:] = 0, 0
    assert judge.score(truth, spoilt)["psnr"] == LARGEST_PSNR


def test_what_cannot_be_scored_is_refused(judge: Judge, film: Frames) -> None:
    with pytest.raises(ValueError, match="ground truth 160x128, output 80x64"):
        judge.score(film, [f[::2, ::2] for f in film])
    with pytest.raises(ValueError, match="at least 64 pixels"):
        judge.score([f[:60] for f in film], [f[:60] for f in film])
    with pytest.raises(ValueError, match="no frames"):
        judge.score(film, [])


def test_clip_files_are_8_bit_and_can_be_read_again() -> None:
    clip = ClipFile(SAMPLE)
    first, again = list(islice(clip, 3)), list(islice(clip, 3))
    assert len(clip) == 24
    assert first[0].dtype == np.uint8
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    exact = [np.clip(f.rgb.numpy() * 255, 0, 255) for f in islice(VideoReader(SAMPLE), 3)]
    assert np.abs(np.stack(exact) - np.stack(first)).mean() < 2

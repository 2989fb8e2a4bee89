"""Real codecs give back what they were given, a little worse, the same each time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from oasis_core.training.codec import CRF, SHARES, STILL_QUALITY, CodecChoice, draw_codec, round_trip, to_rgb

from .conftest import textured


def moving(size: tuple[int, int], frames: int = 7) -> np.ndarray:
    """``(frames, *size, 3)``: shading and fine texture that move one pixel a frame."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1] + frames]
    shading = 127 + 80 * np.sin(x / 9 + y / 17)[..., None] * np.array([1.0, 0.6, 0.3])
    wide = np.clip(shading + rng.normal(0, 10, (*x.shape, 3)), 0, 255).astype(np.uint8)
    return np.stack([wide[:, t : t + size[1]] for t in range(frames)])


def one_of_each() -> list[CodecChoice]:
    rng = np.random.default_rng(1)
    found: dict[str, CodecChoice] = {}
    while len(found) < len(SHARES) - 1:
        if (codec := draw_codec(rng, 64 * 64)) is not None:
            found.setdefault(codec.name, codec)
    return list(found.values())


@pytest.mark.parametrize("codec", one_of_each(), ids=lambda c: c.name)
@pytest.mark.parametrize("size", [(64, 64), (16, 16), (43, 85)])
def test_round_trip_keeps_shape_and_picture(codec: CodecChoice, size: tuple[int, int]) -> None:
    frames = moving(size)
    coded = round_trip(frames, codec)
    assert coded.shape == frames.shape
    assert coded.dtype == np.uint8
    error = np.abs(coded.astype(float) - frames).mean((1, 2, 3))
    assert 0 < error.max() < 20  # every frame is its own picture (a shift by one frame costs more than noise alone)


@pytest.mark.parametrize("codec", one_of_each(), ids=lambda c: c.name)
def test_round_trip_repeats_exactly_in_threads(codec: CodecChoice) -> None:
    """With its macroblock tree x264 gave other bytes in about every tenth encoding of these frames."""
    wide = textured(96, 117, 5)
    frames = np.stack([wide[:, 3 * t : 3 * t + 96] for t in range(7)])
    for crf in ("23", "26", "29"):
        choice = replace(codec, options=tuple((k, crf if k == "crf" else v) for k, v in codec.options))
        first = round_trip(frames, choice)
        with ThreadPoolExecutor(4) as pool:
            for again in pool.map(round_trip, [frames] * 8, [choice] * 8):
                np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("size", [(64, 64), (17, 63), (88, 28)])
def test_small_h265_repeats_exactly_among_others(size: tuple[int, int]) -> None:
    """With x265's usual blocks of 64 pixels, about a tenth of clips of these sizes came back different."""
    frames, choices = moving(size, 5), one_of_each()
    h265 = next(c for c in choices if c.name == "libx265")
    first = round_trip(frames, h265)
    with ThreadPoolExecutor(3) as pool:
        for choice, again in zip(
            choices * 6, pool.map(round_trip, [frames] * 6 * len(choices), choices * 6), strict=True
        ):
            if choice is h265:
                np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("codec", one_of_each(), ids=lambda c: c.name)
@pytest.mark.parametrize("frames", [1, 2])
def test_very_short_clips(codec: CodecChoice, frames: int) -> None:
    for _ in range(4):  # x265's decoding times were chance
        assert round_trip(moving((64, 64), frames), codec).shape == (frames, 64, 64, 3)


@pytest.mark.parametrize("name", STILL_QUALITY)
def test_still_codecs_code_each_frame_alone(name: str) -> None:
    low, high = (CodecChoice(name, (("quality", q),)) for q in ("30", "95"))
    frames = moving((40, 56), 3)
    coded = round_trip(frames, low)
    np.testing.assert_array_equal(round_trip(frames[::-1], low), coded[::-1])
    worse, better = (np.abs(round_trip(frames, c).astype(float) - frames).mean() for c in (low, high))
    assert worse > 1.2 * better  # the noise in the colours goes at any quality


def test_no_codec_leaves_the_clip_alone() -> None:
    frames = moving((16, 16))
    assert round_trip(frames, None) is frames


def test_draws_follow_the_shares() -> None:
    rng = np.random.default_rng(2)
    drawn = [draw_codec(rng, 64 * 64) for _ in range(2000)]
    for name, share in SHARES.items():
        assert np.mean([(c.name if c else "none") == name for c in drawn]) == pytest.approx(share, abs=0.035)  # 3 sigma
    for codec in drawn:
        if codec is not None and codec.name in CRF:
            assert CRF[codec.name][0] <= int(dict(codec.options)["crf"]) <= CRF[codec.name][2]
        if codec is not None and codec.name in STILL_QUALITY:
            assert STILL_QUALITY[codec.name][0] <= int(dict(codec.options)["quality"]) <= STILL_QUALITY[codec.name][1]


def test_smooth_chroma_has_no_stairs(tmp_path: Path) -> None:
    """As other programs decode it; straight to RGB each 2x2 block has one colour difference."""
    path = tmp_path / "picture.jpg"
    cv2.imwrite(str(path), textured(96, 128, 5))
    theirs = cv2.imread(str(path))[..., ::-1].astype(float)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    smooth, blocky = (to_rgb(frame, s).astype(float) for s in (True, False))
    assert np.abs(smooth - theirs).mean() < 0.3
    assert np.abs(blocky - theirs).mean() > 1

"""Pictures on their way to the encoder: packed by several threads, in order, and never many unpacked ones."""

from __future__ import annotations

import threading
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from oasis_core.jobs.overlap import LEAST, MOST, PACKED_BYTES, RGB_BYTES, ROOM, frames_waiting
from oasis_core.jobs.packers import Packers
from oasis_core.video_io import VideoInfo, WriterSettings
from oasis_core.video_io.color_tags import ColorTags, rgb_to_codes, yuv_to_rgb
from oasis_core.video_io.packing import Packing

ONE = Fraction(1)
INFO = VideoInfo(48, 40, 9, 25 * ONE, ONE / 25, 0, ONE, "yuv420p", 8, ColorTags(1, False), ())


def packing(codec: str = "h264") -> Packing:
    return Packing(48, 40, INFO, WriterSettings(codec))


def test_the_order_is_kept_and_values_too() -> None:
    pictures = torch.linspace(0, 1, 30)[:, None, None, None].expand(-1, 40, 48, 3)
    with Packers(packing()) as packers:
        futures = [packers.put(picture, n) for n, picture in enumerate(pictures, 1)]
        frames = [future.result() for future in futures]
    levels = []
    for frame in frames:
        assert isinstance(frame, av.VideoFrame)
        levels.append(int(frame.to_ndarray()[0, 0]))
    assert levels == [round(16 + 219 * n / 29) for n in range(30)]


def test_few_unpacked_pictures_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who makes them faster than they are packed waits, and the time is noted."""
    monkeypatch.setattr("oasis_core.jobs.overlap.ROOM", 3 * 40 * 48 * RGB_BYTES)
    gate, most, lock, alive = threading.Event(), 0, threading.Lock(), 0
    inner = packing()

    class Slow:
        size = inner.size

        def __call__(self, picture: torch.Tensor, number: int) -> object:
            gate.wait(5)
            nonlocal alive
            with lock:
                alive -= 1
            return inner(picture, number)

    with Packers(Slow()) as packers:  # type: ignore[arg-type]
        threading.Timer(0.2, gate.set).start()
        for number in range(12):
            future = packers.put(torch.zeros(40, 48, 3), number)
            with lock:
                alive += 1
                most = max(most, alive)
        future.result()
    assert most <= 4
    assert packers.waited > 0.05


def test_what_waits_is_bounded_by_its_bytes() -> None:
    assert frames_waiting(180, 320, RGB_BYTES) == MOST  # more than a chunk
    assert frames_waiting(720, 1280, PACKED_BYTES) == MOST  # longer than an encoder needs to end a segment
    for side in (1080, 2160):
        assert frames_waiting(side, side * 16 // 9, RGB_BYTES) * side * side * 16 // 9 * RGB_BYTES <= ROOM
    assert frames_waiting(8640, 15360, RGB_BYTES) == LEAST


@pytest.mark.parametrize("codec", ["h264", "ffv1", "png"])
def test_what_is_no_number_is_told_with_its_frame(codec: str) -> None:
    picture = torch.zeros(40, 48, 3)
    picture[7, 9, 1] = float("nan")
    with Packers(packing(codec)) as packers, pytest.raises(ValueError, match="frame 17 holds NaN"):
        packers.put(picture, 17).result()
    with pytest.raises(ValueError, match=r"frame 3 is \(2, 2, 3\)"):
        packing(codec)(torch.zeros(2, 2, 3), 3)


@pytest.mark.parametrize("height", [1, 16, 17, 40])
def test_bands_do_not_show(height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours are computed some rows at a time: each pixel by itself."""
    monkeypatch.setattr("oasis_core.video_io.color_tags.BAND", 16 * 6)
    monkeypatch.setattr("oasis_core.video_io.color_tags.WHOLE", 0)
    rgb = np.random.default_rng(0).random((height, 6, 3)).astype(np.float32)
    tags = ColorTags(1, False)
    codes = rgb_to_codes(rgb, tags, 10)
    assert codes.shape == (3, height, 6)
    for row in range(height):
        np.testing.assert_array_equal(codes[:, row : row + 1], rgb_to_codes(rgb[row : row + 1], tags, 10))
    back = yuv_to_rgb(codes, tags, 10)
    np.testing.assert_allclose(back, rgb, atol=1e-5)
    np.testing.assert_array_equal(back[height // 2][None], yuv_to_rgb(codes[:, height // 2][:, None], tags, 10))

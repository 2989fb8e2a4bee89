"""Going on in the middle of a video gives what decoding from the start gives, on clips that PyAV makes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.video_io import Deinterlace, Frame, KnownFrame, VideoReader
from oasis_core.video_io.decoding import Decoding

FRAMES = 60
BASE = Fraction(1, 1000)


def stamps(uneven: bool) -> list[int]:
    steps = np.random.default_rng(1).integers(5, 120, FRAMES) if uneven else np.full(FRAMES, 40)
    return [int(t) for t in np.cumsum(steps) - steps[0]]


def make(
    path: Path, codec: str, options: dict[str, str], *, uneven: bool = False, first: int = 0, interlaced: bool = False
) -> Path:
    """Moving noise with sound."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = BASE if codec != "mpeg2video" else Fraction(1, 25)
        sound = container.add_stream("aac" if path.suffix != ".webm" else "libopus", rate=48000, layout="mono")
        for i, pts in enumerate(stamps(uneven)):
            picture = np.roll(noise, (3 * i, 2 * i), (0, 1))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            unit = stream.codec_context.time_base
            frame.pts, frame.time_base = round(pts * BASE / unit) + round(first / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for start in range(first * 48000, first * 48000 + FRAMES * 1920, 960):
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), format="s16", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
            container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
    return path


def at(frames: list[Frame], number: int) -> KnownFrame:
    return KnownFrame(number, frames[number].pts, frames[number].checksum)


X264 = {"crf": "20", "preset": "veryfast"}
CLIPS = {
    "even.mp4": ("libx264", {**X264, "g": "12", "bf": "0"}, {}),
    "b_frames.mp4": ("libx264", {**X264, "g": "12", "bf": "3", "b-adapt": "0"}, {}),
    "uneven.mp4": ("libx264", {**X264, "g": "12", "bf": "3", "b-adapt": "0"}, {"uneven": True}),
    "uneven.mkv": ("libx264", {**X264, "g": "12", "bf": "3", "b-adapt": "0"}, {"uneven": True}),
    "one_key_frame.mkv": ("libx264", {**X264, "g": "999", "bf": "2"}, {}),
    "open_groups.mp4": ("libx264", {**X264, "g": "12", "bf": "3", "x264-params": "open-gop=1:b-adapt=0"}, {}),
    "intra_refresh.mkv": ("libx264", {**X264, "g": "12", "bf": "0", "x264-params": "intra-refresh=1"}, {}),
    "hevc.mkv": ("libx265", {"x265-params": "log-level=error:keyint=12:open-gop=1:bframes=3"}, {"uneven": True}),
    "vp9.webm": ("libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}, {}),
    "mpeg2.ts": ("mpeg2video", {"g": "12", "bf": "2"}, {"first": 3600}),
    "h264.ts": ("libx264", {**X264, "g": "12", "bf": "3"}, {"first": 3600}),
    "mpeg4.avi": ("mpeg4", {"g": "12"}, {}),
    "h264.nut": ("libx264", {**X264, "g": "12", "bf": "3"}, {"uneven": True}),
}  # fmt: skip


NOT_ENTERED = ("one_key_frame.mkv", "intra_refresh.mkv", "mpeg4.avi")
"""Decoded from the start: no other key frame, none that is whole, no time stamps on packets."""


@pytest.mark.parametrize("name", CLIPS)
def test_frames_from_the_middle_are_those_from_the_start(tmp_path: Path, name: str) -> None:
    codec, options, more = CLIPS[name]
    reader = VideoReader(make(tmp_path / name, codec, options, **more))  # type: ignore[arg-type]
    whole = list(reader)
    end, exact = reader.end, reader.exact
    assert len(whole) == FRAMES
    for known in (7, 12, 13, 30, 59):
        for first in {known, min(known + 5, FRAMES - 1)}:
            place = [at(whole, 0), at(whole, known)] if exact else []
            got = list(reader.frames(first, place))
            assert [f.pts for f in got] == [f.pts for f in whole[first:]]
            assert torch.equal(torch.stack([f.rgb for f in got]), torch.stack([f.rgb for f in whole[first:]]))
            assert (reader.end, reader.problem) == (end, None)


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets an entry for each packet that is decoded."""
    real, packets = Decoding._decode, []

    def count(self: Decoding, packet: av.Packet | None) -> object:
        packets.append(1)
        return real(self, packet)

    monkeypatch.setattr(Decoding, "_decode", count)
    return packets


@pytest.mark.parametrize("name", [n for n in CLIPS if n not in NOT_ENTERED])
def test_what_lies_before_is_not_decoded(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, options, more = CLIPS[name]
    reader = VideoReader(make(tmp_path / name, codec, options, **more))  # type: ignore[arg-type]
    whole = list(reader)
    assert reader.exact
    packets = decoded(monkeypatch)
    assert len(list(reader.frames(50, [at(whole, 48)]))) == 10
    assert len(packets) < FRAMES - 12


@pytest.mark.parametrize("mode", [Deinterlace.FRAME, Deinterlace.FIELD])
def test_deinterlaced_frames_from_the_middle_too(tmp_path: Path, mode: Deinterlace) -> None:
    codec, options, more = CLIPS["uneven.mp4"]
    reader = VideoReader(make(tmp_path / "in.mp4", codec, options, **more), deinterlace=mode)  # type: ignore[arg-type]
    whole = list(reader)
    assert len(whole) == FRAMES * mode.frames
    for first in (1, 30, 31, len(whole) - 1):
        known = [at(whole, n) for n in range(0, len(whole), 7)]
        got = list(reader.frames(first, known))
        assert [f.pts for f in got] == [f.pts for f in whole[first:]]
        assert torch.equal(torch.stack([f.rgb for f in got]), torch.stack([f.rgb for f in whole[first:]]))


@pytest.mark.parametrize("wrong", [{"pts": 1}, {"pts": 10**9}, {"checksum": 1}, {"number": 29}])
def test_a_frame_that_is_not_there_means_decoding_from_the_start(tmp_path: Path, wrong: dict[str, int]) -> None:
    codec, options, more = CLIPS["uneven.mp4"]
    reader = VideoReader(make(tmp_path / "in.mp4", codec, options, **more))  # type: ignore[arg-type]
    whole = list(reader)
    got = list(reader.frames(40, [replace(at(whole, 30), **wrong)]))
    # A wrong number alone, of a frame that is as it was, cannot be noticed: jobs keep it with a hash of the input.
    assert [f.pts for f in got] == [f.pts for f in whole[41 if "number" in wrong else 40 :]]


def test_damage_and_made_up_time_stamps_are_not_exact(tmp_path: Path) -> None:
    codec, options, more = CLIPS["b_frames.mp4"]
    source = make(tmp_path / "in.mp4", codec, options, **more)  # type: ignore[arg-type]
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    source.write_bytes(data)
    reader = VideoReader(source)
    assert reader.exact
    list(reader)
    assert not reader.exact


def test_images_are_entered_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(5):
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * i, np.uint8), format="rgb24")
        frame.save(str(folder / f"{i}.png"))
    reader = VideoReader(folder)
    (folder / "0.png").write_bytes(b"never read")
    assert [(f.pts, round(float(f.rgb.mean()) * 255)) for f in reader.frames(3)] == [(3, 30), (4, 40)]

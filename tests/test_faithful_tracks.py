"""Durations, edit lists, sound, subtitles and chapters: what comes in goes out, on clips that PyAV makes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import RoutingSpec
from oasis_core.video_io import VideoReader, WriterSettings, probe, tracks
from oasis_core.video_job import JobSettings, upscale_video

from .test_faithful_video import PQ, SIZE

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
    tmp_path: Path, upscaler: Upscaler, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a container that holds none; of ours each holds some, since AVI is none of them."""
    source = film(tmp_path / "in.mkv")
    monkeypatch.delitem(tracks.TEXT_FALLBACK, ".mp4")
    upscale_video(VideoReader(source), tmp_path / "out.mp4", upscaler, WriterSettings())
    assert "cannot hold" in caplog.text
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [s.type for s in container.streams if s.type != "data"] == [
            "video",
            "audio",
            "audio",
        ]  # chapters are data

"""Real codecs: video through PyAV, still pictures (each frame alone) through Pillow."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import numpy as np
from PIL import Image

SMALLEST = {"libx265": 64}
"""Frames smaller than this, pixels per side, are edge-padded to it and cropped again. x265 (in PyAV 18) reads stray
memory where one of its blocks spans the frame: with the usual blocks of 64, clips of 16 and 48 pixels corrupted the heap,
and of those padded to 64 up to a tenth differed when repeated. With blocks of 32 (``X265_PARAMS``) and two of them each
way, 5264 round trips of clips of 16 to 256 pixels and 1 to 7 frames, mixed with the other encoders in 3 threads of 8
processes, neither crashed nor differed, whatever glibc was told to fill freed memory with (MALLOC_PERTURB_)."""
SMALLEST_OF_OTHERS = 32
"""Encoders refuse very small frames."""
SHARES = {
    "none": 0.14, "libx264": 0.55, "libx265": 0.06, "mpeg4": 0.08, "libvpx-vp9": 0.07, "jpeg": 0.06, "webp": 0.04
}  # fmt: skip
"""How often a clip meets each encoder; the slow ones (docstring of ``round_trip``) are rare."""
CRF = {"libx264": (20, 31, 37), "libx265": (22, 31, 38), "libvpx-vp9": (24, 36, 50)}
"""Lowest, most frequent and highest constant rate factor. x264's look as 17, 28 and 34 do with its macroblock tree."""
STILL_QUALITY = {"jpeg": (35, 95), "webp": (30, 95)}
"""Lowest and highest quality, the libraries' own scales: motion JPEG of cameras and animated pictures."""
X265_PARAMS = "ctu=32:pools=none:frame-threads=1:wpp=0:log-level=none"
"""Blocks of 32 pixels (see ``SMALLEST``); one thread: the same bytes each time, no pool of threads for each clip."""
PRESETS = ("veryfast", "faster", "medium")
WHOLE_CHROMA = {"yuv420p": "yuv444p", "yuvj420p": "yuvj444p", "yuv422p": "yuv444p", "yuvj422p": "yuvj444p"}
"""Formats with subsampled chroma, and those of the same range without."""


@dataclass(frozen=True)
class CodecChoice:
    """One encoder with its quality."""

    name: str
    options: tuple[tuple[str, str], ...]
    bit_rate: int | None = None
    smooth_chroma: bool = True
    """How the decoder brings chroma back to full size: interpolated, or repeated in 2x2 blocks (fast players)."""


def draw_codec(rng: np.random.Generator, pixels: int) -> CodecChoice | None:
    """A random encoder, as often as ``SHARES`` says, for frames of ``pixels`` pixels; None: leave the clip alone."""
    name = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    smooth = bool(rng.random() < 0.5)
    if name == "none":
        return None
    if name == "mpeg4":
        rate = int(pixels * 24 * rng.uniform(0.15, 0.6))  # bits per second at 24 frames a second
        return CodecChoice(name, (("threads", "1"),), rate, smooth)
    if name in STILL_QUALITY:
        return CodecChoice(name, (("quality", str(rng.integers(*STILL_QUALITY[name], endpoint=True))),))
    crf = str(round(rng.triangular(*CRF[name])))
    options: tuple[tuple[str, str], ...]
    if name == "libx264":
        # The macroblock tree of small frames depends on stray memory: 16 of 90 encodings differed when repeated.
        options = (("crf", crf), ("preset", str(rng.choice(PRESETS))), ("threads", "1"), ("mbtree", "0"))
    elif name == "libx265":
        preset = str(rng.choice(PRESETS))
        options = (("crf", crf), ("preset", preset), ("threads", "1"), ("x265-params", X265_PARAMS))
    else:  # a bit rate of 0 makes VP9's crf a constant quality
        options = (("crf", crf), ("b", "0"), ("deadline", "good"), ("cpu-used", "5"), ("threads", "1"))
    return CodecChoice(name, options, None, smooth)


def round_trip(frames: np.ndarray, codec: CodecChoice | None) -> np.ndarray:
    """``(T, H, W, 3)`` uint8 encoded and decoded again, same shape.

    5 frames of 64x64 / 96x96 on one (shared) core, ms: H.264 5.5 / 6.3, H.265 9 / 13, MPEG-4 3.1 / 3.5, VP9 13 / 19,
    JPEG 0.7 / 0.9, WebP 2.0 / 3.0; as often as ``SHARES`` says 4.8 / 6.0.
    Repeated, also in threads, each gives the same bytes.
    """
    if codec is None:
        return frames
    if codec.name in STILL_QUALITY:
        return np.stack([_through_still(frame, codec) for frame in frames])
    height, width = frames.shape[1:3]
    least = SMALLEST.get(codec.name, SMALLEST_OF_OTHERS)
    pad_h, pad_w = max(least, height + height % 2) - height, max(least, width + width % 2) - width
    padded = np.pad(frames, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)), "edge") if pad_h or pad_w else frames
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec.name, rate=24)
        stream.width, stream.height, stream.pix_fmt = padded.shape[2], padded.shape[1], "yuv420p"
        stream.options = dict(codec.options)
        if codec.bit_rate is not None:
            stream.bit_rate = codec.bit_rate
        packets = []
        for frame in padded:
            packets += stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
        packets += stream.encode(None)
        for packet in packets:
            if codec.name == "libx265" and len(frames) <= 2:
                packet.dts = packet.pts  # x265 leaves the decoding times of so short clips to chance
            container.mux(packet)
    buffer.seek(0)
    with av.open(buffer) as container:
        decoded = [to_rgb(f, codec.smooth_chroma)[:height, :width] for f in container.decode(video=0)]
    if len(decoded) != len(frames):
        raise RuntimeError(f"{codec.name} returned {len(decoded)} of {len(frames)} frames")
    return np.stack(decoded)


def _through_still(frame: np.ndarray, codec: CodecChoice) -> np.ndarray:
    """``(H, W, 3)`` through Pillow: for five 64x64 frames PyAV's encoders take 2.6 ms (MJPEG) and 3.0 ms (WebP)."""
    buffer = io.BytesIO()
    fast = {"method": 0} if codec.name == "webp" else {}
    Image.fromarray(frame).save(buffer, codec.name, quality=int(dict(codec.options)["quality"]), **fast)
    with Image.open(buffer) as picture:
        return np.asarray(picture.convert("RGB"))


def to_rgb(frame: av.VideoFrame, smooth_chroma: bool = True) -> np.ndarray:
    """The frame as ``(H, W, 3)`` uint8.

    Straight from 4:2:0 to RGB, swscale repeats chroma in 2x2 blocks: sharp coloured edges become stairs (up to 90 of
    255 off in our photographs). Through 4:4:4 it interpolates.
    """
    if smooth_chroma and frame.format.name in WHOLE_CHROMA:
        frame = frame.reformat(format=WHOLE_CHROMA[frame.format.name])
    return frame.to_ndarray(format="rgb24")

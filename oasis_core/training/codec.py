"""Real video codecs, through PyAV."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import numpy as np

SMALLEST = 32
"""Encoders refuse very small frames: these are edge-padded to it and cropped again."""
SHARES = {"none": 0.15, "libx264": 0.65, "mpeg4": 0.1, "libvpx-vp9": 0.1}
"""How often a clip meets each encoder; the slow one (docstring of ``round_trip``) is rare. No H.265: x265 (in PyAV 18)
corrupted the heap on clips of 16 and 48 pixels (not seen from 64 up), and the process died some clips later."""
CRF = {"libx264": (20, 31, 37), "libvpx-vp9": (24, 36, 50)}
"""Lowest, most frequent and highest constant rate factor. x264's look as 17, 28 and 34 do with its macroblock tree."""
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
    crf = str(round(rng.triangular(*CRF[name])))
    options: tuple[tuple[str, str], ...]
    if name == "libx264":
        # The macroblock tree of small frames depends on stray memory: 16 of 90 encodings differed when repeated.
        options = (("crf", crf), ("preset", str(rng.choice(PRESETS))), ("threads", "1"), ("mbtree", "0"))
    else:  # a bit rate of 0 makes VP9's crf a constant quality
        options = (("crf", crf), ("b", "0"), ("deadline", "good"), ("cpu-used", "5"), ("threads", "1"))
    return CodecChoice(name, options, None, smooth)


def round_trip(frames: np.ndarray, codec: CodecChoice | None) -> np.ndarray:
    """``(T, H, W, 3)`` uint8 encoded and decoded again, same shape.

    7 frames of 64x64 / 96x96 on one core, ms: H.264 2.5 / 4.5, MPEG-4 1.4 / 2.8, VP9 8.2 / 17.4; as often as
    ``SHARES`` says 2.7 / 5.8. Repeated, also in threads, each gives the same bytes.
    """
    if codec is None:
        return frames
    height, width = frames.shape[1:3]
    pad_h, pad_w = max(SMALLEST, height + height % 2) - height, max(SMALLEST, width + width % 2) - width
    padded = np.pad(frames, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)), "edge") if pad_h or pad_w else frames
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec.name, rate=24)
        stream.width, stream.height, stream.pix_fmt = padded.shape[2], padded.shape[1], "yuv420p"
        stream.options = dict(codec.options)
        if codec.bit_rate is not None:
            stream.bit_rate = codec.bit_rate
        for frame in padded:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as container:
        decoded = [to_rgb(f, codec.smooth_chroma)[:height, :width] for f in container.decode(video=0)]
    if len(decoded) != len(frames):
        raise RuntimeError(f"{codec.name} returned {len(decoded)} of {len(frames)} frames")
    return np.stack(decoded)


def to_rgb(frame: av.VideoFrame, smooth_chroma: bool = True) -> np.ndarray:
    """The frame as ``(H, W, 3)`` uint8.

    Straight from 4:2:0 to RGB, swscale repeats chroma in 2x2 blocks: sharp coloured edges become stairs (up to 90 of
    255 off in our photographs). Through 4:4:4 it interpolates.
    """
    if smooth_chroma and frame.format.name in WHOLE_CHROMA:
        frame = frame.reformat(format=WHOLE_CHROMA[frame.format.name])
    return frame.to_ndarray(format="rgb24")

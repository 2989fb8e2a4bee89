"""Real video codecs, through PyAV."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import numpy as np

SMALLEST = 32
"""Encoders refuse very small frames: these are edge-padded to it and cropped again."""


@dataclass(frozen=True)
class CodecChoice:
    """One encoder with its quality."""

    name: str
    options: tuple[tuple[str, str], ...]
    bit_rate: int | None = None


def draw_codec(rng: np.random.Generator, pixels: int) -> CodecChoice | None:
    """A random encoder for clips of ``pixels`` pixels a frame; None: leave the clip alone (15 %)."""
    kind = rng.random()
    if kind < 0.15:
        return None
    if kind < 0.9:
        preset = str(rng.choice(["veryfast", "faster", "medium"]))
        crf = int(rng.integers(17, 35))
        return CodecChoice("libx264", (("crf", str(crf)), ("preset", preset), ("threads", "1")))
    rate = int(pixels * 24 * rng.uniform(0.15, 0.6))  # bits per second at 24 frames a second
    return CodecChoice("mpeg4", (("threads", "1"),), rate)


def round_trip(frames: np.ndarray, codec: CodecChoice | None) -> np.ndarray:
    """``(T, H, W, 3)`` uint8 encoded and decoded again, same shape."""
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
        decoded = [f.to_ndarray(format="rgb24")[:height, :width] for f in container.decode(video=0)]
    if len(decoded) != len(frames):
        raise RuntimeError(f"{codec.name} returned {len(decoded)} of {len(frames)} frames")
    return np.stack(decoded)

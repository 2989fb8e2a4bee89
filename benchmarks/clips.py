"""Clips to measure with."""

from __future__ import annotations

from fractions import Fraction
from itertools import chain, cycle, islice
from pathlib import Path

import av
import numpy as np

SAMPLE = Path(__file__).parents[1] / "assets" / "sample.mp4"


def sample_to_and_fro(path: Path, frames: int) -> None:
    """The bundled sample (320x180, real motion) forwards and backwards until there are ``frames`` of it; H.264."""
    with av.open(str(SAMPLE)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    _write(path, islice(cycle(chain(pictures, pictures[-2:0:-1])), frames), Fraction(25))


def moving_noise(path: Path, frames: int, width: int, height: int) -> None:
    """Noise that moves by a pixel a frame; H.264."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width + frames, 3), dtype=np.uint8)
    _write(path, (noise[:, i : i + width] for i in range(frames)), Fraction(25))


def _write(path: Path, pictures, rate: Fraction) -> None:  # type: ignore[no-untyped-def]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))

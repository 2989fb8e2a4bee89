"""What frames can be encoded with: encoders, containers, pixel formats, and what a user chooses among them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Codec:
    """An encoder, where it may go, and what it takes."""

    encoder: str
    containers: tuple[str, ...]
    formats: dict[int, tuple[str, ...]]
    """Pixel formats by bits of a value, ascending: for even sizes, then (where there is one) for odd ones."""
    crf: int | None
    """Default quality; None: the codec has no such scale."""
    presets: tuple[str, ...] = ()
    """What its encoder calls each of ``PRESETS``; none: it has no such choice."""
    options: tuple[tuple[str, str], ...] = ()
    frame_threads: bool = False
    """Whether its threads may work on frames of their own instead of slices of one."""


PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
"""How much effort an encoder makes, from the fastest to the smallest file, by x264's names."""
PRESET = "medium"
SVT = ("12", "11", "10", "9", "8", "6", "5", "4", "2")
YUV: dict[int, tuple[str, ...]] = {8: ("yuv420p", "yuv444p"), 10: ("yuv420p10le", "yuv444p10le")}
CODECS = {
    "h264": Codec("libx264", (".mp4", ".mov", ".mkv"), YUV, 16, PRESETS, frame_threads=True),
    "h265": Codec("libx265", (".mp4", ".mov", ".mkv"), YUV, 18, PRESETS, (("x265-params", "log-level=error"),)),
    "av1": Codec("libsvtav1", (".mp4", ".mkv", ".webm"), {8: ("yuv420p",), 10: ("yuv420p10le",)}, 24, SVT),
    "prores": Codec("prores_ks", (".mov", ".mkv"), {10: ("yuv422p10le", "yuv444p10le")}, None, options=(("profile", "3"),)),
    "ffv1": Codec("ffv1", (".mkv",), {8: ("bgr0",) * 2, 10: ("gbrp10le",) * 2, 16: ("gbrp16le",) * 2}, None,
                  options=(("level", "3"), ("g", "1"))),
    "png": Codec("png", (), {8: ("rgb24",) * 2, 16: ("rgb48be",) * 2}, None),
}  # fmt: skip
"""By the name that users give. ffv1 and png are lossless."""
SMALLEST = {"h265": 64, "av1": 64}
"""Smallest frame side that the encoder can be trusted with (x265 corrupts memory on frames under its blocks of 64)."""


@dataclass(frozen=True)
class WriterSettings:
    """What a user chooses for the file.

    Raises:
        ValueError: unknown codec, a quality outside 0 to 51 (63 for av1), or a depth or preset that the
            codec does not have.
    """

    codec: str = "h264"
    crf: int | None = None
    """Constant rate factor, lower is better: 0 to 51 (av1: 63); None: the codec's default."""
    depth: int | None = None
    """Bits of a colour value, 8, 10 or 16 (as the codec has them); None: 8 for sources of 8 bits, else at least 10."""
    preset: str | None = None
    """One of ``PRESETS``, for h264, h265 and av1; None: medium. Faster ones are a little worse or larger, and done sooner."""

    def __post_init__(self) -> None:
        if self.preset == PRESET:  # the same job, whether it was said or not
            object.__setattr__(self, "preset", None)
        if self.codec not in CODECS:
            raise ValueError(f"codec is {self.codec!r}; allowed: {', '.join(CODECS)}")
        most = 63 if self.codec == "av1" else 51
        if self.crf is not None and CODECS[self.codec].crf is None:
            raise ValueError(f"crf is {self.crf}, but {self.codec} has no such quality scale; leave it out")
        if self.crf is not None and not 0 <= self.crf <= most:
            raise ValueError(f"crf is {self.crf}; it must be from 0 (best) to {most} for {self.codec}")
        depths = CODECS[self.codec].formats
        if self.depth is not None and self.depth not in depths:
            raise ValueError(f"depth is {self.depth} bits; {self.codec} has {', '.join(map(str, depths))}")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; allowed: {', '.join(PRESETS)}")
        if self.preset is not None and not CODECS[self.codec].presets:
            raise ValueError(f"preset is {self.preset!r}, but {self.codec} has none; leave it out")

    @property
    def encoder_preset(self) -> str | None:
        """What the encoder calls it; None: it has no presets."""
        names = CODECS[self.codec].presets
        return names[PRESETS.index(self.preset or PRESET)] if names else None

    def depth_for(self, source: int) -> int:
        """Bits of a value in the output for a source of ``source`` bits: the fewest that hold it, or the most there are."""
        depths = CODECS[self.codec].formats
        return self.depth or next((depth for depth in depths if depth >= source), max(depths))


def pixel_format(codec: str, depth: int, width: int, height: int) -> str:
    """The format for that size: subsampled where sizes allow, otherwise one that holds odd sides (never a crop).

    Raises:
        ValueError: an odd side where the codec has no such format.
    """
    formats = CODECS[codec].formats[depth]
    odd = width % 2 or (height % 2 and "420" in formats[0])
    if not odd:
        return formats[0]
    if len(formats) < 2:
        raise ValueError(
            f"{codec} cannot hold the odd size {width}x{height}; use h264, h265, ffv1 or an even target size"
        )
    return formats[1]

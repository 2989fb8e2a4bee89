"""HDR10's static metadata: the display on which a film was graded, and how bright it gets. It goes from file to file as it is.

PyAV gives it as FFmpeg's structs (libavutil/mastering_display_metadata.h); encoders take it as text among their parameters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
from av.sidedata.sidedata import SideData

DISPLAY = struct.Struct("=20i2i")
"""Ten rationals (x, y of red, green, blue, white point; lowest, highest luminance), and which of them are set."""
LIGHT = struct.Struct("=2I")
CHROMA, LUMINANCE = 50000, 10000
"""Parts of a unit in which H.265 writes them (ITU-T H.265, D.3.28)."""
MOST = 65535
"""cd/m2 that light levels can say."""


@dataclass(frozen=True)
class Hdr10:
    """What a file says of its brightness."""

    display: tuple[Fraction, ...] | None = None
    """x, y of red, green, blue and white point; lowest and highest luminance in cd/m2."""
    light: tuple[int, int] | None = None
    """Brightest value, and brightest mean of a frame, in cd/m2."""

    def parameters(self, codec: str) -> dict[str, str]:
        """Encoder options by name, for ``h265`` and ``av1``; others cannot hold it: none."""
        if codec == "h265":
            return _joined("x265-params", self._texts("master-display", "max-cll", CHROMA, LUMINANCE))
        if codec == "av1":
            return _joined("svtav1-params", self._texts("mastering-display", "content-light", None, None))
        return {}

    def _texts(self, display: str, light: str, chroma: int | None, luminance: int | None) -> list[str]:
        texts = []
        if self.display is not None:
            numbers = [_number(v, chroma) for v in self.display[:8]]
            r, g, b, white = (f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
            low, high = (_number(v, luminance) for v in self.display[8:])
            texts.append(f"{display}=G{g}B{b}R{r}WP{white}L({high},{low})")
        if self.light is not None:
            texts.append(f"{light}={self.light[0]},{self.light[1]}")
        return texts


def hdr10_of(frame: av.VideoFrame) -> Hdr10 | None:
    """What a decoded frame carries; None: nothing."""
    display = light = None
    for data in cast(Iterable[SideData], frame.side_data):  # PyAV's own type says text
        if data.type.name == "MASTERING_DISPLAY_METADATA" and len(bytes(data)) >= DISPLAY.size:
            *numbers, primaries, luminance = DISPLAY.unpack(bytes(data)[: DISPLAY.size])
            pairs = zip(numbers[::2], numbers[1::2], strict=True)
            if primaries and luminance and all(below > 0 for below in numbers[1::2]):
                display = _sensible(tuple(Fraction(above, below) for above, below in pairs))
        elif data.type.name == "CONTENT_LIGHT_LEVEL" and len(bytes(data)) >= LIGHT.size:
            brightest, mean = LIGHT.unpack(bytes(data)[: LIGHT.size])
            light = (brightest, mean) if max(brightest, mean) <= MOST else None
    return None if display is None and light is None else Hdr10(display, light)


def _sensible(display: tuple[Fraction, ...]) -> tuple[Fraction, ...] | None:
    """None for numbers that no encoder takes."""
    low, high = display[8:]
    return display if all(0 <= v <= 1 for v in display[:8]) and 0 <= low < high <= MOST else None


def _number(value: Fraction, parts: int | None) -> str:
    return f"{float(value):.5f}" if parts is None else str(round(value * parts))


def _joined(name: str, texts: list[str]) -> dict[str, str]:
    return {name: ":".join(texts)} if texts else {}

"""Between RGB and YUV by the book: which matrix, which range, and the arithmetic (ITU-R BT.601, BT.709, BT.2020)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""(Kr, Kb) by matrix number (ITU-T H.273 MatrixCoefficients, as FFmpeg's AVColorSpace): 1 BT.709, 5 and 6 BT.601, 9 BT.2020."""
BT709, BT601, BT2020 = 1, 6, 9
"""As matrix and as primaries."""
UNSPECIFIED = 2
UNSTATED = (0, UNSPECIFIED, 3)
"""Matrix numbers that say nothing of YUV: RGB, unspecified, reserved."""
PQ, HLG = 16, 18
"""Transfer functions of HDR (ITU-R BT.2100), which come with BT.2020's primaries and matrix where nothing is said."""
BT2020_TRANSFER = 14
"""BT.2020 at 10 bits: the same curve as BT.709's."""
LIMITED_RANGE, FULL_RANGE = 1, 2
"""FFmpeg's AVCOL_RANGE_MPEG and AVCOL_RANGE_JPEG."""
HD_HEIGHT = 720
"""Frames of this height and more are BT.709 where nothing is said, smaller ones BT.601: what players assume."""

BAND = 16 * 1280
"""Pixels that are worked on at once: they stay in the cache. A frame of 1280x720 takes 3 ms so, 4.4 ms as a whole."""
WHOLE = 320 * 180
"""Pixels of a frame that is worked on as a whole, at most: as fast, in a third of the calls, after each of which a thread has to
get Python's lock back from the one that feeds a GPU."""


@dataclass(frozen=True)
class ColorTags:
    """How a video's numbers mean colours; FFmpeg's numbers (ITU-T H.273)."""

    matrix: int
    full_range: bool
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    @classmethod
    def of(cls, matrix: int, color_range: int, primaries: int, transfer: int, height: int) -> ColorTags:
        """Tags as found in a file; an unstated matrix is BT.2020's for its primaries and HDR, else what players assume.

        Raises:
            ValueError: a matrix that is stated and none of ``LUMA_WEIGHTS``.
        """
        if matrix not in LUMA_WEIGHTS and matrix not in UNSTATED:
            raise ValueError(
                f"its colour matrix is number {matrix} of ITU-T H.273; BT.601, BT.709, BT.2020 (not constant luminance), "
                "FCC and SMPTE 240M can be read: convert it first"
            )
        if transfer in (PQ, HLG) and primaries == UNSPECIFIED:
            primaries = BT2020
        usual = BT2020 if primaries == BT2020 else BT709 if height >= HD_HEIGHT else BT601
        return cls(matrix if matrix in LUMA_WEIGHTS else usual, color_range == FULL_RANGE, primaries, transfer)

    def for_output(self, height: int, *, yuv: bool) -> ColorTags:
        """What an upscaled video of that height says of itself; ``yuv``: these tags are of YUV, so range and matrix count.

        Stated primaries and transfer are kept; where primaries are not, they and the matrix are the usual ones for the
        height, except that BT.2020 stays. RGB becomes limited range: full range is crushed in many players.
        """
        usual = BT709 if height >= HD_HEIGHT else BT601
        wide = BT2020 in (self.primaries, self.matrix if yuv else UNSPECIFIED)
        stated = self.primaries != UNSPECIFIED
        matrix = self.matrix if yuv and stated else BT2020 if wide else usual
        primaries = self.primaries if stated else matrix
        transfer = self.transfer if self.transfer != UNSPECIFIED else BT2020_TRANSFER if wide else usual
        return ColorTags(matrix, yuv and self.full_range, primaries, transfer)

    def for_prores(self) -> ColorTags:
        """The same in the few names that ProRes' header knows: limited range; one number for each matrix and curve."""
        same = {BT601: BT709, BT2020_TRANSFER: BT709, 15: BT709}  # three more numbers for BT.709's curve
        matrix = BT601 if self.matrix == 5 else self.matrix
        return ColorTags(matrix, False, self.primaries, same.get(self.transfer, self.transfer))


def yuv_to_rgb(yuv: np.ndarray, tags: ColorTags, depth: int) -> np.ndarray:
    """Planes ``(3, H, W)`` of ``depth``-bit code values -> ``(H, W, 3)`` float32, nominally [0, 1], not clamped."""
    top, offset, luma, chroma = code_levels(tags.full_range, depth)
    kr, kb = LUMA_WEIGHTS[tags.matrix]
    rgb = np.empty((*yuv.shape[1:], 3), np.float32)
    for band in _bands(*yuv.shape[1:]):  # in place: fewer calls and less memory than a formula of whole arrays
        out = rgb[band]
        y = np.subtract(yuv[0, band], offset, dtype=np.float32)
        y /= luma
        blue, red = both = np.subtract(yuv[1:, band], top, dtype=np.float32)  # still Cb and Cr
        both /= chroma
        blue *= 2 * (1 - kb)
        red *= 2 * (1 - kr)
        both += y
        out[..., 0], out[..., 2] = red, blue
        red *= kr
        blue *= kb
        y -= red
        y -= blue
        np.divide(y, 1 - kr - kb, out=out[..., 1])
    return rgb


def rgb_to_yuv(rgb: np.ndarray, tags: ColorTags, depth: int) -> np.ndarray:
    """Inverse: ``(H, W, 3)`` in [0, 1] -> ``(3, H, W)`` uint8 (depth 8) or uint16, rounded."""
    codes = np.clip(np.rint(rgb_to_codes(rgb, tags, depth)), 0, 2**depth - 1)
    return codes.astype(np.uint8 if depth == 8 else np.uint16)


def rgb_to_codes(rgb: np.ndarray, tags: ColorTags, depth: int) -> np.ndarray:
    """The same, float and not rounded: what chroma is averaged from."""
    top, offset, luma, chroma = code_levels(tags.full_range, depth)
    kr, kb = LUMA_WEIGHTS[tags.matrix]
    codes = np.empty((3, *rgb.shape[:2]), np.float32)
    for band in _bands(*rgb.shape[:2]):
        out = codes[:, band]
        red, green, blue = np.ascontiguousarray(np.moveaxis(rgb[band], -1, 0))
        y = kr * red + (1 - kr - kb) * green + kb * blue
        out[0] = y * luma + offset
        out[1] = (blue - y) / (2 * (1 - kb)) * chroma + top
        out[2] = (red - y) / (2 * (1 - kr)) * chroma + top
    return codes


def code_levels(full_range: bool, depth: int) -> tuple[float, float, float, float]:
    """Code value of zero chroma, of black, and the spans of luma and chroma."""
    if full_range:
        return 2.0 ** (depth - 1), 0.0, 2.0**depth - 1, 2.0**depth - 1
    unit = 2.0 ** (depth - 8)
    return 128 * unit, 16 * unit, 219 * unit, 224 * unit


def _bands(height: int, width: int) -> Iterator[slice]:
    """Rows of a frame, some at a time."""
    rows = height if height * width <= WHOLE else max(1, BAND // width)
    return (slice(start, start + rows) for start in range(0, height, rows))

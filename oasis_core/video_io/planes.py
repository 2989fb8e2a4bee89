"""Code values in and out of PyAV's frames, and chroma between full and subsampled size.

swscale only unpacks here: it places 4:2:0 chroma in the middle between luma's columns, where H.264, H.265 and AV1 place it
on every other one, half a pixel to the left (ITU-T H.264, figure E-1, type 0). Four times enlarged that is two pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np

from .color_tags import FULL_RANGE, LIMITED_RANGE, ColorTags

FACTORS = {"444": (1, 1), "422": (2, 1), "420": (2, 2), "440": (1, 2), "411": (4, 1), "410": (4, 4)}
"""Columns and rows of luma to one of chroma, by FFmpeg's names."""


def is_yuv(fmt: av.VideoFormat) -> bool:
    """Whether values need a matrix: not RGB, palette, Bayer or grey (which FFmpeg holds in full range)."""
    return not (fmt.is_rgb or fmt.has_palette or fmt.is_bayer) and len(fmt.components) >= 3


def depth_of(fmt: av.VideoFormat) -> int:
    """Bits of one colour value."""
    return 8 if fmt.has_palette else max((c.bits for c in fmt.components), default=8)


@dataclass(frozen=True)
class Layout:
    """How a frame of one format and size holds its values."""

    yuv: bool
    depth: int
    factors: tuple[int, int]
    """Columns and rows of luma to one of chroma; of YUV."""
    planar: bool
    """Three planes in their usual order, the lower byte first."""


@lru_cache
def layout_of(name: str, width: int, height: int) -> Layout:
    """Of the format ``name``: the same for every frame of a video, so asked of FFmpeg once."""
    fmt = av.VideoFormat(name, width, height)
    planar = fmt.is_planar and [c.plane for c in fmt.components[:3]] == [0, 1, 2] and not fmt.is_big_endian
    yuv = is_yuv(fmt)
    return Layout(yuv, depth_of(fmt), chroma_factors(fmt, width, height) if yuv else (1, 1), planar)


def read_planes(frame: av.VideoFrame, *, centred: bool) -> np.ndarray:
    """A YUV frame's code values at full size, ``(3, H, W)`` float32; between samples of chroma, linear.

    ``centred``: chroma columns lie between luma's (JPEG) and not on every other one.
    """
    height, width = frame.height, frame.width
    layout = layout_of(frame.format.name, width, height)
    depth, factors = layout.depth, layout.factors
    if not layout.planar:
        names = {value: name for name, value in FACTORS.items()}
        frame = frame.reformat(format=f"yuv{names[factors]}p" + (f"{depth}le" if depth > 8 else ""))
    y, u, v = (_codes(plane, depth) for plane in frame.planes[:3])
    chroma = np.empty((2, *u.shape), np.float32)  # both at once: half the calls
    chroma[0], chroma[1] = u, v
    codes = np.empty((3, height, width), np.float32)
    codes[0], codes[1:] = y, _enlarge(chroma, *factors, centred)[:, :height, :width]
    return codes


def make_frame(codes: np.ndarray, pix_fmt: str, *, centred: bool) -> av.VideoFrame:
    """Code values ``(3, H, W)`` float, of the format's depth, to a planar YUV frame; rounded."""
    height, width = codes.shape[1:]
    frame = av.VideoFrame(width, height, pix_fmt)
    depth = depth_of(frame.format)
    factors = chroma_factors(frame.format, width, height)
    for plane, values in zip(
        frame.planes, [codes[0], *(_shrink(c, *factors, centred) for c in codes[1:])], strict=True
    ):
        _fill(plane, values, depth)
    return frame


def read_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Any frame that is not YUV, ``(H, W, 3)`` float32 in [0, 1]: code values over the largest one."""
    fmt, depth = frame.format, depth_of(frame.format)
    if fmt.name.startswith("gbr") and not fmt.is_big_endian and not _is_float(fmt):
        rgb = np.empty((frame.height, frame.width, 3), np.float32)
        for plane, channel in zip(frame.planes, (1, 2, 0), strict=False):  # a fourth one is alpha
            rgb[..., channel] = _codes(plane, depth)
        rgb /= 2**depth - 1
        return rgb
    picture = frame.to_ndarray(format="rgb48le" if depth > 8 else "rgb24")
    return picture.astype(np.float32) / (65535 if depth > 8 else 255)


def make_rgb_frame(rgb: np.ndarray, pix_fmt: str) -> av.VideoFrame:
    """``(H, W, 3)`` in [0, 1] to an RGB frame, rounded: planar (gbrp...) of any depth, or any format of 8 bits."""
    if not pix_fmt.startswith("gbrp"):
        codes = np.ascontiguousarray(np.rint(rgb * 255).astype(np.uint8))
        return av.VideoFrame.from_ndarray(codes, format="rgb24").reformat(format=pix_fmt)
    frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], pix_fmt)
    depth = depth_of(frame.format)
    for plane, channel in zip(frame.planes, (1, 2, 0), strict=True):
        _fill(plane, rgb[..., channel] * (2**depth - 1), depth)
    return frame


def set_tags(frame: av.VideoFrame, tags: ColorTags) -> None:
    """Some encoders (ProRes, PNG) tell what the frame says, others what their context says."""
    yuv = layout_of(frame.format.name, frame.width, frame.height).yuv
    frame.color_range = FULL_RANGE if tags.full_range or not yuv else LIMITED_RANGE
    if yuv:
        frame.colorspace = tags.matrix
    if hasattr(frame, "color_primaries"):  # PyAV 17 and later
        frame.color_primaries, frame.color_trc = tags.primaries, tags.transfer


def make_png(rgb: np.ndarray, depth: int, tags: ColorTags) -> bytes:
    """``(H, W, 3)`` in [0, 1] as a PNG image of 8 or 16 bits a value; the latter tells primaries and transfer."""
    if depth == 8:
        frame = make_rgb_frame(rgb, "rgb24")
    else:
        codes = np.ascontiguousarray(np.rint(rgb * 65535).astype(np.uint16))
        frame = av.VideoFrame.from_ndarray(codes, format="rgb48le").reformat(format="rgb48be")
        set_tags(frame, tags)
    context = av.CodecContext.create("png", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = frame.width, frame.height, frame.format.name
    context.time_base = Fraction(1)
    if depth > 8:
        context.color_primaries, context.color_trc = tags.primaries, tags.transfer
    return b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])


def _is_float(fmt: av.VideoFormat) -> bool:
    return "f32" in fmt.name or "f16" in fmt.name


def chroma_factors(fmt: av.VideoFormat, width: int, height: int) -> tuple[int, int]:
    """Columns and rows of luma to one of chroma, for a format of that size."""
    c = fmt.components[1]
    wide, high = fmt.chroma_width(1024), fmt.chroma_height(1024)
    return (1024 // wide, 1024 // high) if (width, height) != (c.width, c.height) else (1, 1)


def _fill(plane: av.video.plane.VideoPlane, values: np.ndarray, depth: int) -> None:
    kind = np.dtype("u1") if depth <= 8 else np.dtype("<u2")
    raw = np.clip(np.rint(values), 0, 2**depth - 1).astype(kind).view(np.uint8)
    put_rows(plane, raw)


def put_rows(plane: av.video.plane.VideoPlane, raw: np.ndarray) -> None:
    """A plane's bytes ``(rows, bytes of a row)`` into a frame, whose rows may be longer."""
    there, length = np.frombuffer(memoryview(plane), np.uint8), plane.line_size
    if raw.shape[1] == length:  # one copy
        there[: raw.size] = raw.reshape(-1)
        return
    rows = there.reshape(-1, length)
    rows[: len(raw), : raw.shape[1]] = raw
    rows[: len(raw), raw.shape[1] :] = 0


def _codes(plane: av.video.plane.VideoPlane, depth: int) -> np.ndarray:
    """A plane's code values ``(rows, columns)`` where they lie: uint8, or uint16 for more than 8 bits."""
    kind = np.dtype("u1") if depth <= 8 else np.dtype("<u2")
    rows = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
    return rows[: plane.height, : plane.width]


def _enlarge(c: np.ndarray, fx: int, fy: int, centred: bool) -> np.ndarray:
    """Planes ``(n, h, w)`` to ``(n, fy h, fx w)``."""
    if fx == 2 and not centred:
        wide = np.empty((*c.shape[:2], 2 * c.shape[2]), c.dtype)
        wide[..., ::2], wide[..., -1] = c, c[..., -1]
        half = c / 2
        np.add(half[..., :-1], half[..., 1:], out=wide[..., 1:-1:2])
        c, fx = wide, 1
    return _between(_between(c, fx, 2), fy, 1)


def _between(c: np.ndarray, factor: int, axis: int) -> np.ndarray:
    """Linear enlargement along an axis, samples in the middle of their group."""
    if factor == 1:
        return c
    if factor == 2:
        return _twice(c, axis)
    place = np.clip((np.arange(c.shape[axis] * factor) + 0.5) / factor - 0.5, 0, c.shape[axis] - 1)
    low = place.astype(np.int64)
    share = (place - low).astype(np.float32)
    share = share[:, None] if axis < c.ndim - 1 else share
    high = np.minimum(low + 1, c.shape[axis] - 1)
    return np.take(c, low, axis) * (1 - share) + np.take(c, high, axis) * share


def _twice(c: np.ndarray, axis: int) -> np.ndarray:
    """The same for a factor of 2, bit for bit in a third of the time: 4:2:0 is what most frames are."""
    shape = list(c.shape)
    shape[axis] *= 2
    made = np.empty(shape, c.dtype)
    c, out = c.swapaxes(axis, 0), made.swapaxes(axis, 0)
    near, far = c * np.float32(0.75), c * np.float32(0.25)
    out[0], out[-1] = c[0], c[-1]
    np.add(far[:-1], near[1:], out=out[2::2])
    np.add(near[:-1], far[1:], out=out[1:-1:2])
    return made


def _shrink(c: np.ndarray, fx: int, fy: int, centred: bool) -> np.ndarray:
    """Mirror of ``_enlarge``: a [1 2 1] tent around luma's columns or the mean of two, rows the mean of two."""
    if fx == 2 and not centred:
        padded = np.pad(c, ((0, 0), (1, 1)), mode="edge")
        c, fx = (padded[:, :-2:2] + 2 * padded[:, 1:-1:2] + padded[:, 2::2]) / 4, 1
    height, width = c.shape
    return c.reshape(height // fy, fy, width // fx, fx).mean((1, 3)) if fx * fy > 1 else c

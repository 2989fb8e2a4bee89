"""Finished pictures into an encoder's planes on the device that made them: only those bytes go to the host.

In fp32 a frame of 1280x720 is 11 MB there and 80 MB of arrays on its way through NumPy; as 4:2:0 of 8 bits it is 1.4 MB.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import torch
from torch import Tensor

from .color_tags import LUMA_WEIGHTS, code_levels
from .packing import Packing
from .planes import chroma_factors, put_rows, set_tags

PIXELS = 2**22
"""Pixels of the frames that are packed together (two of 1920x1080, one of 3840x2160), about 30 bytes each while it lasts: less
than decoding or correcting the same frames takes (``memory.py``), whose memory is free again."""


def packs_on(device: str, packing: Packing) -> bool:
    """Whether pictures that are made on that kind of device are packed there: on CUDA (other GPUs share the host's memory),
    and not as PNG images, which are compressed on the host in any case."""
    return device == "cuda" and not packing.images


class DevicePacking:
    """``Packing`` in two steps, with its values to fp32's rounding: ``pack`` where pictures are, ``frame`` on the host."""

    def __init__(self, packing: Packing) -> None:
        """``packing``: not of PNG images."""
        self._packing = packing
        height, width = packing.size
        self._format = av.VideoFormat(packing.pixel_format, width, height)
        self._planar = not packing.rgb or packing.pixel_format.startswith("gbrp")
        value = 1 if packing.depth <= 8 else 2
        parts = self._format.components[:3]
        self._shapes = [(c.height, c.width * value) for c in parts] if self._planar else [(height, 3 * width)]
        """Rows of each plane, and bytes in one."""

    def pack(self, frames: Tensor) -> Tensor:
        """``(n, H, W, 3)`` in [0, 1], values outside are clipped -> ``(n, bytes)`` uint8 on the same device: a frame's planes
        row by row, then a byte that is 0 where it holds values that are no numbers.

        Raises ValueError for another size.
        """
        height, width = self._packing.size
        if tuple(frames.shape[1:]) != (height, width, 3):
            raise ValueError(f"frames are {tuple(frames.shape)}; expected (n, {height}, {width}, 3)")
        total = sum(rows * columns for rows, columns in self._shapes)
        packed = torch.empty(len(frames), total + 1, dtype=torch.uint8, device=frames.device)
        at_once = max(1, PIXELS // (height * width))
        for out, some in zip(packed.split(at_once), frames.split(at_once), strict=True):
            rgb = some.float()
            out[:, -1] = rgb.sum((1, 2, 3)).isfinite()  # NaN and infinity go through a sum
            at = 0
            for values in self._planes(rgb.clamp(0, 1)):
                raw = self._as_bytes(values)
                out[:, at : at + raw.shape[1]] = raw
                at += raw.shape[1]
        return packed

    def frame(self, row: Tensor, number: int) -> av.VideoFrame:
        """The encoder's frame of one of ``pack``'s rows, on the CPU. ``number`` is for the message.

        Raises ValueError where the picture held values that are no numbers.
        """
        raw = row.numpy()
        if not raw[-1]:
            raise ValueError(f"frame {number} holds NaN or infinite values")
        height, width = self._packing.size
        if not self._planar:
            codes = raw[:-1].reshape(height, width, 3)
            return av.VideoFrame.from_ndarray(codes, format="rgb24").reformat(format=self._packing.pixel_format)
        frame, at = av.VideoFrame(width, height, self._packing.pixel_format), 0
        for plane, (rows, columns) in zip(frame.planes, self._shapes, strict=True):
            put_rows(plane, raw[at : at + rows * columns].reshape(rows, columns))
            at += rows * columns
        if not self._packing.rgb:
            set_tags(frame, self._packing.tags)
        return frame

    def _planes(self, rgb: Tensor) -> Iterator[Tensor]:
        """Of pictures ``(n, H, W, 3)`` in [0, 1] the code values in the order of the format's planes, not rounded; one after the
        other, so that few are there at a time."""
        depth, tags = self._packing.depth, self._packing.tags
        if not self._planar:
            yield rgb * 255
            return
        red, green, blue = rgb.unbind(-1)
        if self._packing.rgb:
            yield from (channel * (2**depth - 1) for channel in (green, blue, red))
            return
        top, offset, luma, chroma = code_levels(tags.full_range, depth)
        kr, kb = LUMA_WEIGHTS[tags.matrix]
        y = kr * red + (1 - kr - kb) * green + kb * blue
        yield y * luma + offset
        height, width = self._packing.size
        factors = chroma_factors(self._format, width, height)
        for channel, weight in ((blue, kb), (red, kr)):
            yield _shrink((channel - y) / (2 * (1 - weight)) * chroma + top, *factors)

    def _as_bytes(self, values: Tensor) -> Tensor:
        """Rounded half to even, ``(n, bytes)`` uint8; two bytes, the lower one first, for more than 8 bits. Overwrites them."""
        codes = values.round_().clamp_(0, 2**self._packing.depth - 1)
        if self._packing.depth <= 8:
            return codes.to(torch.uint8).flatten(1)
        return (
            codes.to(torch.int32).to(torch.int16).flatten(1).view(torch.uint8)
        )  # 16 bits: the sign is the highest one


def _shrink(c: Tensor, fx: int, fy: int) -> Tensor:
    """``planes._shrink`` of planes ``(n, H, W)``, chroma sited left."""
    if fx not in (1, 2) or fy not in (1, 2):
        raise ValueError(f"chroma is one sample to {fx}x{fy} pixels; 1x1, 2x1, 1x2 and 2x2 can be packed")
    if fx == 2:
        left = torch.cat([c[..., :1], c[..., 1:-1:2]], -1)
        c = (left + 2 * c[..., ::2] + c[..., 1::2]) / 4
    return (c[:, ::2] + c[:, 1::2]) / 2 if fy == 2 else c

"""Finished pictures into what an encoder takes. Any number of threads may do so at once: NumPy lets go of Python's lock."""

from __future__ import annotations

import av
import numpy as np
from torch import Tensor

from .color_tags import FULL_RANGE, LIMITED_RANGE, rgb_to_codes
from .encoders import WriterSettings, pixel_format
from .info import VideoInfo
from .planes import is_yuv, make_frame, make_png, make_rgb_frame, set_tags

RGB_MATRIX = 0
"""FFmpeg's AVCOL_SPC_RGB: no matrix."""
Packed = av.VideoFrame | bytes
"""A frame in the encoder's pixel format, or a PNG image."""


class Packing:
    """From RGB to the pixel format of a file's encoder."""

    def __init__(self, width: int, height: int, source: VideoInfo, settings: WriterSettings) -> None:
        """``width``, ``height``: of the frames to come; ``source``: the input's facts. Raises ValueError for a size that the
        codec cannot hold."""
        self.size = height, width
        self.images = settings.codec == "png"
        self.depth = settings.depth_for(source.bit_depth)
        self.pixel_format = pixel_format(settings.codec, self.depth, width, height)
        self.rgb = av.VideoFormat(self.pixel_format).is_rgb
        tags = source.color.for_output(height, yuv=is_yuv(av.VideoFormat(source.pixel_format)))
        self.tags = tags.for_prores() if settings.codec == "prores" else tags

    @property
    def matrix(self) -> int:
        return RGB_MATRIX if self.rgb else self.tags.matrix

    @property
    def color_range(self) -> int:
        return FULL_RANGE if self.rgb or self.tags.full_range else LIMITED_RANGE

    def __call__(self, picture: Tensor, number: int) -> Packed:
        """``picture``: ``(H, W, 3)`` in [0, 1] on the CPU, values outside are clipped; ``number`` is for the message.

        Raises ValueError for another size, or values that are no numbers.
        """
        if tuple(picture.shape) != (*self.size, 3):
            raise ValueError(f"frame {number} is {tuple(picture.shape)}; expected ({self.size[0]}, {self.size[1]}, 3)")
        rgb = picture.float().numpy()
        if not np.isfinite(rgb.sum()):  # one pass, nothing written: NaN and infinity go through a sum
            raise ValueError(f"frame {number} holds NaN or infinite values")
        rgb = rgb.clip(0, 1)
        if self.images:
            return make_png(rgb, self.depth, self.tags)
        if self.rgb:
            return make_rgb_frame(rgb, self.pixel_format)
        frame = make_frame(rgb_to_codes(rgb, self.tags, self.depth), self.pixel_format, centred=False)
        set_tags(frame, self.tags)
        return frame

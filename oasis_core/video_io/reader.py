"""Frames out of a video file, a folder of images or a numbered image pattern; one at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import torch
from torch import Tensor

from .color_tags import ColorTags, yuv_to_rgb
from .info import VideoInfo, describe, first_frame, open_video

log = logging.getLogger(__name__)

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of the files that make an image sequence."""


@dataclass(frozen=True)
class Frame:
    """One picture, upright."""

    rgb: Tensor
    """``(H, W, 3)`` float32, nominally [0, 1] (a YUV video can lie a little outside)."""
    pts: int
    """Time stamp in units of the info's ``time_base``."""


class VideoReader:
    """Iterates a video's frames in display order, in constant memory.

    A folder (or a pattern such as ``frame_%05d.png``) is read as an image sequence at ``fps``.

    Attributes:
        info: what the file says of itself.
        problem: after iterating, one line where the end of the file could not be decoded; else None.

    Raises:
        FileNotFoundError: no such input. ValueError: not a video, no frames, or ``fps`` where it has no place.
    """

    def __init__(self, path: Path, fps: Fraction | None = None) -> None:
        self.path = path
        self.problem: str | None = None
        self.images = image_sequence(path)
        if fps is not None and self.images is None:
            raise ValueError(f"a frame rate was given ({fps}), but {path} is a video with its own; leave it out")
        if self.images is not None:
            with open_video(self.images[0]) as container:
                frame = first_frame(self.images[0], container)
                info = describe(container, container.streams.video[0], frame)
            rate = fps or Fraction(24)
            self.info = VideoInfo(
                info.width, info.height, len(self.images), rate, 1 / rate, info.rotation, info.sample_aspect,
                info.pixel_format, info.bit_depth, info.color, (),
            )  # fmt: skip
            return
        with open_video(path) as container:
            frame = first_frame(path, container)
            self.info = describe(container, container.streams.video[0], frame)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def __iter__(self) -> Iterator[Frame]:
        return self._from_images(self.images) if self.images is not None else self._from_video()

    def _from_images(self, files: list[Path]) -> Iterator[Frame]:
        for number, file in enumerate(files):
            with open_video(file) as container:
                yield Frame(self._picture(first_frame(file, container)), number)

    def _from_video(self) -> Iterator[Frame]:
        last: int | None = None
        step = max(1, round(1 / (self.info.rate * self.info.time_base)))
        with open_video(self.path) as container:
            frames = container.decode(video=0)
            while True:
                try:
                    frame = next(frames)
                except StopIteration:
                    break
                except av.FFmpegError as e:
                    self.problem = f"{self.path}: decoding stopped early ({e}); the frames before that were used"
                    break
                pts = frame.pts if frame.pts is not None else (0 if last is None else last + step)
                if last is not None and pts <= last:  # broken time stamps: keep the order
                    pts = last + step
                last = pts
                yield Frame(self._picture(frame), pts)
        self._notice_missing_end(last)

    def _notice_missing_end(self, last: int | None) -> None:
        """A file that ends long before its header says was cut off, even where the decoder did not complain."""
        if self.problem or last is None or not self.info.frames:
            return
        with open_video(self.path) as container:
            stream = container.streams.video[0]
            begin = stream.start_time or 0
        seen = (last - begin) * self.info.time_base * self.info.rate + 1
        if seen < self.info.frames - max(2, self.info.frames // 50):
            self.problem = (
                f"{self.path}: the file is cut off: about {round(seen)} of {self.info.frames} frames could be decoded; "
                "these were used"
            )

    def _picture(self, frame: av.VideoFrame) -> Tensor:
        rgb = torch.from_numpy(to_rgb(frame, self.info.color))
        return torch.rot90(rgb, self.info.rotation // 90, (0, 1)).contiguous() if self.info.rotation else rgb


def to_rgb(frame: av.VideoFrame, tags: ColorTags) -> np.ndarray:
    """``(H, W, 3)`` float32: chroma interpolated to full size, then the matrix and range that the tags say."""
    name = frame.format.name
    deep = max((c.bits for c in frame.format.components), default=8) > 8
    if not name.startswith("yuv"):
        picture = frame.to_ndarray(format="rgb48le" if deep else "rgb24")
        return picture.astype(np.float32) / (65535 if deep else 255)
    if deep:
        planes = _planes(frame, "yuv444p16le", tags)  # swscale scales code values up by a shift
        return yuv_to_rgb(planes, tags, 16)
    return yuv_to_rgb(_planes(frame, "yuv444p", tags), tags, 8)


def _planes(frame: av.VideoFrame, format: str, tags: ColorTags) -> np.ndarray:
    """The frame's code values without chroma subsampling, ``(3, H, W)``; neither matrix nor range is changed."""
    side = 2 if tags.full_range else 1
    whole = frame if frame.format.name == format else frame.reformat(
        format=format, src_colorspace=tags.matrix, dst_colorspace=tags.matrix, src_color_range=side, dst_color_range=side
    )  # fmt: skip
    array = whole.to_ndarray()
    return np.moveaxis(array, -1, 0) if array.shape[-1] == 3 and array.shape[0] != 3 else array


def image_sequence(path: Path) -> list[Path] | None:
    """The files of a folder or of a numbered pattern, in order; None where ``path`` names one file.

    Raises:
        ValueError: no image in the folder or for the pattern.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES)
    elif "%" in path.name:
        prefix, _, rest = path.name.partition("%")
        suffix = rest.partition("d")[2]
        files = sorted(p for p in path.parent.glob("*" + suffix) if _numbered(p.name, prefix, suffix))
    else:
        return None
    if not files:
        raise ValueError(f"{path} holds no images ({', '.join(IMAGES)}); give a folder or pattern with some")
    return files


def _numbered(name: str, prefix: str, suffix: str) -> bool:
    return name.startswith(prefix) and name.endswith(suffix) and name[len(prefix) : len(name) - len(suffix)].isdigit()

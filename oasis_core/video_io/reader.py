"""Frames out of a video file, a folder of images or a numbered image pattern; one at a time."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import torch
from torch import Tensor

from .color_tags import ColorTags, yuv_to_rgb
from .decoding import Decoding, missing_end
from .info import VideoInfo, describe, first_frame, open_video, video_stream
from .orientation import upright
from .planes import depth_of, is_yuv, read_planes

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
                info = describe(container, video_stream(container), frame)
            rate = fps or Fraction(24)
            self.info = VideoInfo(
                info.width, info.height, len(self.images), rate, 1 / rate, info.rotation, info.sample_aspect,
                info.pixel_format, info.bit_depth, info.color, (), info.mirrored,
            )  # fmt: skip
            return
        with open_video(path) as container:
            frame = first_frame(path, container)
            self.info = describe(container, video_stream(container), frame)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def frames(self, first: int = 0) -> Iterator[Frame]:
        """The frames from number ``first`` on; the ones before are decoded, since time stamps hang on them, and no more."""
        for picture, pts in islice(self.pictures(), first, None):
            rgb = torch.from_numpy(to_rgb(picture, self.info.color))
            yield Frame(upright(rgb, self.info.rotation, self.info.mirrored), pts)

    def pictures(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """The same as they are stored (any pixel format, not turned), with their time stamps."""
        self.problem = None
        pictures = self._from_images(self.images) if self.images is not None else self._from_video()
        size: tuple[int, int] | None = None
        for number, (picture, pts) in enumerate(pictures, 1):
            size = size or (picture.width, picture.height)
            if (picture.width, picture.height) != size:
                self.problem = (
                    f"{self.path}: frame {number} is {picture.width}x{picture.height} after {size[0]}x{size[1]}; "
                    f"the {number - 1} frames before it were used"
                )
                return
            yield picture, pts

    def _from_images(self, files: list[Path]) -> Iterator[tuple[av.VideoFrame, int]]:
        for number, file in enumerate(files):
            try:
                with open_video(file) as container:
                    picture = first_frame(file, container)
            except (OSError, ValueError) as e:
                if number == 0:
                    raise
                self.problem = f"{e}; the {number} images before it were used"
                return
            yield picture, number

    def _from_video(self) -> Iterator[tuple[av.VideoFrame, int]]:
        last: int | None = None
        step = max(1, round(1 / (self.info.rate * self.info.time_base)))
        with open_video(self.path) as container:
            stream = video_stream(container)
            decoding = Decoding(container, stream)
            for frame in decoding:
                pts = frame.pts if frame.pts is not None else (0 if last is None else last + step)
                if (
                    last is not None and pts <= last
                ):  # broken time stamps: keep the order, catch up where they are right
                    pts = last + 1
                last = pts
                yield frame, pts
            ended = None if last is None else (last + step) * self.info.time_base
            lost = decoding.lost() or missing_end(stream, self.info, ended)
        if lost:
            self.problem = f"{self.path}: {lost}; what could be decoded was used"


def to_rgb(frame: av.VideoFrame, tags: ColorTags) -> np.ndarray:
    """``(H, W, 3)`` float32: chroma interpolated to full size, then the matrix and range that the tags say."""
    depth = depth_of(frame.format)
    if is_yuv(frame.format):
        return yuv_to_rgb(read_planes(frame, centred=frame.format.name.startswith("yuvj")), tags, depth)
    picture = frame.to_ndarray(format="rgb48le" if depth > 8 else "rgb24")
    return picture.astype(np.float32) / (65535 if depth > 8 else 255)


def image_sequence(path: Path) -> list[Path] | None:
    """The files of a folder or of a numbered pattern, in order; None where ``path`` names one file.

    Raises:
        ValueError: no image in the folder or for the pattern.
    """
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.suffix.lower() in IMAGES), key=_by_number)
    elif "%" in path.name:
        prefix, _, rest = path.name.partition("%")
        suffix = rest.partition("d")[2]
        files = sorted((p for p in path.parent.glob("*" + suffix) if _numbered(p.name, prefix, suffix)), key=_by_number)
    else:
        return None
    if not files:
        raise ValueError(f"{path} holds no images ({', '.join(IMAGES)}); give a folder or pattern with some")
    return files


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Order in which frame_2 comes before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _numbered(name: str, prefix: str, suffix: str) -> bool:
    return name.startswith(prefix) and name.endswith(suffix) and name[len(prefix) : len(name) - len(suffix)].isdigit()

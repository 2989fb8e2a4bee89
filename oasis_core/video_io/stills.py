"""Single still images, in and out: PNG of 8 or 16 bits, JPEG, WebP; transparency and colour profile are kept.

Pillow knows files of 8 bits, their orientation and profiles; of 16 bits it has no colour, those are FFmpeg's.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..outputs import check_folder
from .images import IMAGES
from .info import LONGEST_SIDE, first_frames, open_video
from .orientation import upright

WRITTEN = {".png": (8, 16), ".jpg": (8,), ".jpeg": (8,), ".webp": (8,)}
"""Bits of a value that files of each ending can hold."""
OPAQUE = (".jpg", ".jpeg")
"""Endings of files that hold no transparency."""
LONGEST = {".webp": 16383}
"""Pixels of a side, where the format ends before ours."""
QUALITY = 95
"""Of JPEG and WebP, of 100: what is lost is not seen at 100 % size."""
ORIENTATION, TIFF_BITS = 0x0112, 258
"""Tags of EXIF and TIFF."""
TURNS = {
    1: (0, False), 2: (0, True), 3: (180, False), 4: (180, True),
    5: (270, True), 6: (270, False), 7: (90, True), 8: (90, False),
}  # fmt: skip
"""Of EXIF's orientations, as ``orientation.upright`` takes them."""
PNG_BITS = 24
"""Place in a PNG file of the byte that tells bits of a value."""
DAMAGE = (
    OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for damaged files."""
IHDR_END = 33
"""Bytes of a PNG's signature and header."""


@dataclass(frozen=True)
class Still:
    """One picture, upright."""

    pixels: Tensor
    """``(1, H, W, 3)`` float32 in [0, 1], or 4 with transparency (straight, not premultiplied)."""
    depth: int
    """Bits of a value in the file: 8 or 16."""
    profile: bytes | None = None
    """ICC colour profile; values are in it, before and after."""

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[-1] == 4


def is_still(path: Path) -> bool:
    """Whether a name says that it is one image (no folder, no numbered pattern)."""
    return path.suffix.lower() in IMAGES and "%" not in path.name and not path.is_dir()


def read_still(path: Path) -> Still:
    """Raises FileNotFoundError, or ValueError for what is no image, an animation, or too large; one line each."""
    if not path.exists():
        raise FileNotFoundError(f"input not found: {path}")
    try:
        with warnings.catch_warnings(), _open(path) as image:
            _check(path, image)
            profile, bits = image.info.get("icc_profile"), _bits(path, image)
            if bits > 8:
                return Still(_deep(path, image.getexif().get(ORIENTATION, 1)), 16, profile)
            alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
            if image.mode == "CMYK":
                profile = None  # of inks; the values are RGB from here on
            turned = ImageOps.exif_transpose(image).convert("RGBA" if alpha else "RGB")
    except _Refused:
        raise
    except DAMAGE as e:
        why = " ".join(str(e).split())
        raise ValueError(f"{path} is not an image that can be read ({why}); give a PNG, JPEG or WebP file") from None
    return Still(torch.from_numpy(np.asarray(turned).astype(np.float32) / 255)[None], 8, profile)


def _open(path: Path) -> Image.Image:
    warnings.simplefilter("ignore")  # large pictures, odd metadata: what cannot be used is told otherwise
    return Image.open(path)


class _Refused(ValueError):
    """Ours, told as it is."""


def _check(path: Path, image: Image.Image) -> None:
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # MPO: a photo with small companions
        raise _Refused(f"{path} holds {image.n_frames} pictures; give a still image, or a video")  # type: ignore[attr-defined]
    if max(image.size) > LONGEST_SIDE:
        raise _Refused(f"{path} is {image.width}x{image.height}; a side can have {LONGEST_SIDE} pixels at most")


def _bits(path: Path, image: Image.Image) -> int:
    """Of a value in the file, which Pillow's modes do not tell. Raises ValueError above 16."""
    bits = 8
    if image.format == "PNG":
        with path.open("rb") as file:
            bits = file.read(PNG_BITS + 1)[PNG_BITS]
    elif image.format == "TIFF":
        bits = max(image.tag_v2.get(TIFF_BITS, (8,)))  # type: ignore[attr-defined]
    if bits > 16:
        raise _Refused(f"{path} has {bits} bits a value; images of 8 and 16 can be read")
    return bits


def _deep(path: Path, turned: int) -> Tensor:
    """A file of 16 bits a value; ``turned``: EXIF's orientation."""
    with open_video(path) as container:
        frame = first_frames(path, container, 1)[0]
    alpha = any(c.is_alpha for c in frame.format.components)
    codes = frame.to_ndarray(format="rgba64le" if alpha else "rgb48le")
    pixels = torch.from_numpy(codes.astype(np.float32) / 65535)
    return upright(pixels, *TURNS.get(turned, TURNS[1]))[None]


def check_still_target(path: Path, still: Still, width: int, height: int, depth: int | None) -> int:
    """Bits of a value that will be written; ``depth``: what is asked for, None: as the input, where the file can.

    Refuses before any work what cannot be written. Raises ValueError or OSError, one line.
    """
    ending = path.suffix.lower()
    depths = WRITTEN.get(ending)
    if depths is None:
        raise ValueError(f"{path.name} cannot be written; a still image ends in {', '.join(WRITTEN)}")
    if depth is not None and depth not in depths:
        raise ValueError(f"depth is {depth} bits; {ending} has {' or '.join(map(str, depths))}")
    if still.has_alpha and ending in OPAQUE:
        raise ValueError(f"the input has transparency, which {ending} cannot hold; give a .png or .webp")
    if max(width, height) > LONGEST.get(ending, max(width, height)):
        raise ValueError(f"{ending} cannot hold {width}x{height}; a side can have {LONGEST[ending]} pixels: use .png")
    if path.is_dir():
        raise OSError(f"cannot write {path}: it is a folder")
    check_folder(path)
    return depth or min(still.depth, max(depths))


def write_still(path: Path, pixels: Tensor, depth: int, profile: bytes | None) -> None:
    """Write ``pixels`` ``(H, W, 3 or 4)`` in [0, 1]; the file appears whole or not at all. Raises OSError, one line."""
    values = pixels.clamp(0, 1).numpy()
    data = _deep_png(values, profile) if depth == 16 else _encoded(values, path.suffix.lower(), profile)
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise OSError(f"cannot write {path} ({e.strerror or e}); choose another place") from None


def _encoded(values: np.ndarray, ending: str, profile: bytes | None) -> bytes:
    image, file = Image.fromarray(np.rint(values * 255).astype(np.uint8)), io.BytesIO()
    if ending == ".png":
        image.save(file, "PNG", icc_profile=profile)
    elif ending == ".webp":
        image.save(file, "WEBP", quality=QUALITY, icc_profile=profile)
    else:
        image.save(file, "JPEG", quality=QUALITY, subsampling=0, icc_profile=profile)
    return file.getvalue()


def _deep_png(values: np.ndarray, profile: bytes | None) -> bytes:
    name = "rgba64" if values.shape[-1] == 4 else "rgb48"
    codes = np.ascontiguousarray(np.rint(values * 65535).astype(np.uint16))
    frame = av.VideoFrame.from_ndarray(codes, format=f"{name}le").reformat(format=f"{name}be")
    context = av.CodecContext.create("png", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = frame.width, frame.height, frame.format.name
    context.time_base = Fraction(1)
    data = b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])
    if profile is None:
        return data
    body = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:IHDR_END] + chunk + data[IHDR_END:]

"""Sequences of images: the files of a folder or of a numbered pattern, in order."""

from __future__ import annotations

import re
from pathlib import Path

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of the files that make an image sequence."""
VIDEOS = (
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".vob",
)  # fmt: skip
"""Endings of the videos that are found in a folder."""


def image_sequence(path: Path) -> list[Path] | None:
    """The files of a folder or of a numbered pattern, in order; None where ``path`` names one file.

    Raises:
        ValueError: no image in the folder or for the pattern, or videos in the folder.
    """
    if path.is_dir():
        if video := next((p for p in sorted(path.iterdir()) if p.suffix.lower() in VIDEOS), None):
            raise ValueError(
                f"{path} is a folder with videos ({video.name}); --batch upscales each of its files, and a film is made of a "
                "folder of images alone"
            )
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

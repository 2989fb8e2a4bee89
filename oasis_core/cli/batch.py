"""``oasis upscale --batch``: many videos and still images, each into a file of its own name."""

from __future__ import annotations

import logging
from pathlib import Path

from ..video_io import CODECS
from ..video_io.images import IMAGES, VIDEOS
from ..video_io.stills import WRITTEN, is_still
from .existing import is_done

log = logging.getLogger(__name__)


def pairs(source: Path, target: Path, codec: str, resume: bool) -> list[tuple[Path, Path]]:
    """Each input with its output.

    Args:
        source: a folder of videos and still images, or a text file with one path a line (relative ones: to its folder;
            empty lines and lines that begin with # are left out).
        target: a folder.
        resume: leave out inputs whose output is there, newer than they are, and not in the making.

    Raises:
        ValueError: an unknown codec, no videos, or two outputs of one name. OSError: source or target cannot be used.
    """
    if codec not in CODECS:
        raise ValueError(f"codec is {codec!r}; allowed: {', '.join(CODECS)}")
    inputs = _inputs(source)
    if not inputs:
        kinds = ", ".join((*VIDEOS, *IMAGES))
        raise ValueError(f"{source} has no videos or images ({kinds}); give a folder of some or a list of them")
    found = [(path, target / _name(path, codec)) for path in inputs]
    names = [out.name for _, out in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two inputs would become {target / twice[0]}: rename one, or upscale it by itself")
    if target.is_file():
        raise NotADirectoryError(f"output is a file ({target}); with --batch it is a folder")
    left = [pair for pair in found if not (resume and is_done(*pair))]
    if len(left) < len(found):
        log.info("%d of %d are done already", len(found) - len(left), len(found))
    return left


def _inputs(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(
            path for path in source.iterdir() if path.suffix.lower() in (*VIDEOS, *IMAGES) and _is_shown(path)
        )
    if not source.exists():
        raise FileNotFoundError(f"input not found: {source}")
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{source} is no list of files in UTF-8; with --batch give a folder or a list") from None
    names = [line.strip() for line in lines]
    return [source.parent / name for name in names if name and not name.startswith("#")]


def _is_shown(path: Path) -> bool:
    """Whether it is a file of the user's: macOS lays a ``._name`` beside each file on other disks."""
    return path.is_file() and not path.name.startswith(".")


def _name(path: Path, codec: str) -> str:
    if is_still(path):
        return path.name if path.suffix.lower() in WRITTEN else f"{path.stem}.png"
    containers = CODECS[codec].containers
    if not containers:
        return path.stem
    return path.stem + (path.suffix.lower() if path.suffix.lower() in containers else containers[0])

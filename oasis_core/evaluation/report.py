"""Scores as a table and as JSON; scores of others read back. Needs none of the measuring packages."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Scores = Mapping[str, float]
"""By measure."""
MEAN = "mean"
"""The name that stands for all clips, in tables and files."""
PACKAGES = {
    "torchmetrics": "torchmetrics",
    "cv2": "opencv-python-headless",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "stlpips_pytorch": "stlpips-pytorch",
}
"""Modules that measuring needs, and the packages that bring them."""


@dataclass(frozen=True)
class Column:
    """One measure in a table."""

    key: str
    title: str
    digits: int


COLUMNS = (
    Column("psnr", "PSNR", 2),
    Column("ssim", "SSIM", 4),
    Column("stlpips_alex", "ST-LPIPS alex", 4),
    Column("stlpips_vgg", "ST-LPIPS vgg", 4),
    Column("vmaf", "VMAF", 2),
    Column("vmaf_neg", "VMAF-NEG", 2),
    Column("lrgt_psnr", "LR PSNR", 2),
    Column("ewarp", "E_warp", 3),
    Column("ewarp_truth", "(truth's)", 3),
    Column("flicker", "flicker", 4),
)
LEGEND = """\
Higher is better: PSNR and SSIM (RGB), VMAF, VMAF-NEG (does not reward sharpening), LR PSNR (both area-downscaled x4).
Lower is better: ST-LPIPS; E_warp (x 1000, after motion compensation; a blurred clip has a low one) and flicker."""


def check_packages() -> None:
    """Raises ModuleNotFoundError, one line with the remedy, where a package that measuring needs is missing."""
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(f"measuring needs {', '.join(missing)}: pip install {' '.join(missing)}")


def mean(rows: Iterable[Scores]) -> dict[str, float]:
    """Mean of each measure over the clips that have it (a single frame has no E_warp); at least one clip."""
    rows = list(rows)
    keys = dict.fromkeys(key for row in rows for key in row)
    values = {key: [row[key] for row in rows if key in row] for key in keys}
    return {key: sum(v) / len(v) for key, v in values.items()}


def table_head(width: int) -> str:
    """Titles, over rows whose names take ``width`` characters."""
    return " ".join([" " * width, *(c.title.rjust(_width(c)) for c in COLUMNS)])


def table_row(name: str, scores: Scores, width: int) -> str:
    """One line; a measure that is not there is a dash."""
    cells = [f"{scores[c.key]:.{c.digits}f}" if c.key in scores else "-" for c in COLUMNS]
    return " ".join([name.ljust(width), *(cell.rjust(_width(c)) for c, cell in zip(COLUMNS, cells, strict=True))])


def read_scores(path: Path, name: str | None = None) -> dict[str, dict[str, float]]:
    """Scores by clip from a JSON file.

    The clips stand at the top, under "clips" (what ``oasis evaluate --json`` writes), or under ``name``.

    Raises:
        FileNotFoundError: no such file. ValueError: no such JSON, or no scores of clips in it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not JSON ({e})") from None
    places = [data] if isinstance(data, dict) else []
    for place in [data.get(key) for key in (name, "clips") if isinstance(data, dict) and key is not None] + places:
        if clips := clip_scores(place):
            return clips
    raise ValueError(f"{path} holds no scores of clips; give what `oasis evaluate --json` writes")


def clip_scores(place: Any) -> dict[str, dict[str, float]]:
    """What of ``place`` is scores by clip and measure, without their mean; empty: nothing."""
    clips = place.items() if isinstance(place, dict) else ()
    return {
        clip: {key: float(v) for key, v in scores.items()}
        for clip, scores in clips
        if clip != MEAN
        and isinstance(scores, dict)
        and scores
        and all(isinstance(v, int | float) for v in scores.values())
    }


def mean_of(clips: Mapping[str, Scores], wanted: Iterable[str], name: str) -> dict[str, float]:
    """Mean over the ``wanted`` clips only. Raises ValueError where ``name``'s scores lack one."""
    wanted = list(wanted)
    if missing := [clip for clip in wanted if clip not in clips]:
        raise ValueError(
            f"baseline {name} has no scores of {', '.join(missing)}; choose clips that it has with --clips"
        )
    return mean(clips[clip] for clip in wanted)


def _width(column: Column) -> int:
    return max(len(column.title), column.digits + 4)

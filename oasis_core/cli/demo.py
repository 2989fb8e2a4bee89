"""``oasis demo``: the bundled sample, upscaled by the embedded model, and a picture that compares."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..checkpoints import EMBEDDED
from ..geometry import resize
from ..video_io import VideoReader
from .job import Job
from .upscale import upscale

SAMPLE = Path(__file__).resolve().parents[2] / "assets" / "sample.mp4"
"""Beside the package, in the repository; an installed package has none."""
VIEW = (560, 640)
"""Rows and columns of the part that the picture shows, at 100 % of the output's pixels."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("demo", help="upscale the bundled sample and make a picture that compares")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results (default out)")
    parser.add_argument("--model", default=EMBEDDED, help="checkpoint file or embedded model")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make ``sample_x4.mp4`` and ``sample_compare.png``; prints one line."""
    if not SAMPLE.is_file():
        raise FileNotFoundError(f"the sample clip is not here ({SAMPLE}); run the demo from a clone of the repository")
    args.out.mkdir(parents=True, exist_ok=True)
    done = upscale(Job(SAMPLE, args.out / "sample_x4.mp4", model=args.model))
    middle = done.frames // 2
    small, large = (_frame(path, middle) for path in (SAMPLE, args.out / "sample_x4.mp4"))
    compare(small, large).save(args.out / "sample_compare.png")
    print(f"{args.out / 'sample_x4.mp4'}: {done}; beside it sample_compare.png")
    return 0


def compare(small: Tensor, large: Tensor) -> Image.Image:
    """Input nearest | bicubic | OASIS side by side, the most detailed part of the frame, labelled.

    Args:
        small: input frame ``(h, w, 3)`` in [0, 1]. large: its upscaled version ``(H, W, 3)``.
    """
    height, width = large.shape[:2]
    nearest = small[(torch.arange(height) * small.shape[0]) // height][
        :, (torch.arange(width) * small.shape[1]) // width
    ]
    versions = {"input (nearest)": nearest, "bicubic": resize(small[None], height, width)[0], "OASIS": large}
    top, left, rows, columns = _detailed_part(large)
    panels = [_labelled(f[top : top + rows, left : left + columns], name) for name, f in versions.items()]
    picture = Image.new("RGB", (sum(p.width for p in panels), panels[0].height))
    for i, panel in enumerate(panels):
        picture.paste(panel, (i * panel.width, 0))
    return picture


def _detailed_part(frame: Tensor) -> tuple[int, int, int, int]:
    """Top, left, rows and columns of the part of ``VIEW``'s size (or less) with the strongest edges."""
    rows, columns = (min(v, s) for v, s in zip(VIEW, frame.shape[:2], strict=True))
    gray = frame.mean(-1)
    edges = gray.diff(dim=0)[:, :-1].abs() + gray.diff(dim=1)[:-1].abs()
    corners = [
        (top, left)
        for top in range(0, frame.shape[0] - rows + 1, 16)
        for left in range(0, frame.shape[1] - columns + 1, 16)
    ]
    top, left = max(corners, key=lambda c: float(edges[c[0] : c[0] + rows, c[1] : c[1] + columns].mean()))
    return top, left, rows, columns


def _labelled(part: Tensor, name: str) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray((part.clamp(0, 1) * 255).round().byte().numpy()))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(20)
    box = draw.textbbox((10, 8), name, font=font)
    draw.rectangle((box[0] - 6, box[1] - 4, box[2] + 6, box[3] + 4), fill=(0, 0, 0))
    draw.text((10, 8), name, font=font, fill=(255, 255, 255))
    return image


def _frame(path: Path, number: int) -> Tensor:
    for i, frame in enumerate(VideoReader(path)):
        if i == number:
            return frame.rgb.clamp(0, 1)
    raise ValueError(f"{path} has no frame {number}")

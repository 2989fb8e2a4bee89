"""What borders of chunks and tiles change, by distance: python benchmarks/seams.py

The bundled sample through the embedded model, in one piece and in pieces. RMS of the difference in steps of an 8-bit picture, by
distance from the frames or pixels that two pieces share. Tiles also with all heads made windows: what remains is the windows'
own reach over the border; the rest comes from heads that look at the whole frame and see the tile alone. Minutes on a CPU.
Writes ``results/seams_DATE.json``.
"""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import date
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from oasis_core.checkpoints import embedded_path, load_checkpoint
from oasis_core.model import OasisModel
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import Span, plan_chunks
from oasis_core.routing import HeadPattern, RoutingSpec
from oasis_core.video_io import VideoReader

SAMPLE = Path(__file__).parents[1] / "assets" / "sample.mp4"
SCALE, STEP = 2, 16
"""Enlargement; output pixels of a class of distance."""
TILES = ((128, 32), (128, 64), (192, 64), (256, 64), (256, 128))
"""Side and overlap in output pixels."""
LARGE_TILES = ((512, 128), (768, 128))
"""The same, for the frame enlarged ``LARGE`` times."""
LARGE = 4
CHUNKS = ((16, 2), (8, 1), (8, 2), (8, 4))
"""Frames of a chunk and of an overlap (one to a latent frame)."""


def upscaled(model: OasisModel, routing: RoutingSpec, frames: Tensor, scale: int = SCALE, **changes: int) -> Tensor:
    settings = UpscaleSettings(scale=scale, scene_cuts=False, **{"chunk_frames": len(frames), "tile": 0, **changes})  # type: ignore[arg-type]
    return Upscaler(model, routing, settings).upscale(frames)


def distance(length: int, spans: tuple[Span, ...]) -> Tensor:
    """From each position to the nearest that two neighbouring pieces share; 0: shared."""
    at = torch.arange(length)
    shared = [(b.start, a.stop) for a, b in pairwise(spans)]
    if not shared:
        return torch.full((length,), length)
    return torch.stack([torch.maximum(lo - at, at - hi + 1).clamp_min(0) for lo, hi in shared]).amin(0)


def by_class(error: Tensor, classes: Tensor) -> dict[str, float]:
    """RMS of 255 of each class."""
    return {str(int(c)): round(255 * float(error[classes == c].mean().sqrt()), 3) for c in classes.unique()}


def tile_spans(length: int, tile: int, overlap: int) -> tuple[Span, ...]:
    return plan_chunks(length, tile, overlap) if length > tile else (Span(0, length),)


def tiles(
    model: OasisModel, routing: RoutingSpec, frames: Tensor, cases: tuple[tuple[int, int], ...], scale: int = SCALE
) -> dict[str, dict[str, float]]:
    """For each tile and overlap: RMS in the overlap ("0") and 1, 17, 33... pixels from it."""
    whole, found = upscaled(model, routing, frames, scale), {}
    for tile, overlap in cases:
        tiled = upscaled(model, routing, frames, scale, tile=tile, tile_overlap=overlap)
        error = (tiled - whole).square().mean((0, 3))
        rows, columns = (distance(n, tile_spans(n, tile, overlap)) for n in error.shape)
        away = torch.minimum(rows[:, None], columns[None])
        classes = torch.where(away > 0, (away - 1) // STEP * STEP + 1, 0)
        found[f"{tile}, overlap {overlap}"] = {"all": by_class(error, classes * 0)["0"], **by_class(error, classes)}
        print(tile, overlap, found[f"{tile}, overlap {overlap}"], flush=True)
    return found


def chunks(model: OasisModel, routing: RoutingSpec, frames: Tensor) -> dict[str, dict[str, float]]:
    """For each of ``CHUNKS``: RMS in the frames that are shared ("0") and 1, 2, 3... frames from them."""
    whole, found = upscaled(model, routing, frames), {}
    for size, overlap in CHUNKS:
        error = (upscaled(model, routing, frames, chunk_frames=size, chunk_overlap=overlap) - whole).square()
        by_distance = by_class(error.mean((1, 2, 3)), distance(len(frames), plan_chunks(len(frames), size, overlap)))
        found[f"{size}, overlap {overlap}"] = by_distance
        print(size, overlap, by_distance, flush=True)
    return found


def main() -> None:
    checkpoint = load_checkpoint(embedded_path())
    model, config = checkpoint.model, checkpoint.config
    sample = torch.stack([f.rgb for f in VideoReader(SAMPLE)])
    cell = config.pixel_multiple[0] // SCALE
    still = sample[:3, : sample.shape[1] // cell * cell, : sample.shape[2] // cell * cell]
    moving = sample[:24, 40:88, 80:176]
    windows = RoutingSpec.uniform(config.depth, config.heads, HeadPattern.WINDOW)
    report = {
        "date": date.today().isoformat(),
        "command": "python benchmarks/seams.py",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "machine": f"{platform.system()} {platform.machine()}, torch {torch.__version__}",
        "model": f"{config.name}, {checkpoint.routing.shares()}",
        "unit": "RMS against one piece, of 255",
        "chunks (frames), by frames from the shared ones": chunks(model, checkpoint.routing, moving),
        f"tiles of {list(still.shape[1:3])} x {SCALE}, by pixels": tiles(model, checkpoint.routing, still, TILES),
        "the same, all heads windows": tiles(model, windows, still, TILES),
        f"tiles of one frame of {list(still.shape[1:3])} x {LARGE}": tiles(
            model, checkpoint.routing, still[:1], LARGE_TILES, LARGE
        ),
    }
    path = Path(__file__).parent / "results" / f"seams_{date.today().isoformat()}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()

"""Borders of chunks and tiles on three moving clips, with the embedded model: what is seen there is what is seen without them.

The clips: the bundled sample; a slow pan over one of its pictures; a zoom with a turn into another, mirrored, compressed hard.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oasis_core.checkpoints import Checkpoint, embedded_path, load_checkpoint
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import Span, plan_chunks, plan_tiles
from oasis_core.routing import HeadPattern, RoutingSpec
from oasis_core.video_io import VideoReader

SAMPLE = Path(__file__).parents[1] / "assets" / "sample.mp4"
LOW, HIGH = 0.98, 1.02
"""Mean of the jumps (in time) or gradients (in space) at borders over those of the output without borders, there."""
BEYOND = 1 / 255
"""RMS against the output without borders, outside the cross-fades."""
FRAMES = 24
CLIPS = ("sample", "pan", "zoom")
CHUNK_SIZE, CHUNK_OVERLAP = (48, 96), 2
"""Input pixels; latent frames."""
TILE_SIZE, TILE_FRAMES, TILE_SCALE, TILE, TILE_OVERLAP = (128, 192), 3, 4, 256, 128
"""Input pixels, frames, output pixels: tiles as large as what the model saw in training, with their default overlap. Out of
memory can lead to half of both."""
AWAY = 8
"""Pixels from borders at least, where nothing of them is seen."""
STRONGER = 0.05
"""By how much the gradients of all of a tiled output may differ; measured 0.02."""
BEYOND_TILES = 4 / 255
"""Tiles are no mere blending: heads that look at the whole frame see the tile alone, and everything changes a little.
Measured 0.4 to 3.6 of 255; 1 of 255, as for chunks, is not reached but by windows alone (docs/long_videos.md)."""


def sample() -> Tensor:
    return torch.stack([f.rgb for f in VideoReader(SAMPLE)])


def seen(picture: Tensor, size: tuple[int, int], turn: float, zoom: float, shift: tuple[float, float]) -> Tensor:
    """What a camera over a picture ``(H, W, 3)`` sees, ``(*size, 3)``; its middle is ``shift`` pixels from the picture's."""
    height, width = picture.shape[:2]
    c, s = np.cos(turn) / zoom, np.sin(turn) / zoom
    theta = torch.tensor([
        [c * size[1] / width, -s * size[0] / width, 2 * shift[0] / width],
        [s * size[1] / height, c * size[0] / height, 2 * shift[1] / height],
    ], dtype=torch.float32)  # fmt: skip
    grid = F.affine_grid(theta[None], [1, 3, *size], align_corners=False)
    view = F.grid_sample(picture.permute(2, 0, 1)[None], grid, mode="bicubic", align_corners=False)
    return view[0].permute(1, 2, 0).clamp(0, 1)


def compressed(frames: list[Tensor], path: Path, crf: int) -> Tensor:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for rgb in frames:
            picture = (rgb * 255).round().to(torch.uint8).numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return torch.stack([f.rgb for f in VideoReader(path)])


def make_clips(folder: Path, size: tuple[int, int], frames: int) -> dict[str, Tensor]:
    whole, turned = sample(), sample()[12].flip(1)
    pan = [seen(whole[0], size, 0, 1, (2.3 * i - 20, 0.7 * i - 10)) for i in range(frames)]
    zoom = [seen(turned, size, 0.008 * i, 1 + 0.015 * i, (0, 0)) for i in range(frames)]
    return {
        "sample": whole[:frames, 40 : 40 + size[0], 80 : 80 + size[1]],
        "pan": compressed(pan, folder / "pan.mkv", 20),
        "zoom": compressed(zoom, folder / "zoom.mkv", 32),
    }


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(embedded_path())


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return make_clips(tmp_path_factory.mktemp("clips"), CHUNK_SIZE, FRAMES)


def upscaled(checkpoint: Checkpoint, frames: Tensor, **changes: object) -> Tensor:
    """Twice enlarged, unless ``changes`` say otherwise."""
    settings = replace(UpscaleSettings(scale=2.0, chunk_frames=FRAMES, scene_cuts=False, tile=0), **changes)  # type: ignore[arg-type]
    return Upscaler(checkpoint.model, checkpoint.routing, settings).upscale(frames)


@pytest.fixture(scope="module")
def unbroken(checkpoint: Checkpoint, clips: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: upscaled(checkpoint, frames) for name, frames in clips.items()}


def test_the_clips_move(clips: dict[str, Tensor]) -> None:
    for frames in clips.values():
        assert frames.shape == (FRAMES, *CHUNK_SIZE, 3)
        assert jumps(frames).median() > 3 / 255


# Chunks.


def jumps(frames: Tensor) -> Tensor:
    """RMS difference of each frame to the one before, from the second on."""
    return frames.diff(dim=0).square().mean((1, 2, 3)).sqrt()


@pytest.fixture(scope="module")
def chunked(checkpoint: Checkpoint, clips: dict[str, Tensor]) -> dict[tuple[str, int], Tensor]:
    return {(name, n): upscaled(checkpoint, clips[name], chunk_frames=n) for name in CLIPS for n in (16, 8)}


@pytest.mark.parametrize("chunk", [16, 8])
@pytest.mark.parametrize("name", CLIPS)
def test_jumps_at_chunk_borders_are_those_of_the_unchunked_output(
    unbroken: dict[str, Tensor], chunked: dict[tuple[str, int], Tensor], name: str, chunk: int
) -> None:
    ratio = jumps(chunked[name, chunk]) / jumps(unbroken[name])
    spans = plan_chunks(FRAMES, chunk, CHUNK_OVERLAP)
    # Where a fade begins, inside it, and where it ends: the later chunk takes over from frame a.stop - 2 on.
    borders = sorted({f for a, _ in pairwise(spans) for f in range(a.stop - CHUNK_OVERLAP, min(a.stop + 1, FRAMES))})
    moves = jumps(unbroken[name]) > 5 / 255  # the film repeats frame 6: of what stands still there is no ratio
    at = torch.tensor([float(ratio[frame - 1]) for frame in borders if moves[frame - 1]])
    assert len(at) >= len(borders) - 1
    print(f"{name}, chunk {chunk}: {at.mean():.4f} in the mean, {at.min():.4f} to {at.max():.4f}")
    assert LOW <= at.mean() <= HIGH


@pytest.mark.parametrize("chunk", [16, 8])
@pytest.mark.parametrize("name", CLIPS)
def test_chunks_show_little_beyond_their_overlap(
    unbroken: dict[str, Tensor], chunked: dict[tuple[str, int], Tensor], name: str, chunk: int
) -> None:
    error = (chunked[name, chunk] - unbroken[name]).square().mean((1, 2, 3))
    fades = [range(a.stop - CHUNK_OVERLAP, a.stop) for a, _ in pairwise(plan_chunks(FRAMES, chunk, CHUNK_OVERLAP))]
    away = [min(max(f.start - frame, frame - f.stop + 1, 0) for f in fades) for frame in range(FRAMES)]
    by_distance = rms_by_distance(error, torch.tensor(away))
    print(f"{name}, chunk {chunk}: RMS of 255 by frames from the fade: {told(by_distance)}")
    assert max(value for distance, value in by_distance.items() if distance > 0) < BEYOND


# Tiles.


def spans(length: int) -> tuple[Span, ...]:
    """Rows or columns of tiles, in output pixels."""
    return tuple(sorted({rows for rows, _ in plan_tiles(length, length, TILE, TILE_OVERLAP)}))


def slopes(frames: Tensor, dim: int) -> Tensor:
    """RMS difference of each row (dim 1) or column (dim 2) to the one before, from the second on."""
    others = [d for d in range(4) if d != dim]
    return frames.diff(dim=dim).square().mean(others).sqrt()


@pytest.fixture(scope="module")
def tile_pairs(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor]]:
    """Tiled and untiled."""
    clips = make_clips(tmp_path_factory.mktemp("tiles"), TILE_SIZE, TILE_FRAMES)
    untiled, tiled = (
        {"scale": float(TILE_SCALE)},
        {"scale": float(TILE_SCALE), "tile": TILE, "tile_overlap": TILE_OVERLAP},
    )
    return {n: (upscaled(checkpoint, f, **tiled), upscaled(checkpoint, f, **untiled)) for n, f in clips.items()}


LENGTHS = tuple(TILE_SCALE * side for side in TILE_SIZE)


def test_the_tiles_of_this_test_are_those_of_the_pipeline(checkpoint: Checkpoint) -> None:
    cell = checkpoint.config.pixel_multiple[0]
    settings = UpscaleSettings(tile=TILE, tile_overlap=TILE_OVERLAP)
    up = Upscaler(checkpoint.model, checkpoint.routing, settings)
    assert up.tiling(LENGTHS[0] // cell, LENGTHS[1] // cell) == (TILE // cell, TILE_OVERLAP // cell)
    assert [n % cell for n in (*LENGTHS, TILE, TILE_OVERLAP)] == [0] * 4
    assert [len(spans(n)) for n in LENGTHS] == [3, 5]


def test_gradients_across_tile_borders_are_those_of_the_untiled_output_and_of_elsewhere(
    tile_pairs: dict[str, tuple[Tensor, Tensor]],
) -> None:
    """Tiled over untiled, where a later tile begins to count and where an earlier one ends: by itself, and over the same away
    from them.

    Gradients of the tiled output are a little stronger everywhere (heads that see whole frames see the tile alone): no seam.
    """
    at, elsewhere = list[float](), list[float]()
    for name, (tiled, untiled) in tile_pairs.items():
        for dim, length in enumerate(LENGTHS, 1):
            ratio = slopes(tiled, dim) / slopes(untiled, dim)
            borders = {edge - 1 for a, b in pairwise(spans(length)) for edge in (b.start, a.stop)}
            away = [i for i in range(len(ratio)) if min(abs(i - border) for border in borders) > AWAY]
            at += [float(ratio[i]) for i in sorted(borders)]
            elsewhere += [float(ratio[i]) for i in away]
        print(f"{name} and before: {np.mean(at):.4f} at borders, {np.mean(elsewhere):.4f} elsewhere")
    assert LOW <= np.mean(at) <= HIGH
    assert LOW <= np.mean(at) / np.mean(elsewhere) <= HIGH
    assert abs(np.mean(elsewhere) - 1) < STRONGER


@pytest.mark.parametrize("name", CLIPS)
def test_tiles_show_little_anywhere(tile_pairs: dict[str, tuple[Tensor, Tensor]], name: str) -> None:
    tiled, untiled = tile_pairs[name]
    error = (tiled - untiled).square().mean((0, 3))
    away = torch.minimum(from_fades(LENGTHS[0])[:, None], from_fades(LENGTHS[1])[None])
    by_distance = rms_by_distance(error, torch.where(away > 0, (away - 1) // 8 * 8 + 1, 0))
    print(f"{name}, tiles: RMS of 255 by pixels from the fade (0: in it; else from 1, 9, 17...): {told(by_distance)}")
    assert max(by_distance.values()) < BEYOND_TILES


def test_tiles_of_windows_alone_show_nothing_beyond_their_overlap(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Tiling itself is exact to a quarter of what is allowed: what else tiles change, heads that see whole frames change."""
    frames = make_clips(tmp_path, TILE_SIZE, TILE_FRAMES)["zoom"]
    windows = RoutingSpec.uniform(checkpoint.config.depth, checkpoint.config.heads, HeadPattern.WINDOW)
    whole, tiled = (
        Upscaler(
            checkpoint.model, windows, UpscaleSettings(TILE_SCALE, chunk_frames=FRAMES, tile=t, tile_overlap=o)
        ).upscale(frames)
        for t, o in ((0, 0), (TILE, TILE_OVERLAP))
    )
    error = (tiled - whole).square().mean((0, 3))
    away = torch.minimum(from_fades(LENGTHS[0])[:, None], from_fades(LENGTHS[1])[None])
    by_distance = rms_by_distance(error, torch.where(away > 0, (away - 1) // 16 * 16 + 1, 0))
    print(f"windows alone: {told(by_distance)}")
    assert max(by_distance.values()) < BEYOND
    assert max(value for distance, value in by_distance.items() if distance > 0) < BEYOND / 4
    assert by_distance[max(by_distance)] < BEYOND / 50


def from_fades(length: int) -> Tensor:
    """Pixels from each position to the next that two tiles share."""
    places = torch.arange(length)
    shared = [(b.start, a.stop) for a, b in pairwise(spans(length))]
    return torch.stack([torch.stack([lo - places, places - hi + 1]).amax(0).clamp_min(0) for lo, hi in shared]).amin(0)


def rms_by_distance(error: Tensor, away: Tensor) -> dict[int, float]:
    """Root of the mean of squared ``error`` at each distance."""
    return {int(d): float(error[away == d].mean().sqrt()) for d in away.unique()}


def told(by_distance: dict[int, float]) -> str:
    return ", ".join(f"{distance}: {255 * value:.3f}" for distance, value in sorted(by_distance.items()))

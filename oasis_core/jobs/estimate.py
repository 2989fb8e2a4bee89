"""What a job will need, told before it starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..memory import working_memory
from ..pipeline import Upscaler
from ..plan import plan_tiles
from ..progress import about
from ..video_io import VideoInfo
from .fit import device_budget, fit
from .fit import told as told_plan
from .folder import job_path, read_manifest
from .pace import Pace, is_too_slow, measure
from .remembered import recall
from .segments import plan_segments
from .shrink import is_out_of_memory, with_plan

log = logging.getLogger(__name__)

BITS_PER_PIXEL = {"h264": 0.15, "h265": 0.1, "av1": 0.08, "prores": 4.0, "ffv1": 5.0, "png": 8.0}
"""Size of the output by codec at its default quality, measured on the bundled sample, four times enlarged and sharpened."""
KIB = 1024


Paces = dict[object, Pace]
"""What was measured, by all that it hangs on: of several clips alike the first one's will do."""


@dataclass(frozen=True)
class Estimate:
    """A job's plan; every text is one line."""

    lines: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "\n".join(f"{name + ':':10}{text}" for name, text in self.lines)


def estimate(
    upscaler: Upscaler, info: VideoInfo, target: Path, codec: str, segment_frames: int, paces: Paces | None = None
) -> Estimate:
    """Chunk, tile, segments, memory, disk and time of a job; nothing of it is done or written.

    Time is what finished segments of an unfinished job for the target took, else what is measured now, in seconds.
    ``paces`` keeps that for other clips of the same model and device.

    Raises:
        ValueError: sizes that cannot be had, or a damaged job folder.
    """
    known = recall(upscaler, info.height, info.width)
    less = "" if known is None else ", since more ran out of memory on this device before"
    budget = device_budget(upscaler.model.project.weight.device)
    upscaler = fit(known or upscaler, info.frames, info.height, info.width, budget, whole=known is None)
    geometry, cell = upscaler.geometry(info.height, info.width), upscaler.model.config.pixel_multiple
    rows, columns = geometry.pad_h // cell[0], geometry.pad_w // cell[1]
    tile, overlap = upscaler.tiling(rows, columns)
    tiles = len(plan_tiles(rows, columns, tile, overlap))
    group = upscaler.model.config.unshuffle[0]
    told = "whole frame" if tiles == 1 else f"{tile * cell[0]} pixels, {overlap * cell[0]} shared, {tiles} to a frame"
    memory = working_memory(upscaler, info.frames or upscaler.settings.chunk_frames, info.height, info.width)
    weights = sum(p.numel() * p.element_size() for p in upscaler.model.parameters())
    if upscaler.settings.may_be_whole(rows, columns, cell[0]):
        whole = working_memory(
            with_plan(upscaler, None, 0), info.frames or upscaler.settings.chunk_frames, info.height, info.width
        )
        told += f" (--tile 0: none, in about {_size(whole + weights)} and more time)"
    segments, disk = "as many as the input has parts of that length", "unknown, as the input does not tell its length"
    if info.frames:
        every = upscaler.restarting(segment_frames).restart_chunks
        plan = upscaler.chunk, upscaler.chunk_overlap, group, segment_frames, every
        count = len(plan_segments(info.frames, (), *plan))
        segments = f"{count} (more where there are cuts)" if upscaler.settings.scene_cuts else str(count)
        size = info.frames * geometry.out_h * geometry.out_w * BITS_PER_PIXEL[codec] / 8
        copies = 1 if codec == "png" else 2
        disk = f"about {_size(copies * size)} while it runs, {_size(size)} in the end ({codec}, give or take a factor of 3)"
    decoding = getattr(upscaler.model.decoder, "plan", None)
    return Estimate((
        ("output", f"{geometry.out_w}x{geometry.out_h}, {_many(info.frames)}"),
        ("chunk", f"{upscaler.settings.chunk_frames} frames, {upscaler.chunk_overlap} latent frames shared{less}"),
        ("tile", told),
        *((("decoder", told_plan(decoding)),) if decoding is not None else ()),
        ("segments", f"{segments}, of {segment_frames} frames"),
        ("memory", f"about {_size(memory + weights)} on the device, {_size(weights)} of it weights"),
        ("disk", disk),
        ("time", _time(target, info) or _expected(upscaler, info, {} if paces is None else paces)),
    ))  # fmt: skip


def clip_facts(upscaler: Upscaler, frames: int | None, height: int, width: int) -> str:
    """Two short lines: what comes in and what comes out; the memory that it takes on the device."""
    geometry = upscaler.geometry(height, width)
    memory = working_memory(upscaler, frames or upscaler.settings.chunk_frames, height, width)
    weights = sum(p.numel() * p.element_size() for p in upscaler.model.parameters())
    many, need = "frames" if frames is None else _many(frames), _size(memory + weights)
    return f"{many} {width}x{height} to {geometry.out_w}x{geometry.out_h}\nabout {need} of memory"


def _time(target: Path, info: VideoInfo) -> str | None:
    """By the segments that are finished; None where there are none."""
    manifest = read_manifest(job_path(target))
    if manifest is None or not manifest.segments or not info.frames:
        return None
    pace = sum(s.seconds for s in manifest.segments) / manifest.position.frame
    left = max(0, info.frames - manifest.position.frame)
    return f"{about(pace * left)} for the {left} frames left, at {1 / max(pace, 1e-9):.2f} frames per second so far"


def _expected(upscaler: Upscaler, info: VideoInfo, paces: Paces) -> str:
    """By a measurement."""
    if is_too_slow(upscaler):
        return "unknown until a first segment is finished: a full-size model on a CPU is too slow to be measured here"
    key = upscaler.settings, info.height, info.width, min(info.frames or upscaler.chunk, upscaler.chunk)
    try:
        if key not in paces:
            log.info("measuring the time: this takes some seconds")
            paces[key] = measure(upscaler, info.frames, info.height, info.width)
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
        return "unknown: memory ran out while it was measured; the job would go on with smaller chunks, then tiles"
    frames = info.frames or 100 * upscaler.chunk
    seconds = paces[key].seconds(upscaler, frames)
    source = "measured now, with noise; reading and encoding go on beside it"
    rate = f"{frames / max(seconds, 1e-9):.2f} frames per second ({source})"
    return f"{about(seconds)} at {rate}" if info.frames else f"{rate}; the input does not tell its length"


def _many(frames: int | None) -> str:
    return "1 frame" if frames == 1 else f"{frames or 'an unknown number of'} frames"


def _size(count: float) -> str:
    return f"{count / KIB**3:.1f} GiB" if count >= KIB**3 else f"{count / KIB**2:.1f} MiB"

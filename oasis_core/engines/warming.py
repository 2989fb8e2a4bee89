"""A job's kind of work on noise, before there is a segment: kernels are compiled and loaded, their plans chosen, graphs recorded.

It keeps seconds of every worker out of the job's own time (docs/ray.md). No frame of the job hangs on it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..jobs.packers import Packers
from ..model.decoders import DecodePlan
from ..patchify import frame_count
from ..pipeline import Upscaler
from ..plan import Position
from ..video_io import VideoInfo, WriterSettings
from ..video_io.packing import Packing

ENOUGH = 5.0
"""Seconds after the first finished frames until a rehearsal ends: what large models go on to gain is less than it takes."""
CHUNKS = 3
"""The first one runs as it is, the second one is recorded as a graph (``model.graphs``), the third one runs as that."""


@dataclass(frozen=True)
class Rehearsal:
    """What segments of a job are like."""

    info: VideoInfo
    """Of the input."""
    writer: WriterSettings
    chunk_frames: int | None
    """The job's plan, as in ``Manifest``."""
    tile: int | None
    decode: DecodePlan | None


def rehearse(upscaler: Upscaler, info: VideoInfo, writer: WriterSettings) -> int:
    """Make some chunks of noise: what segments show the model has these shapes, all but at the end of a shot.

    Returns frames made, which went nowhere. Raises what the model raises, out-of-memory errors among it.
    """
    latents = upscaler.chunk + (CHUNKS - 1) * (upscaler.chunk - upscaler.chunk_overlap)
    length = frame_count(latents, upscaler.model.config.unshuffle[0])
    picture = torch.rand(info.height, info.width, 3, generator=torch.Generator().manual_seed(0))
    geometry = upscaler.geometry(info.height, info.width)
    packing = Packing(geometry.out_w, geometry.out_h, info, writer)
    made, first = 0, 0.0
    with Packers(packing, upscaler.model.project.weight.device.type) as packers:
        for part in upscaler.parts([picture] * length, Position(), finish=packers.finish):
            for frame in part.frames:
                made += 1
                packers.put(frame, made).result()
            first = first or time.monotonic()
            if time.monotonic() - first > ENOUGH:
                break
    return made

"""``oasis upscale`` of a still image: a picture in, a picture out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from ..jobs.clip import upscale_clip
from ..jobs.estimate import Estimate, Paces, estimate
from ..video_io import CODECS, VideoReader
from ..video_io.stills import WRITTEN, check_still_target, is_still, read_still, write_still
from .job import Job
from .loading import load_upscaler
from .shown import shown

CODEC = "png"
"""Of ``WriterSettings`` for a still image: its depths are 8 and 16, and it has no crf."""
PLANNED = ("output", "tile", "decoder", "memory", "time")
"""What of an estimate has a meaning for one picture."""


def is_pair(source: Path, target: Path) -> bool:
    """Whether the names are those of pictures."""
    return is_still(source) and target.suffix.lower() in WRITTEN


def asks_for_still(source: Path, target: Path, codec: str | None) -> bool:
    """Whether one picture is to become one picture; ``codec``: None where none was named.

    Raises ValueError for a picture's name as the output of what is no picture, for a video's codec, and for a picture's output
    that neither a picture nor a video can be.
    """
    ending, videos = target.suffix.lower(), {end for kind in CODECS.values() for end in kind.containers}
    if ending not in WRITTEN:
        if is_still(source) and codec is None and ending not in videos:
            raise ValueError(f"{target.name} cannot be written; of a still image give {', '.join(WRITTEN)}")
        return False
    if not is_still(source):
        if codec == CODEC:
            return False  # a folder of that name
        raise ValueError(
            f"output is one image ({target.name}) and the input is none ({source.name}); give a video file's name, or "
            "--codec png and a new folder"
        )
    if codec not in (None, CODEC):
        raise ValueError(f"codec is {codec!r}, but {target.name} is a still image; leave --codec out")
    return True


def run(job: Job) -> int:
    """Do the job; prints one line. Raises ValueError, OSError or MemoryError, one line; nothing is left behind."""
    began = time.monotonic()
    _check(job)
    still = read_still(job.source)
    upscaler = load_upscaler(job)
    geometry = upscaler.geometry(*still.pixels.shape[1:3])
    depth = check_still_target(job.target, still, geometry.out_w, geometry.out_h, job.writer.depth)
    with shown(1, "image") as progress:
        pixels = upscale_clip(upscaler, still.pixels, progress.advance)[0]
    write_still(job.target, pixels, depth, still.profile)
    print(f"{job.target}: {geometry.out_w}x{geometry.out_h}, {time.monotonic() - began:.1f} s")
    return 0


def plan(job: Job, paces: Paces, makes_folder: bool = False) -> Estimate:
    """What it will need. Raises as ``run`` does; nothing is written.

    ``makes_folder``: whether the output's folder is made first.
    """
    _check(job)
    still = read_still(job.source)
    upscaler = load_upscaler(job)
    geometry = upscaler.geometry(*still.pixels.shape[1:3])
    if job.target.parent.exists() or not makes_folder:
        check_still_target(job.target, still, geometry.out_w, geometry.out_h, job.writer.depth)
    height, width = still.pixels.shape[1:3]
    info = replace(VideoReader(job.source).info, frames=1, height=height, width=width)
    told = estimate(upscaler, info, job.target, CODEC, job.keep.segment_frames, paces)
    return Estimate(tuple(line for line in told.lines if line[0] in PLANNED))


def _check(job: Job) -> None:
    if job.source.exists() and job.target.exists() and job.source.samefile(job.target):
        raise ValueError(f"output is the input itself ({job.target}); give another file")
    for name, given in (("--fps", job.fps), ("--deinterlace", job.deinterlace)):
        if given is not None:
            raise ValueError(f"{name} is for videos, and {job.source.name} is a still image; leave it out")

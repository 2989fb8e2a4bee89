"""What ``oasis upscale`` was asked to do."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..checkpoints import EMBEDDED
from ..pipeline import UpscaleSettings
from ..routing.auto import NAME as AUTO
from ..routing.spec import RoutingSpec
from ..video_io import Deinterlace, WriterSettings
from ..video_job import Done, JobSettings

INCOMPLETE = 2
"""Exit code where the input broke off: what could be decoded was upscaled."""


@dataclass(frozen=True)
class Job:
    """One file's work; the defaults are the command's."""

    source: Path
    target: Path
    settings: UpscaleSettings = UpscaleSettings()
    writer: WriterSettings = WriterSettings()
    model: str = EMBEDDED
    routing: str | None = None
    """File, or what ``AutoRouting.parse`` reads."""
    device: str = "auto"
    dtype: str = "auto"
    fps: Fraction | None = None
    deinterlace: Deinterlace | None = None
    keep: JobSettings = JobSettings()
    attention: str = "auto"
    compile: bool = False
    decoder: Path | None = None
    allow_untrained: bool = False
    still: bool = False
    """One picture that becomes one picture; of ``writer`` its depth alone counts."""


def routing_text(given: str | None) -> str | None:
    """``--routing`` as ``ready.routing_of`` takes it. Raises FileNotFoundError or ValueError, one line."""
    if given is None or given.partition(":")[0] == AUTO:
        return given
    return RoutingSpec.from_file(Path(given)).to_json()


def tell(target: Path, done: Done) -> int:
    """Print what a job came to; returns the exit code."""
    print(f"{target}: {done}")
    if done.problem:
        print(f"oasis: {done.problem}", file=sys.stderr)
        return INCOMPLETE
    return 0

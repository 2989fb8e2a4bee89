"""What a driver tells a worker, and what it hears from it. Plain values: Ray carries them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from ..jobs.manifest import SegmentRecord
from ..jobs.scan import SegmentTask
from ..model.decoders import DecodePlan
from ..pipeline import UpscaleSettings
from ..routing.spec import RoutingSpec
from ..video_io import Deinterlace, VideoReader, WriterSettings
from .far_files import Shared
from .schedule import Failure
from .times import Spent


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker of a job loads."""

    model: str
    """Checkpoint file or embedded model."""
    routing: str | None
    """As ``ready.routing_of`` takes it."""
    settings: UpscaleSettings
    device: str
    dtype: str
    attention: str
    compile: bool
    decoder: str | None = None
    """File of a full-size model's decoder."""
    allow_untrained: bool = False
    fold: bool = True
    """As ``ready.ready`` takes it."""


@dataclass(frozen=True)
class WorkerFacts:
    """What one worker is."""

    host: str
    device: str
    dtype: str
    """A name that ``choose_format`` takes."""
    model: str
    """``hash_model``."""
    encoder: str
    """libavcodec's version."""
    memory: int | None
    """Free on the device when the model was loaded, MiB; None where that is not told."""
    budget: int | None = None
    """``jobs.fit.device_budget`` beside the model."""


@dataclass(frozen=True)
class Source:
    """An input as ``VideoReader`` takes it."""

    path: Path
    fps: Fraction | None = None
    deinterlace: Deinterlace | None = None

    def open(self) -> VideoReader:
        """Raises as ``VideoReader`` does."""
        return VideoReader(self.path, self.fps, self.deinterlace)


@dataclass(frozen=True)
class Order:
    """One attempt at one segment."""

    attempt: int
    """``Attempt.number``."""
    source: Source
    task: SegmentTask
    file: Path
    """Where the segment goes, without its ending."""
    writer: WriterSettings
    chunk_frames: int | None
    """The job's plan, as in ``Manifest``."""
    tile: int | None
    decode: DecodePlan | None
    smaller: int
    """Times that this segment's plan is made smaller than that."""
    shared: Shared
    routings: Mapping[int, RoutingSpec] = field(default_factory=dict)
    """What is decided already of the segment's shots, by their first frames."""


@dataclass(frozen=True)
class Outcome:
    """What came of an order: a finished segment, or how it failed."""

    record: SegmentRecord | None
    how: Failure | None = None
    error: str = ""
    """One line."""
    disk: bool = False
    """The place that the result goes to is full or cannot be written."""
    plan: str = ""
    """The smaller plan that made it, in words; empty: the job's own."""
    here: bool = True
    """Whether the file is where the order wanted it; False: it waits at the worker."""
    decided: Mapping[int, RoutingSpec] = field(default_factory=dict)
    """What this attempt has decided of shots' routings, by their first frames."""
    spent: Spent = Spent()


@dataclass(frozen=True)
class Advance:
    """How far a worker is with an order."""

    attempt: int
    frames: float
    """Of the attempt's."""
    decided: Mapping[int, RoutingSpec]
    """As in ``Outcome``, so far."""

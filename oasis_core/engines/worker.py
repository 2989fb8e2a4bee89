"""What runs beside each GPU: a model that stays loaded, and one segment after the other. Plain Python; Ray makes it an actor."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch

from ..checkpoints import resolve
from ..device import FP8, choose_device, choose_format
from ..jobs.fingerprint import hash_model
from ..jobs.fit import device_budget
from ..jobs.manifest import SegmentRecord
from ..jobs.one_segment import make_segment
from ..jobs.remembered import free_memory_mib, recall, remember
from ..jobs.scan import SegmentTask
from ..jobs.shrink import free_memory, is_out_of_memory, shrunk, told, with_plan
from ..model.decoders import DecodePlan
from ..openmp import BESIDE_GPU
from ..pipeline import Upscaler, UpscaleSettings
from ..ready import load_with_decoder, ready, routing_of
from ..routing.auto import ShotRoutings
from ..routing.spec import RoutingSpec
from ..video_io import Deinterlace, VideoReader, WriterSettings
from .far_files import DECODER, MODEL, FarFiles, Shared, fetch
from .schedule import Failure

log = logging.getLogger(__name__)

DISK = (errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Errors of the place that the result goes to: no other worker can help."""


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


@dataclass(frozen=True)
class Advance:
    """How far a worker is."""

    attempt: int
    frames: float
    """Of the attempt's."""
    decided: Mapping[int, RoutingSpec]
    """As in ``Outcome``, so far."""


class Stopped(Exception):
    """An attempt was told to end."""


class SegmentWorker:
    """Loaded once; ``make`` runs in one thread, ``progress`` and ``stop`` may be called from another."""

    def __init__(self, settings: WorkerSettings, server: Any = None, text: str = "") -> None:
        """
        Args:
            server: handle of the ``FileServer`` that has model and decoder, where they are not found here; ``text``: as in
                ``Shared``.

        What cannot be had is told by ``facts``: Ray keeps an error of a constructor in words of its own.
        """
        self._lock = threading.Lock()
        self._now, self._done, self._stopped = 0, 0.0, 0
        self._decided: dict[int, RoutingSpec] = {}
        self._reader: tuple[Source, VideoReader] | None = None
        self._far = FarFiles()
        self._refusal: Exception | None = None
        try:
            self._load(settings, server, text)
        except (ValueError, OSError, ModuleNotFoundError, MemoryError, RuntimeError) as e:
            self._refusal = e

    def _load(self, settings: WorkerSettings, server: Any, text: str) -> None:
        device = choose_device(settings.device)
        if device.type != "cpu":
            torch.set_num_threads(min(BESIDE_GPU, torch.get_num_threads()))
        dtype, fp8 = choose_format(settings.dtype, device)
        model, decoder = resolve(settings.model), None if settings.decoder is None else Path(settings.decoder)
        if not model.is_file() and server is not None:
            model = fetch(server, MODEL, model, text)
        if decoder is not None and not decoder.is_file() and server is not None:
            decoder = fetch(server, DECODER, decoder, text)
        checkpoint = load_with_decoder(model, decoder, device, dtype, settings.allow_untrained)
        routing = routing_of(settings.routing, checkpoint)
        self._upscaler = ready(
            checkpoint, routing, settings.settings, settings.attention, settings.compile, settings.fold, fp8
        )
        name = (
            FP8
            if fp8
            else {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[str(dtype).removeprefix("torch.")]
        )
        encoder = ".".join(map(str, av.library_versions["libavcodec"]))
        self._free = free_memory_mib(self._upscaler)
        self._facts = WorkerFacts(
            socket.gethostname(), str(device), name, hash_model(checkpoint.model), encoder, self._free,
            device_budget(device),
        )  # fmt: skip

    def facts(self) -> WorkerFacts:
        """Raises ValueError or OSError where model, device or number format cannot be had; one line."""
        if self._refusal is not None:
            raise self._refusal
        return self._facts

    def files(self, question: str, *values: Any) -> Any:
        """A method of ``FarFiles``."""
        return getattr(self._far, question)(*values)

    def recalled(self, height: int, width: int) -> tuple[int, int | None] | None:
        """Chunk and tile that worked here for input of that size, where those asked for did not."""
        found = recall(self._upscaler, height, width)
        return None if found is None else (found.settings.chunk_frames, found.settings.tile)

    def progress(self) -> Advance:
        """Of the present attempt."""
        with self._lock:
            return Advance(self._now, self._done, dict(self._decided))

    def stop(self, attempt: int) -> None:
        """End an attempt, if it is the present one."""
        with self._lock:
            self._stopped = attempt

    def make(self, order: Order) -> Outcome:
        """One segment. Errors come back as an outcome: none of them ends the worker."""
        with self._lock:
            self._now, self._done, self._decided = order.attempt, 0.0, {}
        return replace(self._tried(order), decided=self._decided)

    def _tried(self, order: Order) -> Outcome:
        try:
            return self._make(order)
        except Stopped:
            return Outcome(None, Failure.ERROR, "stopped")
        except MemoryError as e:
            return Outcome(None, Failure.FINAL, _line(e))
        except Exception as e:  # whatever it is, the job's other segments can be made: the driver tells it by name
            if is_out_of_memory(e):
                outcome = Outcome(None, Failure.MEMORY, _line(e))
            else:
                disk = isinstance(e, OSError) and e.errno in DISK and self._far.shares(order.shared)
                outcome = Outcome(None, Failure.ERROR, f"{type(e).__name__}: {_line(e)}", disk)
        free_memory()  # out of the except block: until here the error holds the frames of the failed call
        return outcome

    def _make(self, order: Order) -> Outcome:
        source, file, here = self._far.places(order.source.path, order.file, order.shared)
        reader = self._open(replace(order.source, path=source))
        height, width = reader.info.height, reader.info.width
        upscaler = with_plan(self._for_order(order), order.chunk_frames, order.tile)
        for _ in range(order.smaller):
            upscaler = shrunk(upscaler, height, width)
        record = make_segment(reader, upscaler, order.task, file, order.writer, self._advance, self._poll)
        if order.smaller:
            remember(self._upscaler, upscaler, height, width, self._free)
        return Outcome(record, plan=told(upscaler.settings) if order.smaller else "", here=here)

    def _for_order(self, order: Order) -> Upscaler:
        """With what is decided already, and the decoder's plan of the job."""
        own = self._upscaler
        if own.remembers:
            own.model.decoder.plan = order.decode or DecodePlan()  # type: ignore[assignment]
        if not isinstance(own.routing, ShotRoutings):
            return own
        routings = ShotRoutings(own.routing.auto)
        routings.keep_in(order.routings, self._keep)
        return Upscaler(own.model, routings, own.settings)

    def _keep(self, shot: int, routing: RoutingSpec) -> None:
        with self._lock:
            self._decided[shot] = routing

    def _open(self, source: Source) -> VideoReader:
        if self._reader is None or self._reader[0] != source:
            self._reader = (source, source.open())
        return self._reader[1]

    def _advance(self, done: float, total: int | None) -> None:
        with self._lock:
            self._done = done

    def _poll(self) -> None:
        with self._lock:
            if self._stopped == self._now:
                raise Stopped


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__

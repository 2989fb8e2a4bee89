"""What runs beside each GPU: a model that stays loaded, and one segment after the other. Plain Python; Ray makes it an actor.

All that runs the model runs in one thread of its own, whichever of Ray's threads asks for it: what torch keeps for a thread is
then made once (plans of cuDNN's convolutions: aten/src/ATen/native/cudnn/Conv_v8.cpp; handles of cuBLAS, OpenMP's threads).
While the encoder finishes a segment, the model is at the next one, whose frames are being read already.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import torch

from ..checkpoints import resolve
from ..device import FP8, choose_device, choose_format
from ..jobs.fingerprint import hash_model
from ..jobs.fit import device_budget
from ..jobs.one_segment import make_segment
from ..jobs.remembered import free_memory_mib, recall, remember
from ..jobs.shrink import free_memory, is_out_of_memory, shrunk, told, with_plan
from ..model.decoders import DecodePlan
from ..openmp import BESIDE_GPU
from ..pipeline import Upscaler
from ..ready import load_with_decoder, ready, routing_of
from ..routing.auto import ShotRoutings
from ..routing.spec import RoutingSpec
from ..video_io import VideoReader
from .far_files import DECODER, MODEL, FarFiles, fetch
from .orders import Advance, Order, Outcome, Source, WorkerFacts, WorkerSettings
from .schedule import Failure
from .times import Spent
from .warming import Rehearsal, rehearse

log = logging.getLogger(__name__)

DISK = (errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Errors of the place that the result goes to: no other worker can help."""


class Stopped(Exception):
    """An attempt was told to end."""


@dataclass
class _Work:
    """An order that is being made."""

    left: float = 0.0
    """When the model was done with it."""
    done: float = 0.0
    decided: dict[int, RoutingSpec] = field(default_factory=dict)
    spent: Spent = Spent()


class SegmentWorker:
    """Loaded once. Every method may be called from any thread, ``make`` from several at a time."""

    def __init__(self, settings: WorkerSettings, server: Any = None, text: str = "") -> None:
        """
        Args:
            server: handle of the ``FileServer`` that has model and decoder, where they are not found here; ``text``: as in
                ``Shared``.

        What cannot be had is told by ``facts``: Ray keeps an error of a constructor in words of its own.
        """
        self._lock = threading.Lock()
        self._works: dict[int, _Work] = {}
        """By ``Order.attempt``."""
        self._stopped: set[int] = set()
        self._left: float | None = None
        """When the model's last turn ended."""
        self._model = ThreadPoolExecutor(1, "oasis-model")
        self._places = threading.Lock()
        self._reader: tuple[Source, VideoReader] | None = None
        self._far = FarFiles()
        self._refusal: Exception | None = None
        try:
            self._model.submit(self._load, settings, server, text).result()
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

    def warm(self, rehearsal: Rehearsal) -> float:
        """Have the model do such work once, on a GPU; seconds that it took. Raises what the model raises, but memory errors."""
        began = time.monotonic()
        if self._warms and not self._rehearsed(rehearsal):
            self._model.submit(free_memory).result()  # the segments find out what fits
        return time.monotonic() - began

    @property
    def _warms(self) -> bool:
        """CPUs have next to nothing to prepare."""
        return self._upscaler.model.project.weight.device.type != "cpu"

    def _rehearsed(self, rehearsal: Rehearsal) -> bool:
        """False where memory ran out."""
        try:
            self._model.submit(self._rehearse, rehearsal).result()
        except RuntimeError as e:
            if not is_out_of_memory(e):
                raise
            log.info("the rehearsal ended early: %s", _line(e))
            return False
        return True

    def _rehearse(self, rehearsal: Rehearsal) -> None:
        upscaler = with_plan(self._with({}, lambda shot, routing: None), rehearsal.chunk_frames, rehearsal.tile)
        self._take(rehearsal.decode)
        rehearse(upscaler, rehearsal.info, rehearsal.writer)

    def progress(self) -> tuple[Advance, ...]:
        """Of the orders that are being made."""
        with self._lock:
            return tuple(Advance(attempt, w.done, dict(w.decided)) for attempt, w in self._works.items())

    def stop(self, attempt: int) -> None:
        """End an attempt, also one that is still on its way here."""
        with self._lock:
            self._stopped.add(attempt)

    def make(self, order: Order) -> Outcome:
        """One segment. Errors come back as an outcome: none of them ends the worker."""
        work = _Work()
        with self._lock:
            self._works[order.attempt] = work
        try:
            outcome = self._tried(order)
        finally:
            with self._lock:
                del self._works[order.attempt]
                self._stopped.discard(order.attempt)
        return replace(outcome, decided=work.decided, spent=work.spent)

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
        # Out of the except block: until here the error holds the frames of the failed call. Not beside the model: nothing may be
        # freed while a graph is recorded.
        self._model.submit(free_memory).result()
        return outcome

    def _make(self, order: Order) -> Outcome:
        with self._places:  # what is fetched is fetched once
            source, file, here = self._far.places(order.source.path, order.file, order.shared)
        reader = self._open(replace(order.source, path=source))
        height, width = reader.info.height, reader.info.width
        upscaler = with_plan(
            self._with(order.routings, partial(self._keep, order.attempt)), order.chunk_frames, order.tile
        )
        for _ in range(order.smaller):
            upscaler = shrunk(upscaler, height, width)
        record = make_segment(
            reader, upscaler, order.task, file, order.writer, partial(self._advance, order.attempt),
            partial(self._poll, order.attempt), partial(self._at_model, order),
        )  # fmt: skip
        work = self._works[order.attempt]
        work.spent = replace(work.spent, after=time.monotonic() - work.left)
        if order.smaller:
            with self._lock:
                remember(self._upscaler, upscaler, height, width, self._free)
        return Outcome(record, plan=told(upscaler.settings) if order.smaller else "", here=here)

    def _at_model(self, order: Order, make: Callable[[], int]) -> int:
        """Run the model's part of a segment, after those that came before it."""

        def turn() -> int:
            work, began = self._works[order.attempt], time.monotonic()
            idle = None if self._left is None else began - self._left
            self._poll(order.attempt)
            self._take(order.decode)
            try:
                return make()
            finally:
                self._left = work.left = time.monotonic()
                work.spent = Spent(idle, work.left - began)

        return self._model.submit(turn).result()

    def _take(self, plan: DecodePlan | None) -> None:
        """Have the decoder work by the plan of a job. In the model's turn alone."""
        if self._upscaler.remembers:
            self._upscaler.model.decoder.plan = plan or DecodePlan()  # type: ignore[assignment]

    def _with(self, known: Mapping[int, RoutingSpec], keep: Callable[[int, RoutingSpec], None]) -> Upscaler:
        """With what is decided already, where routing is; ``keep`` is told what is decided then."""
        own = self._upscaler
        if not isinstance(own.routing, ShotRoutings):
            return own
        routings = ShotRoutings(own.routing.auto)
        routings.keep_in(known, keep)
        return Upscaler(own.model, routings, own.settings)

    def _keep(self, attempt: int, shot: int, routing: RoutingSpec) -> None:
        with self._lock:
            self._works[attempt].decided[shot] = routing

    def _open(self, source: Source) -> VideoReader:
        if self._reader is None or self._reader[0] != source:
            self._reader = (source, source.open())
        return self._reader[1]  # each segment decodes by itself: its frames come from an open file of its own

    def _advance(self, attempt: int, done: float, total: int | None) -> None:
        with self._lock:
            self._works[attempt].done = done

    def _poll(self, attempt: int) -> None:
        with self._lock:
            if attempt in self._stopped:
                raise Stopped


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__

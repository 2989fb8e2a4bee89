"""Batches ahead of the trainer: worker processes sample, degrade and code; a thread brings them to the device.

Processes, not threads: on one interpreter the degradations and the codecs' Python parts cost the trainer three quarters
of its launch rate (measured: 265 ms a step instead of what the GPU needs).
"""

from __future__ import annotations

import logging
import multiprocessing
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..heap import keep_freed
from .codec import draw_codec, round_trip
from .config import POOL, TrainConfig
from .data import ClipStore
from .degradations import degrade
from .library import Library

log = logging.getLogger(__name__)

AHEAD = 3
"""Batches that each worker may be ahead of the trainer."""
CODEC_THREADS = 3
"""Threads per worker (PyAV lets go of the GIL while it encodes and decodes)."""
SCALES = (1.0, 1.5, 2.0, 3.0)
"""Scale factors that a step may take instead of 4."""
PATIENCE = 300.0
"""Seconds that the trainer waits for a batch before it gives up."""


@dataclass(frozen=True)
class Batch:
    """One step's data, float in [0, 1], on the training device."""

    lr: Tensor
    """``(B, 3, T, h, w)``."""
    hr: Tensor
    """``(B, 3, T, H, W)``."""


class BatchMaker:
    """Makes batch ``index`` of a run: it depends on (config, index, rank) alone, so a run resumes exactly."""

    def __init__(self, config: TrainConfig, library: Library, device: torch.device, rank: int = 0) -> None:
        self.config, self.device, self.rank = config, device, rank
        self.store = ClipStore(library, device, config.still_share, config.recolor_share)
        self.codecs = ThreadPoolExecutor(CODEC_THREADS)

    def make(self, index: int) -> tuple[Tensor, Tensor]:
        """Low- and high-quality clips ``(B, T, h, w, 3)``, ``(B, T, H, W, 3)``, uint8 on the host."""
        stage, _ = self.config.stage_at(index)
        rng = np.random.default_rng((self.config.seed, index, self.rank))
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        hr = self.store.sample(stage.batch, stage.frames, stage.size, rng)
        scale = 4.0 if rng.random() >= stage.other_scales else float(rng.choice(SCALES))
        low = max(16, round(stage.size / scale))
        lq = degrade(hr, (low, low), stage.mode, rng, generator)
        codecs = [draw_codec(rng, low * low) for _ in range(stage.batch)]
        clean, clips = (rearrange(x * 255, "b c t h w -> b t h w c").round().byte().cpu() for x in (hr, lq))
        coded = np.stack(list(self.codecs.map(round_trip, clips.numpy(), codecs)))
        return torch.from_numpy(coded), clean


class Feed:
    """Iterates the batches of steps ``start`` ... ``stop - 1`` in order, whatever the number of workers.

    Args:
        workers: processes that make batches; 0: make them here, when asked for.
        data_device: where they make them; None: on ``device``, in turns with the training. "cpu" leaves a GPU to the
            training alone, if there are processor cores enough (a batch takes one core about a second).
        rank: which of the training processes this is: each sees batches of its own.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        *,
        start: int,
        stop: int,
        workers: int,
        rank: int = 0,
        data_device: torch.device | None = None,
    ) -> None:
        self.data_device = data_device or device
        self.config, self.device, self.start, self.stop, self.workers = config, device, start, stop, workers
        self.rank = rank
        sources = [config.source(step)[0] for step in range(start, stop)]
        self._order = list(dict.fromkeys(sources))
        """Batches to make, in the order of their first use."""
        self._kept: dict[int, Batch] = {}
        self.quiet = threading.Lock()
        """While held, the feed leaves the device alone: a CUDA graph's capture fails on another thread's allocations."""
        self._ended = threading.Event()
        self._processes: list[Any] = []
        self._made: list[Any] = []
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=2)
        self._library = Library.read(Path(config.data), (*config.drop, *config.validation), config.use_licences)
        log.info("data: %s", self._library)
        if workers:
            context = torch.multiprocessing.get_context("spawn")
            for k in range(workers):
                made = context.Queue(maxsize=AHEAD)
                args = (config, self._library, str(self.data_device), rank, self._order[k::workers], made)
                self._processes.append(context.Process(target=_work, args=args, daemon=True))
                self._made.append(made)
            for process in self._processes:
                process.start()
            threading.Thread(target=self._bring, name="feed", daemon=True).start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        for process in self._processes:
            process.terminate()
            process.join()

    def __iter__(self) -> Iterator[Batch]:
        made = self._arriving() if self.workers else self._made_here()
        for step in range(self.start, self.stop):
            source, turn = self.config.source(step)
            if source not in self._kept:
                self._kept[source] = next(made)
            self._kept = {k: batch for k, batch in self._kept.items() if k > source - POOL}
            last = turn + 1 == self.config.stage_at(step)[0].reuse
            yield turned(self._kept.pop(source) if last else self._kept[source], turn)

    def _made_here(self) -> Iterator[Batch]:
        maker = BatchMaker(self.config, self._library, self.data_device, self.rank)
        for index in self._order:
            yield _to_device(maker.make(index), self.device)

    def _arriving(self) -> Iterator[Batch]:
        for _ in self._order:
            batch = self._ready.get()
            if isinstance(batch, BaseException):
                raise batch
            if self.device.type == "cuda":
                # Made on the feed's stream: its memory must not be used again while this stream reads.
                batch.lr.record_stream(torch.cuda.current_stream(self.device))
                batch.hr.record_stream(torch.cuda.current_stream(self.device))
            yield batch

    def _bring(self) -> None:
        """The thread: take batches from the workers in turn, copy them on a stream of their own."""
        try:
            stream = None
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
                stream = torch.cuda.Stream(self.device)
            for number in range(len(self._order)):
                made = self._made[number % self.workers].get(timeout=PATIENCE)
                if isinstance(made, str):
                    raise RuntimeError(f"a data worker failed: {made}")
                with self.quiet, torch.cuda.stream(stream):
                    batch = _to_device(made, self.device)
                    if stream is not None:
                        stream.synchronize()
                if self._ended.is_set():
                    return
                self._ready.put(batch)
        except queue.Empty:
            self._ready.put(
                RuntimeError(f"no batch came for {PATIENCE:.0f} s: a data worker hangs or was killed (memory?)")
            )
        except BaseException as e:
            self._ready.put(e)


def turned(batch: Batch, turn: int) -> Batch:
    """The batch seen another way: 0 as it is, 1 transposed, 2 by half a turn, 3 both."""
    lr, hr = batch.lr, batch.hr
    if turn & 2:
        lr, hr = lr.flip(-2, -1), hr.flip(-2, -1)
    if turn & 1:
        lr, hr = lr.transpose(-2, -1).contiguous(), hr.transpose(-2, -1).contiguous()
    return Batch(lr, hr)


def _to_device(made: tuple[Tensor, Tensor], device: torch.device) -> Batch:
    if device.type == "cuda":
        made = (made[0].pin_memory(), made[1].pin_memory())
    lr, hr = (rearrange(x.to(device, non_blocking=True).float() / 255, "b t h w c -> b c t h w") for x in made)
    return Batch(lr, hr)


def _work(config: TrainConfig, library: Library, device: str, rank: int, indices: list[int], made: Any) -> None:
    """A worker's life: make its batches, put them in the queue; tell of a failure instead of dying silently."""
    torch.set_num_threads(1)
    keep_freed()
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    try:
        maker = BatchMaker(config, library, torch.device(device), rank)
        for index in indices:
            made.put(maker.make(index))
    except Exception as e:
        made.put(f"{type(e).__name__}: {e}")
    # The last batches lie in this process's shared memory: stay until the trainer ends it (or dies itself).
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()

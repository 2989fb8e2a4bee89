"""Batches ahead of the trainer: sample and degrade on the device, code on CPU threads, back to the device."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .codec import CodecPool, draw_codec
from .config import StageConfig
from .data import ClipStore
from .degradations import degrade

AHEAD = 4
"""Batches in flight."""
SCALES = (1.0, 1.5, 2.0, 3.0)
"""Scale factors that a step may take instead of 4."""


@dataclass(frozen=True)
class Batch:
    """One step's data, float in [0, 1], on the training device."""

    lr: Tensor
    """``(B, 3, T, h, w)``."""
    hr: Tensor
    """``(B, 3, T, H, W)``."""


@dataclass(frozen=True)
class _InFlight:
    hr: Tensor
    coded: list[Future[np.ndarray]]


class Feed:
    """Iterates batches ``start`` ... ``stop - 1``; batch i depends on (seed, i) alone, so a run resumes exactly."""

    def __init__(
        self, store: ClipStore, stage: StageConfig, *, seed: int, start: int, stop: int, threads: int | None = None
    ) -> None:
        self.store, self.stage, self.seed, self.start, self.stop = store, stage, seed, start, stop
        self.pool = CodecPool(threads or max(1, (os.cpu_count() or 2) - 2))
        self.copies = torch.cuda.Stream(store.device) if store.device.type == "cuda" else None

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.pool.close()

    def __iter__(self) -> Iterator[Batch]:
        flight: deque[_InFlight] = deque()
        for index in range(self.start, self.stop + AHEAD):
            if index < self.stop:
                flight.append(self._launch(index))
            if index >= self.start + AHEAD or index >= self.stop:
                if flight:
                    yield self._land(flight.popleft())
                if index >= self.stop and not flight:
                    return

    def _launch(self, index: int) -> _InFlight:
        """Sample and degrade on the device, start the copy to the host, hand over to the codecs."""
        stage, device = self.stage, self.store.device
        rng = np.random.default_rng((self.seed, index))
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + index)
        hr = self.store.sample(stage.batch, stage.frames, stage.size, rng)
        scale = 4.0 if rng.random() >= stage.other_scales else float(rng.choice(SCALES))
        low = max(16, round(stage.size / scale))
        lq = degrade(hr, (low, low), stage.mode, rng, generator)
        codecs = [draw_codec(rng, low * low) for _ in range(stage.batch)]
        data = rearrange(lq * 255, "b c t h w -> b t h w c").round().byte()
        if self.copies is None:
            return _InFlight(hr, self.pool.submit(data.numpy(), codecs, ready=_at_once))
        host = torch.empty(data.shape, dtype=torch.uint8, pin_memory=True)
        self.copies.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self.copies):
            host.copy_(data, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self.copies)
        data.record_stream(self.copies)
        return _InFlight(hr, self.pool.submit(host.numpy(), codecs, ready=done.synchronize))

    def _land(self, item: _InFlight) -> Batch:
        """Collect the coded clips and bring them to the device."""
        coded = torch.from_numpy(np.stack([f.result() for f in item.coded]))
        if self.copies is not None:
            coded = coded.pin_memory()
        lr = coded.to(self.store.device, non_blocking=True)
        return Batch(rearrange(lr, "b t h w c -> b c t h w").float() / 255, item.hr)


def _at_once() -> None:
    return None

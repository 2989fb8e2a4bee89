"""Random parameters of the degradations: constant over a clip, or a bounded walk from frame to frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Mode = Literal["consistent", "walk"]
Range = tuple[float, float]

# Largest step per frame in walk mode, uniform in +-step: RealBasicVSR, configs/realbasicvsr_*.py (arXiv 2111.12704).
STEPS = {"sigma": 0.02, "rotate": 0.31416, "beta_gaussian": 0.05, "beta_plateau": 0.1, "omega": 0.0628,
         "resize": 0.015, "gaussian": 0.1, "poisson": 0.005, "quality": 3.0}  # fmt: skip
# Ours, of the looks, which RealBasicVSR does not have: a hundredth or two of each range, as most of its steps are.
LOOK_STEPS = {"amount": 0.02, "threshold": 0.1, "levels": 0.5}


def check_range(name: str, values: Range, most: float, least: float = 0.0) -> None:
    """Raises ValueError unless ``least <= values[0] <= values[1] <= most``."""
    if not least <= values[0] <= values[1] <= most:
        raise ValueError(f"{name} is {values}; it must rise and lie in {least:g} to {most:g}")


class Draw:
    """Parameter values ``(clips * frames,)`` on the device, clip by clip."""

    def __init__(self, clips: int, frames: int, mode: Mode, rng: np.random.Generator, device: torch.device) -> None:
        self.clips, self.frames, self.mode, self.rng, self.device = clips, frames, mode, rng, device

    def walk(self, low: float, high: float, step: float) -> np.ndarray:
        """``(clips, frames)``: uniform start in [low, high]; in walk mode then uniform steps in +-step, kept inside."""
        start = self.rng.uniform(low, high, (self.clips, 1))
        if self.mode == "consistent":
            return np.repeat(start, self.frames, 1)
        values = [start]
        for _ in range(self.frames - 1):
            values.append(np.clip(values[-1] + self.rng.uniform(-step, step, (self.clips, 1)), low, high))
        return np.concatenate(values, 1)

    def value(self, low: float, high: float, step: float) -> Tensor:
        """``walk``'s values, ``(clips * frames,)`` float32 on the device."""
        return self.put(self.walk(low, high, step))

    def chance(self, probability: float) -> Tensor:
        """Bool, constant over a clip."""
        return self.put(np.repeat(self.rng.random((self.clips, 1)) < probability, self.frames, 1))

    def on_some(self, x: Tensor, probability: float, look: Callable[[Tensor, Draw], Tensor]) -> Tensor:
        """Frames ``(clips * frames, ...)`` with ``look(frames, draw)`` on a share of the clips; only those are computed.

        Which clips is known on the host, so the device is not waited for.
        """
        chosen = np.flatnonzero(self.rng.random(self.clips) < probability)
        if not len(chosen):
            return x
        rows = self.put(chosen[:, None] * self.frames + np.arange(self.frames))
        part = Draw(len(chosen), self.frames, self.mode, self.rng, self.device)
        return x.index_copy(0, rows, look(x.index_select(0, rows), part))

    def put(self, values: np.ndarray) -> Tensor:
        """On the device, flat; floats as float32."""
        tensor = torch.from_numpy(np.ascontiguousarray(values.reshape(-1)))
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

"""What the averaged model makes of clips that it never trains on, and what its transformer is worth there."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..evaluation.perceptual import STLPIPS, weights_path
from ..model import OasisModel
from ..routing.spec import HeadPattern, RoutingSpec
from .codec import draw_codec, round_trip
from .config import TrainConfig
from .degradations import degrade
from .library import Library
from .losses import motion
from .state import TrainState
from .trainer import upsample

log = logging.getLogger(__name__)

LEVELS = (0.0, 0.05, 0.3, 0.6, 1.0)
"""Fidelities that are scored."""
SIZE, FRAMES = 256, 9
"""The middle of each clip: pixels a side, frames (fewer than a group asks for are added)."""


@dataclass(frozen=True)
class Degraded:
    """The middle of some clips, and what is left of it (walking parameters, x4, a real codec), drawn once."""

    hr: Tensor
    """``(n, 3, T, SIZE, SIZE)`` in [0, 1]."""
    lr: Tensor
    """``(n, 3, T, SIZE / 4, SIZE / 4)`` in [0, 1]."""

    @classmethod
    def read(cls, config: TrainConfig, patterns: tuple[str, ...]) -> Degraded:
        """Raises FileNotFoundError where the patterns match nothing."""
        clips, stills = Library.read(Path(config.data), only=patterns).on(torch.device("cpu"))
        frames = 1 + -(-(FRAMES - 1) // config.model.frame_group) * config.model.frame_group
        rng = np.random.default_rng(0)
        hr = torch.stack([_middle(x, frames) for x in [*clips, *(s[None] for s in stills)]])
        low = degrade(hr, (SIZE // 4, SIZE // 4), "walk", rng, torch.Generator().manual_seed(0))
        coded = [
            round_trip(x, draw_codec(rng, (SIZE // 4) ** 2))
            for x in rearrange(low * 255, "b c t h w -> b t h w c").round().byte().numpy()
        ]
        return cls(hr, rearrange(torch.from_numpy(np.stack(coded)).float() / 255, "b t h w c -> b c t h w"))


class Validation:
    """Held-out clips and, to tell learning from learning by heart, clips of the training set; their scores."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        """Raises FileNotFoundError where the patterns match nothing."""
        self.held_out = Degraded.read(config, config.validation)
        self.seen = Degraded.read(config, config.validation_seen) if config.validation_seen else None
        self.device = device
        networks = [n for n in ("alex", "vgg") if weights_path(n).is_file()]  # type: ignore[arg-type]
        self.networks = {n: STLPIPS(n).to(device) for n in networks}  # type: ignore[arg-type]
        log.info("validation: %d clips of %d frames", *self.held_out.hr.shape[:3:2])

    @torch.no_grad()
    def write(self, out: Path, state: TrainState) -> None:
        """Append one JSON line to ``validation.jsonl``: scores at each fidelity, and without parts of the model."""
        model, routing = state.averaged_model(), state.routing
        intra = RoutingSpec.uniform(routing.depth, routing.heads, HeadPattern.INTRA_FRAME, routing.window)
        levels = LEVELS if model.config.faithful_timestep is not None else (0.0,)
        scores = {f"fidelity {level:g}": self.score(model, routing, level) for level in levels}
        scores["not averaged"] = self.score(state.averaged_model(averaged=False), routing, 0.0)
        if self.seen is not None:
            scores["seen in training"] = self.score(model, routing, 0.0, self.seen)
        scores["all intra-frame"] = self.score(model, intra, 0.0)
        scores["transformer zeroed"] = self.score(model, None, 0.0)
        for name, values in scores.items():
            log.info("%s: %s", name, values)
        with (out / "validation.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.step, **scores}) + "\n")

    def score(
        self, model: OasisModel, routing: RoutingSpec | None, fidelity: float, on: Degraded | None = None
    ) -> dict[str, float]:
        """Means over the clips (None: the held-out ones); ``routing`` None: the decoder alone (z_H = z_L)."""
        sums: dict[str, float] = {}
        on = on or self.held_out
        for lr, hr in zip(on.lr.split(1), on.hr.split(1), strict=True):
            hr = hr.to(self.device)
            pixels = upsample(lr.to(self.device), SIZE)
            z = model.encode(pixels)
            z = z if routing is None else model.restore(z, routing, fidelity=fidelity)
            sr = ((model.decode(z, pixels) + 1) / 2).clamp(0, 1)
            middle = hr.shape[2] // 2
            values = {"psnr": -10 * (sr - hr).square().mean((1, 3, 4)).log10().mean(), "motion": motion(sr, hr)}
            values |= {name: network(sr[:, :, middle], hr[:, :, middle]) for name, network in self.networks.items()}
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {name: round(value / len(on.hr), 4) for name, value in sums.items()}


def _middle(clip: Tensor, frames: int) -> Tensor:
    """The central cut ``(3, frames, SIZE, SIZE)`` in [0, 1] of ``(T, H, W, 3)`` uint8; a short clip repeats its last."""
    length, height, width = clip.shape[:3]
    index = torch.arange(frames).add(max(0, (length - frames) // 2)).clamp(max=length - 1)
    top, left = (height - SIZE) // 2, (width - SIZE) // 2
    cut = clip[index, top : top + SIZE, left : left + SIZE]
    return rearrange(cut.float() / 255, "t h w c -> c t h w")

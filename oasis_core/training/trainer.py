"""One optimiser step: restore a batch, weigh the losses, move the weights, their average and the adversary's."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..evaluation.perceptual import STLPIPS
from ..model import OasisModel
from ..model.fuse import fuse_model
from ..patchify import replicate_first
from ..routing.spec import HeadPattern, RoutingSpec
from . import losses
from .config import LossWeights, StageConfig, TrainConfig
from .cuda_graph import as_graph
from .discriminator import judge
from .feed import Batch
from .parallel import Group
from .residual_coder import ResidualCoder
from .rrdb import Dense
from .state import TrainState, set_learning_rate
from .teacher import Teacher, load_teacher

log = logging.getLogger(__name__)

LOG_EVERY = 50
"""Steps between log lines; each reads its values off the device, so not every step."""
TAUGHT_FRAMES = 2
"""Frames of each clip that the teacher is asked for in a step: it costs more than all else."""
FIDELITIES = 8
"""Fidelities above 0 that training draws: 1/8, 2/8 ... 1."""


class Trainer:
    """One stage's losses and one optimiser step."""

    def __init__(
        self, config: TrainConfig, state: TrainState, device: torch.device, group: Group, fuse: bool = False
    ) -> None:
        """``fuse``: compile what runs every step."""
        self.config, self.state, self.device, self.group = config, state, device, group
        self.stage: StageConfig | None = None
        self.moving: list[Tensor] = []
        """The parameters that the stage trains."""
        self.generator, self.shared = torch.Generator(), torch.Generator()
        self.meter = Meter(Path(config.out))
        self.restore: Callable[[Tensor, Tensor], Tensor] = _RestoreClips(state.model, state.routing)
        self.compiled: Callable[[Any], Any] = (lambda f: torch.compile(f, dynamic=False)) if fuse else (lambda f: f)
        if fuse:
            fuse_model(state.model)
        self.perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
        self.teacher: Teacher | None = None
        self.judge, self.pixel_terms = self.compiled(judge), self.compiled(pixel_terms)

    def enter(self, stage: StageConfig, batch: Batch) -> None:
        """Make ready for ``stage``, of which ``batch`` is about to be used."""
        self.stage = stage
        log.info("stage %s: %s", stage.name, stage)
        if stage.loss.perceptual and self.perceptual is None:
            self.perceptual = self.compiled(STLPIPS().to(self.device).requires_grad_(False))
        if stage.loss.teacher and self.teacher is None:
            network = load_teacher().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for block in network.modules():
                if isinstance(
                    block, Dense
                ):  # 69 alike, one compilation for each size: the whole network takes two minutes
                    block.forward = self.compiled(block.forward)  # type: ignore[method-assign]
            self.teacher = Teacher(network)
        state = self.state
        everywhere = RoutingSpec.uniform(
            state.routing.depth, state.routing.heads, HeadPattern.GLOBAL, state.routing.window
        )
        self.moving = state.select(stage.train)
        if stage.train == "decoder":
            self.restore = DrawClips(state.model, state.coder)
            return
        self.restore = _RestoreClips(state.model, state.routing if stage.routed else everywhere)
        if self.device.type == "cuda" and not self.config.checkpoint_blocks:
            sample = upsample(batch.lr, batch.hr.shape[-1]), state.model.dit.timestep(0.0, self.device)
            self.restore = as_graph(self.restore, sample)

    def step(self, batch: Batch, lr: float, offset: int) -> None:
        """One step; ``offset`` is its number inside the stage."""
        state, stage = self.state, self.stage
        assert stage is not None
        seed = self.config.seed * 1_000_003 + state.step
        self.shared.manual_seed(seed)
        self.generator.manual_seed(seed * self.group.world + self.group.rank)
        fidelity = draw_fidelity(stage.faithful, stage.between, self.shared)
        weights = stage.loss.at(fidelity, ramp=min(1.0, (offset + 1) / stage.ramp) if stage.ramp else 1.0)
        set_learning_rate(state.optimizers, lr)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            timestep = state.model.dit.timestep(fidelity ** (1 / self.config.model.fidelity_curve), self.device)
            told = batch.hr * 2 - 1 if stage.train == "decoder" else timestep
            sr = (self.restore(upsample(batch.lr, batch.hr.shape[-1]), told).float() + 1) / 2
            terms = self.terms(sr, batch, weights)
            judged, adversary = self.adversarial_terms(sr, batch.hr) if weights.adversarial else ({}, None)
        gradient = _gradient(terms, weights, sr)
        if judged:
            push = _gradient(judged, weights, sr)
            share = push.norm() / gradient.norm().clamp_min(1e-12)
            gradient = gradient + push * (self.config.adversary_limit / share.clamp_min(1e-12)).clamp_max(1.0)
            terms |= {**judged, "share": share}
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        sr.backward(state.guard.scale(gradient))
        self.group.average_gradients(self.moving)
        moving = [o for o in state.optimizers if any(p.grad is not None for g in o.param_groups for p in g["params"])]
        for optimizer in moving:
            state.guard.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.moving, self.config.clip_gradient)
        for optimizer in moving:
            state.guard.step(optimizer)
        state.guard.update()
        if adversary is not None:
            self.adversary_step(adversary)
            terms["adversary"] = adversary.detach()
        state.step += 1
        state.update_ema(self.config.ema)
        if fidelity in (0.0, 1.0):
            suffix = "_faithful" if fidelity else ""
            self.meter.add({f"{name}{suffix}": value for name, value in {**terms, "norm": norm}.items()})
        if state.step % LOG_EVERY == 0:
            self.meter.write(state.step, stage.name, lr, self.group.leads)

    def terms(self, sr: Tensor, batch: Batch, weights: LossWeights) -> dict[str, Tensor]:
        """The loss terms in use, unweighted, the adversarial ones aside."""
        hr = batch.hr
        pixel, low, motion = self.pixel_terms(sr, hr)
        terms = {"pixel": pixel, "low": low, "motion": motion}
        if weights.frequency:
            terms["frequency"] = losses.frequency(sr, hr)
        if weights.grid:
            terms["grid"] = losses.grid(sr, hr, self.config.model.pixel_multiple[0])
        if weights.perceptual and self.perceptual is not None:
            terms["perceptual"] = self.perceptual(*losses.looks(sr, hr, self.generator))
        if weights.teacher and self.teacher is not None:
            drawn = torch.randint(sr.shape[2], (TAUGHT_FRAMES,), generator=self.generator).tolist()
            taught = self.teacher(batch.lr[:, :, drawn], sr.shape[-1])
            terms["teacher"] = losses.charbonnier(sr[:, :, drawn], taught)
        return {name: value for name, value in terms.items() if name == "pixel" or getattr(weights, name)}

    def adversarial_terms(self, sr: Tensor, hr: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What the adversary makes of ``sr``, unweighted, and the adversary's own loss."""
        fake, real = losses.stacked_frames(sr, hr, self.generator)
        with torch.autocast(self.device.type, enabled=False):
            weights = self.state.adversary.weights()
        logits, features = self.judge(torch.cat([real, fake.detach()]), weights)
        fooled, ours = self.judge(fake, [w.detach() for w in weights])
        terms = {
            "adversarial": losses.fool(fooled),
            "feature": losses.feature_match(ours, [f.detach().chunk(2)[0] for f in features]),
        }
        return terms, losses.tell_apart(*logits.chunk(2))

    def adversary_step(self, loss: Tensor) -> None:
        """Move the discriminator's weights."""
        state = self.state
        state.adversary_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.group.average_gradients(state.adversary.parameters())
        torch.nn.utils.clip_grad_norm_(state.adversary.parameters(), 10.0)
        state.adversary_optimizer.step()


class Meter:
    """Means of the loss terms since the last line, summed up on the device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.since, self.step = time.monotonic(), 0

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def write(self, step: int, stage: str, lr: float, leads: bool) -> None:
        """Append one JSON line to the log (the leading process) and start anew.

        Raises:
            FloatingPointError: a mean that is not a number.
        """
        means = {name: round(float(value) / self.counts[name], 5) for name, value in self.sums.items()}
        took = (time.monotonic() - self.since) / max(1, step - self.step)
        self.since, self.step, self.sums, self.counts = time.monotonic(), step, {}, {}
        line = {"step": step, "stage": stage, "lr": lr, "ms": round(took * 1e3, 1), **means}
        if leads:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            log.info("%s", line)
        if any(value != value for value in means.values()):
            raise FloatingPointError(f"the loss is not a number at step {step}; lower the learning rate")


def pixel_terms(sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Charbonnier distance, the same of the low pass, and the frame differences'."""
    return (
        losses.charbonnier(sr, hr),
        losses.charbonnier(losses.low_pass(sr), losses.low_pass(hr)),
        losses.motion(sr, hr),
    )


def draw_fidelity(share: float, between: float, generator: torch.Generator) -> float:
    """0 but for ``share`` of the draws; of those ``between`` are one of ``FIDELITIES`` steps, the others 1.

    On the timestep's scale, before ``fidelity_curve``: a curve that was measured stays right in later training.
    """
    chance, end, level = torch.rand(3, generator=generator).tolist()
    if chance >= share:
        return 0.0
    return 1.0 if end >= between else (1 + int(level * FIDELITIES)) / FIDELITIES


def upsample(lr: Tensor, size: int) -> Tensor:
    """Low-resolution frames in [0, 1] to the target grid, as the pipeline does it: ``(B, 3, T, size, size)`` in [-1, 1]."""
    frames = rearrange(lr.float(), "b c t h w -> (b t) c h w")
    big = F.interpolate(frames, size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return rearrange(big, "(b t) c h w -> b c t h w", b=lr.shape[0]) * 2 - 1


def _gradient(terms: dict[str, Tensor], weights: LossWeights, sr: Tensor) -> Tensor:
    """Of the weighted sum of ``terms`` with respect to the restored frames."""
    total = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
    return torch.autograd.grad(total, sr)[0]


class DrawClips:
    """The residual decoder's lesson: low-quality frames and a code of what they lack in, sharp frames out."""

    def __init__(self, model: OasisModel, coder: ResidualCoder) -> None:
        self.model, self.coder = model, coder

    def __call__(self, pixels: Tensor, sharp: Tensor) -> Tensor:
        """Both ``(B, 3, T, H, W)`` in [-1, 1]."""
        whole = replicate_first(pixels, self.model.config.unshuffle[0])
        return self.model.decoder(self.coder(sharp - pixels), whole)[:, :, -pixels.shape[2] :]


class _RestoreClips(nn.Module):
    """The model with its routing fixed."""

    def __init__(self, model: OasisModel, routing: RoutingSpec) -> None:
        super().__init__()
        self.model, self.routing = model, routing

    def forward(self, pixels: Tensor, timestep: Tensor) -> Tensor:
        return self.model(pixels, self.routing, timestep)

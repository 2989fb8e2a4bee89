"""The training loop: batch -> restore -> losses -> step, stage by stage (paper section 3.3; recipe in docs/training.md)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..checkpoints import load_checkpoint, save_checkpoint
from ..checkpoints.metadata import Metadata
from ..model import OasisModel
from ..model.layers import Block
from ..routing.calibration import assign, measure
from ..routing.spec import HeadPattern, RoutingSpec
from . import losses
from .config import LossWeights, StageConfig, TrainConfig
from .feed import Batch, Feed
from .perceptual import STLPIPS
from .state import TrainState, learning_rate, set_learning_rate

log = logging.getLogger(__name__)

LOG_EVERY = 50
"""Steps between log lines; each reads its values off the device, so not every step."""


def train(
    config: TrainConfig, device: torch.device, seconds: float | None = None, workers: int = 0, fuse: bool = False
) -> Path:
    """Run, or go on with, a training run in ``config.out``.

    Args:
        seconds: stop (with a saved state) after that much time; None: run to the end.
        workers: processes that make the data; 0: make it in this one.
        fuse: compile the blocks' halves around the attention (costs a minute, then half a step's time on a GPU).

    Returns:
        The checkpoint with the averaged weights as they are now.
    """
    began = time.monotonic()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = True  # shapes are fixed within a stage
    torch.set_float32_matmul_precision("high")
    state = TrainState(config, _fresh_model(config), device)
    if (out / "state.pt").is_file():
        state.load(out / "state.pt", device)
        log.info("going on from step %d", state.step)
    if fuse:
        fuse_blocks(state.model)
    trainer = Trainer(config, state, device)
    with Feed(config, device, start=state.step, stop=config.steps, workers=workers) as feed:
        for batch in feed:
            stage, offset = config.stage_at(state.step)
            trainer.enter(stage, batch)
            trainer.step(batch, learning_rate(stage, offset))
            if state.step % config.save_every == 0:
                state.save(out / "state.pt")
                save_preview(out / f"preview_{state.step:06d}.png", state, batch)
            if seconds is not None and time.monotonic() - began > seconds:
                break
    state.save(out / "state.pt")
    return write_weights(config, state)


def _fresh_model(config: TrainConfig) -> OasisModel:
    """Random weights, or those of ``config.start_from``."""
    model = OasisModel(config.model)
    model.init_weights()
    if config.start_from:
        loaded = load_checkpoint(Path(config.start_from))
        if loaded.config != config.model:
            raise ValueError(f"{config.start_from} is of another model config than this run's [model]")
        model.load_state_dict(loaded.model.state_dict())
    return model


class Trainer:
    """One stage's losses and one optimiser step."""

    def __init__(self, config: TrainConfig, state: TrainState, device: torch.device) -> None:
        self.config, self.state, self.device = config, state, device
        self.perceptual: STLPIPS | None = None
        self.stage: StageConfig | None = None
        self.sums: dict[str, Tensor] = {}
        self.since = time.monotonic()
        self.restore: Callable[[Tensor], Tensor] = state.model

    def enter(self, stage: StageConfig, batch: Batch) -> None:
        """Make ready for ``stage``, of which ``batch`` is about to be used; nothing to do where it is the current one."""
        if stage is self.stage:
            return
        self.stage = stage
        log.info("stage %s: %s", stage.name, stage)
        if stage.loss.perceptual and self.perceptual is None:
            self.perceptual = STLPIPS().to(self.device).requires_grad_(False)
        if stage.routed and not self.state.calibrated:
            calibrate(self.config, self.state, batch)
        routing = self.state.routing if stage.routed else _dense(self.state.routing)
        self.restore = _RestoreClips(self.state.model, routing)
        if self.device.type == "cuda":
            self.restore = _as_graph(self.restore, upsample(batch.lr, batch.hr.shape[-1]))

    def step(self, batch: Batch, lr: float) -> None:
        """Restore a batch, weigh the losses, move the weights and their average."""
        state, stage = self.state, self.stage
        assert stage is not None
        set_learning_rate(state.optimizer, lr)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            pixels = upsample(batch.lr, batch.hr.shape[-1])
            sr = (self.restore(pixels).float() + 1) / 2
            terms, stacks = self.terms(sr, batch.hr, stage.loss)
            total = torch.stack([getattr(stage.loss, name) * value for name, value in terms.items()]).sum()
        state.optimizer.zero_grad(set_to_none=True)
        state.guard.scale(total).backward()
        state.guard.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.config.clip_gradient)
        state.guard.step(state.optimizer)
        state.guard.update()
        if stacks is not None:
            terms["adversary"] = self.adversary_step(*stacks)
        state.step += 1
        state.update_ema(self.config.ema)
        self.note({**terms, "norm": norm}, lr)

    def terms(
        self, sr: Tensor, hr: Tensor, weights: LossWeights
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor] | None]:
        """The loss terms in use, unweighted, and the frames that the discriminator shall learn from."""
        terms = {"pixel": losses.charbonnier(sr, hr)}
        if weights.low:
            terms["low"] = losses.charbonnier(losses.low_pass(sr), losses.low_pass(hr))
        if weights.motion:
            terms["motion"] = losses.motion(sr, hr)
        if weights.perceptual and self.perceptual is not None:
            terms["perceptual"] = self.perceptual(*losses.one_frame(sr, hr, self.state.generator))
        if not weights.adversarial:
            return terms, None
        fake, real = losses.stacked_frames(sr, hr, self.state.generator)
        self.state.adversary.requires_grad_(False)
        logits, ours = self.state.adversary(fake)
        terms["adversarial"] = losses.fool(logits)
        if weights.feature:
            with torch.no_grad():
                theirs = self.state.adversary(real)[1]
            terms["feature"] = losses.feature_match(ours, theirs)
        return terms, (fake.detach(), real)

    def adversary_step(self, fake: Tensor, real: Tensor) -> Tensor:
        """One step of the discriminator; returns its loss."""
        state = self.state
        state.adversary.requires_grad_(True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits, _ = state.adversary(torch.cat([real, fake]))
            loss = losses.tell_apart(*logits.chunk(2))
        state.adversary_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.adversary.parameters(), 10.0)
        state.adversary_optimizer.step()
        return loss.detach()

    def note(self, values: dict[str, Tensor], lr: float) -> None:
        """Sum up on the device; every ``LOG_EVERY`` steps append one JSON line to the log."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()
        if self.state.step % LOG_EVERY or self.stage is None:
            return
        means = {name: round(float(value) / LOG_EVERY, 5) for name, value in self.sums.items()}
        took, self.since, self.sums = time.monotonic() - self.since, time.monotonic(), {}
        line = {
            "step": self.state.step,
            "stage": self.stage.name,
            "lr": lr,
            "ms": round(took / LOG_EVERY * 1e3, 1),
            **means,
        }
        with (Path(self.config.out) / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s", line)
        if means["pixel"] != means["pixel"]:
            raise FloatingPointError(f"the loss is not a number at step {self.state.step}; lower the learning rate")


def upsample(lr: Tensor, size: int) -> Tensor:
    """Low-resolution frames in [0, 1] to the target grid, as the pipeline does it: ``(B, 3, T, size, size)`` in [-1, 1]."""
    frames = rearrange(lr.float(), "b c t h w -> (b t) c h w")
    big = F.interpolate(frames, size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return rearrange(big, "(b t) c h w -> b c t h w", b=lr.shape[0]) * 2 - 1


def _dense(routing: RoutingSpec) -> RoutingSpec:
    return RoutingSpec.uniform(routing.depth, routing.heads, HeadPattern.GLOBAL, routing.window)


class _RestoreClips(nn.Module):
    """The model with its routing fixed."""

    def __init__(self, model: OasisModel, routing: RoutingSpec) -> None:
        super().__init__()
        self.model, self.routing = model, routing

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels, self.routing)


def fuse_blocks(model: OasisModel) -> None:
    """Compile what surrounds the attention call: it does not depend on the routing, so one compilation serves all blocks."""
    for block in model.dit.blocks:
        assert isinstance(block, Block)
        block.before = torch.compile(block.before, dynamic=False)  # type: ignore[method-assign]
        block.after = torch.compile(block.after, dynamic=False)  # type: ignore[method-assign]


def _as_graph(module: nn.Module, pixels: Tensor) -> nn.Module:
    """Forward and backward as CUDA graphs: thousands of small kernels then cost the host two launches."""
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        return cast(nn.Module, torch.cuda.make_graphed_callables(module, (pixels.clone(),)))


def calibrate(config: TrainConfig, state: TrainState, batch: Batch) -> None:
    """Specialise the heads: KL of localising each, on a batch of training clips, then the budget's assignment."""
    clips = upsample(batch.lr, batch.hr.shape[-1]).split(1)
    kl = measure(state.averaged_model(), clips, config.routing.window)
    state.routing = assign(kl, config.routing.global_share, config.routing.intra_frame_share, config.routing.window)
    state.calibrated = True
    record = {"routing": json.loads(state.routing.to_json()), "kl": {p.value: v.tolist() for p, v in kl.items()}}
    (Path(config.out) / "routing.json").write_text(json.dumps(record), encoding="utf-8")
    for pattern in HeadPattern:
        log.info("routing: %.1f %% of heads %s", 100 * state.routing.share(pattern), pattern.value)


@torch.no_grad()
def save_preview(path: Path, state: TrainState, batch: Batch, clips: int = 4) -> None:
    """PNG: upsampled input | averaged model's output | ground truth, middle frame of some clips."""
    from PIL import Image

    model, middle = state.averaged_model(), batch.hr.shape[2] // 2
    pixels = upsample(batch.lr[:clips], batch.hr.shape[-1])
    sr = (model(pixels, state.routing) + 1) / 2
    rows = torch.stack([(pixels + 1) / 2, sr, batch.hr[:clips].float()])[:, :, :, middle]
    picture = rearrange(rows, "k b c h w -> (b h) (k w) c").clamp(0, 1).mul(255).round().byte().cpu().numpy()
    Image.fromarray(picture).save(path)


def write_weights(config: TrainConfig, state: TrainState) -> Path:
    """Averaged weights in fp16 as an OASIS checkpoint, ``<out>/<model name>.safetensors``."""
    path = Path(config.out) / f"{config.model.name}.safetensors"
    notes = f"trained by `oasis train`: {state.step} of {config.steps} steps, seed {config.seed}"
    metadata = Metadata(config.model, state.routing, config.licence, notes)
    save_checkpoint(path, state.averaged_model(), metadata, torch.float16)
    return path

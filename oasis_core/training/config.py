"""A training run as data: what to build, and the stages it goes through."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..checkpoints.read import read_metadata
from ..model import OasisConfig
from ..model.vae_config import WanDecoderConfig
from .losses import PERIODS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


POOL = 8
"""Batches that are kept for their next use."""


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term; 0 switches it off. Pixels are in [0, 1] for every term."""

    pixel: float = 1.0
    """Charbonnier distance to the ground truth."""
    low: float = 0.0
    """The same after area-downscaling both by 4: honesty in the low frequencies, no colour shift."""
    frequency: float = 0.0
    """L1 of the difference's spectrum: no frequency is cheap to leave out."""
    grid: float = 0.0
    """Power at multiples of the tokens' frequency against the ground truth's: no weave (``losses.grid``)."""
    motion: float = 0.0
    """L1 of frame differences: steadiness."""
    perceptual: float = 0.0
    """ST-LPIPS (VGG) on random frames and offsets."""
    teacher: float = 0.0
    """Charbonnier distance to what Real-ESRGAN x4plus makes of the low-quality frames (``teacher.py``), on random frames."""
    adversarial: float = 0.0
    """Logistic loss against the discriminator (which trains only where this is above 0)."""
    feature: float = 0.0
    """L1 between the discriminator's features of output and ground truth."""

    def at(self, fidelity: float, ramp: float) -> LossWeights:
        """The weights of a step: perceptual terms fade with fidelity, the adversarial ones also follow ``ramp``."""
        felt = 1 - fidelity
        return replace(
            self,
            perceptual=self.perceptual * felt,
            teacher=self.teacher * felt,
            adversarial=self.adversarial * felt * ramp,
            feature=self.feature * felt * ramp,
        )


@dataclass(frozen=True)
class StageConfig:
    """One stretch of training with constant data and losses; the learning rate follows a half cosine inside it."""

    name: str
    steps: int
    batch: int = 16
    """Clips per step and process."""
    frames: int = 7
    """Frames per clip; 1 + frame_group * k."""
    size: int = 256
    """Side of the square ground-truth crop, pixels."""
    lr: float = 4e-4
    """Learning rate at the stage's start, after ``warmup``."""
    lr_end: float = 4e-4
    """Learning rate at its end."""
    warmup: int = 0
    """Steps of linear warm-up from 0."""
    mode: Literal["consistent", "walk"] = "consistent"
    """Degradation parameters: one draw a clip, or walking from frame to frame."""
    other_scales: float = 0.0
    """Share of steps at a scale factor drawn from ``SCALES`` instead of 4."""
    faithful: float = 0.0
    """Share of steps that train fidelities above 0: what is perceptual then counts by 1 - fidelity."""
    between: float = 0.5
    """Share of those that draw one of ``FIDELITIES`` steps; the others are at 1."""
    ramp: int = 0
    """Steps in which the adversarial weight rises from 0."""
    reuse: int = 1
    """Times each batch is used, each time turned another way (1 to 4): data that cost too much to make."""
    train: Literal["all", "transformer", "decoder"] = "all"
    """What moves. "decoder": the (residual) decoder learns to draw sharp frames from a code that holds what the low-quality
    ones lack (``residual_coder.py``); "transformer": all but the decoder, which learn to say that code."""
    routed: bool = False
    """Routing: False: every head global (dense); True: specialised (calibrated before the first such stage)."""
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.frames < 1:
            raise ValueError(f"stage {self.name!r}: steps, batch and frames must be at least 1")
        if self.mode not in ("consistent", "walk"):
            raise ValueError(f"stage {self.name!r}: mode is {self.mode!r}; allowed: consistent, walk")
        if self.train not in ("all", "transformer", "decoder"):
            raise ValueError(f"stage {self.name!r}: train is {self.train!r}; allowed: all, transformer, decoder")
        if self.train == "decoder" and (self.faithful or self.routed or self.loss.adversarial):
            raise ValueError(f"stage {self.name!r}: a decoder stage has no faithful, routed or adversarial part")
        if not 0 <= self.faithful <= 1:
            raise ValueError(f"stage {self.name!r}: faithful is {self.faithful}; it must be from 0 to 1")
        if not 0 <= self.between <= 1:
            raise ValueError(f"stage {self.name!r}: between is {self.between}; it must be from 0 to 1")
        if not 1 <= self.reuse <= 4:
            raise ValueError(f"stage {self.name!r}: reuse is {self.reuse}; it must be from 1 to 4")


@dataclass(frozen=True)
class RoutingBudget:
    """How many heads may cost how much; the calibration decides which (``routing/calibration.py``)."""

    global_share: float = 0.125
    """At most this share of all heads stays global."""
    intra_frame_share: float = 0.25
    """At most this share of all heads is intra-frame."""
    window: tuple[int, int, int] = (3, 5, 5)


@dataclass(frozen=True)
class TrainConfig:
    """A whole run."""

    model: OasisConfig
    stages: tuple[StageConfig, ...]
    data: str = "data/train"
    """Folder with ``clips/`` and ``images/``."""
    drop: tuple[str, ...] = ()
    """Glob patterns of files to leave out."""
    validation: tuple[str, ...] = ()
    """Glob patterns of clips to hold out: every ``save_every`` steps the averaged model is scored on them."""
    validation_seen: tuple[str, ...] = ()
    """Glob patterns of clips that are trained on, scored beside them: what is learned by heart is better there alone."""
    use_licences: str | None = None
    """Regular expression that a file's licence (column 3 of the data's LICENCES.tsv) must match; None: use all."""
    still_share: float = 0.6
    """Share of samples made from still photographs (animated): they carry most of the crisp texture, clips the real motion."""
    recolor_share: float = 0.0
    """Share of samples that get another light and other colours, so that fewer are learned by heart."""
    out: str = "out/train"
    """Folder for states, weights, log and previews."""
    start_from: str = ""
    """Checkpoint to start from instead of random weights; the TOML then needs no [model]."""
    decoder: str = ""
    """Wan 2.1 VAE whose decoder a full-size model is trained through. It stays as it is, and is not saved with the model."""
    routing: RoutingBudget = field(default_factory=RoutingBudget)
    seed: int = 0
    ema: float = 0.999
    """Decay of the exponential moving average of the weights, per step."""
    lora_rank: int = 0
    """0: every weight is trained. Above: the transformer's linear layers only through adapters of that rank."""
    checkpoint_blocks: bool = False
    """Keep only the blocks' inputs for the backward pass and compute the rest again: large models, a quarter more time.
    The network then runs without CUDA graphs."""
    discriminator_width: int = 48
    discriminator_lr: float = 2e-4
    optimizer: Literal["adamw", "muon"] = "adamw"
    """"muon": the matrices of the transformer's blocks move by orthogonalised updates (Muon, of the size of AdamW's: arXiv
    2502.16982), all else by AdamW."""
    adversary_limit: float = 1.0
    """The adversarial terms' gradient at the output is scaled down to this many times the other terms'."""
    clip_gradient: float = 1.0
    """Gradients are scaled down to this norm."""
    save_every: int = 1000
    """Steps between saved states, each with the weights as they are then."""
    licence: str = "Apache-2.0"

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer is {self.optimizer!r}; allowed: adamw, muon")
        if self.optimizer == "muon" and self.lora_rank:
            raise ValueError("optimizer is muon, but lora_rank trains adapters; take adamw")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}; it must be 0 (train every weight) or more")
        if not 0 <= self.recolor_share <= 1:
            raise ValueError(f"recolor_share is {self.recolor_share}; it must be from 0 (none) to 1 (all)")
        if not 0 <= self.still_share <= 1:
            raise ValueError(f"still_share is {self.still_share}; it must be from 0 (clips alone) to 1 (stills alone)")
        if not self.stages:
            raise ValueError("the training config has no [[stages]]")
        if any(s.faithful for s in self.stages) and self.model.faithful_timestep is None:
            raise ValueError("a stage trains fidelity (faithful above 0), but [model] has no faithful_timestep")
        if any(s.train == "decoder" for s in self.stages) and not getattr(self.model.decoder, "residual", False):
            raise ValueError("a stage trains the decoder alone; that needs residual = true in [model.decoder]")
        if self.decoder and not isinstance(self.model.decoder, WanDecoderConfig):
            raise ValueError(f"decoder is {self.decoder!r}, but model {self.model.name!r} brings its own; leave it out")
        group = self.model.frame_group
        for stage in self.stages:
            if (stage.frames - 1) % group:
                raise ValueError(f"stage {stage.name!r}: frames is {stage.frames}; this model takes 1 + {group} * k")
            if stage.size % self.model.pixel_multiple[0] or stage.size % 4:
                raise ValueError(
                    f"stage {stage.name!r}: size is {stage.size}; it must be a multiple of {self.model.pixel_multiple[0]}"
                )
            if stage.loss.grid and stage.size < PERIODS * self.model.pixel_multiple[0]:
                raise ValueError(
                    f"stage {stage.name!r}: size is {stage.size}; the loss grid needs {PERIODS * self.model.pixel_multiple[0]} "
                    "pixels or more, or leave it out"
                )

    @property
    def steps(self) -> int:
        return sum(s.steps for s in self.stages)

    def source(self, step: int) -> tuple[int, int]:
        """Which step's batch step ``step`` uses, and for which time (0: its own, new).

        Batches are used again ``POOL`` steps later, so that neighbouring steps see different pictures.
        """
        stage, offset = self.stage_at(step)
        turn = offset % (POOL * stage.reuse) // POOL
        return step - turn * POOL, turn

    def stage_at(self, step: int) -> tuple[StageConfig, int]:
        """The stage of global step ``step`` and the step inside it."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise IndexError(f"step is past the last stage by {step}")


def load_config(path: Path) -> TrainConfig:
    """Read a TOML file. Raises FileNotFoundError or ValueError, one line that names file and field."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"training config not found: {path}") from None
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"{path} is not readable TOML: {e}") from None
    try:
        model = _model(data)
        stages = tuple(_stage(s) for s in data.pop("stages", []))
        routing = _build(RoutingBudget, data.pop("routing", {}))
        return _build(TrainConfig, {**data, "model": model, "stages": stages, "routing": routing})
    except (ValueError, KeyError) as e:
        raise ValueError(f"{path}: {e}") from None


def _model(data: dict[str, Any]) -> OasisConfig:
    if "model" in data:
        return OasisConfig.from_dict(data.pop("model"))
    if not data.get("start_from"):
        raise ValueError("there is neither a [model] nor a start_from whose model to take")
    return read_metadata(Path(data["start_from"])).config


def _stage(data: dict[str, Any]) -> StageConfig:
    return _build(StageConfig, {**data, "loss": _build(LossWeights, data.get("loss", {}))})


def _build(cls: type, data: dict[str, Any]) -> Any:
    """A dataclass from a table; unknown keys are an error that names them."""
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(data) - known):
        raise ValueError(f"unknown settings {unknown}; known: {sorted(known)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})

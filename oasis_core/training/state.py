"""Everything a run needs to go on exactly where it stopped."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model import OasisModel
from ..model.decoders import PixelDecoder
from ..routing.spec import HeadPattern, RoutingSpec
from .config import StageConfig, TrainConfig
from .discriminator import UNetDiscriminator
from .lora import add_adapters, merged
from .muon import Muon
from .residual_coder import ResidualCoder


class TrainState:
    """Model, its average, discriminator, optimisers, routing and step; every random draw follows from seed and step."""

    def __init__(
        self, config: TrainConfig, model: OasisModel, routing: RoutingSpec | None, *, device: torch.device
    ) -> None:
        """``routing``: of a model that starts from a specialised checkpoint; None: dense until calibrated."""
        self.model = model.to(device).train().requires_grad_(True)
        self.given = not isinstance(self.model.decoder, PixelDecoder)
        """The decoder came from a file of its own: it stays as it is, and is not saved."""
        if self.given:
            self.model.decoder.requires_grad_(False)
        else:
            self.model.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.lora_rank:
            add_adapters(self.model, config.lora_rank)
        self.model.dit.checkpoint_blocks = config.checkpoint_blocks
        self.ema = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}
        """The average of every weight that is trained."""
        self.coder = ResidualCoder(config.model).to(device)
        self.adversary = UNetDiscriminator(config.discriminator_width).to(device)
        self.adversary.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fused = device.type == "cuda"
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = _optimizers(config, self.model, self.coder, fused)
        self.adversary_optimizer = torch.optim.AdamW(
            self.adversary.parameters(), lr=config.discriminator_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=fused
        )
        # Loss scaling is not needed in bf16; the scaler is here because it skips a step with non-finite gradients on the device.
        self.guard = torch.amp.GradScaler(
            device.type, init_scale=1.0, growth_factor=1.001, backoff_factor=0.999, growth_interval=100
        )
        self.step = 0
        dense = RoutingSpec.uniform(model.config.depth, model.config.heads, HeadPattern.GLOBAL, config.routing.window)
        self.routing = routing or dense
        self.calibrated = self.routing.share(HeadPattern.GLOBAL) < 1

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Average the weights; early steps use a shorter memory so that the average is never of the start."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        averages, current = list(self.ema.values()), [p.detach() for p in self.trained]
        torch._foreach_lerp_(averages, current, 1 - decay)

    def averaged_model(self, decoder: bool = True, averaged: bool = True) -> OasisModel:
        """A plain copy of the model with the averaged weights (adapters added in), in eval mode, on its device.

        Args:
            decoder: False leaves out one that was given.
            averaged: False takes the weights as they are, not their average.
        """
        with torch.device("meta"):
            copy = OasisModel(self.model.config)
        weights = {**self._own(), **self.ema} if averaged else self._own()
        plain = {name: t.detach().clone() for name, t in merged(self.model, weights).items()}
        copy.load_state_dict(plain, assign=True)
        if self.given and decoder:
            copy.attach_decoder(self.model.decoder)
        return copy.eval().requires_grad_(False)

    def _own(self) -> dict[str, Tensor]:
        """The model's tensors without a decoder that was given."""
        return {n: t for n, t in self.model.state_dict().items() if not (self.given and n.startswith("decoder."))}

    def select(self, part: str) -> list[Tensor]:
        """Let only that part of the model move ("all", "transformer", "decoder"); returns its parameters."""
        decoder = part == "decoder"
        for name, p in self.model.named_parameters():
            if name in self.ema:
                p.requires_grad_(part == "all" or name.startswith("decoder.") == decoder)
        moving: list[Tensor] = [p for p in self.trained if p.requires_grad]
        return moving + list(self.coder.parameters()) if decoder else moving

    def save(self, path: Path) -> None:
        """Write atomically."""
        part = path.with_name(path.name + ".part")
        torch.save(self._dict(), part)
        os.replace(part, path)

    def load(self, path: Path, device: torch.device) -> None:
        """Go on from what ``save`` wrote. Raises ValueError where it is of another run."""
        try:
            data = torch.load(path, map_location=device, weights_only=True)
            self.model.load_state_dict({**self.model.state_dict(), **_same_names(data["model"], self._own())})
        except (RuntimeError, KeyError) as e:
            raise ValueError(f"{path} is not a state of this run ({e}); remove it to start anew") from None
        for name, value in data["ema"].items():
            self.ema[name].copy_(value)
        self.coder.load_state_dict(data["coder"])
        self.adversary.load_state_dict(data["adversary"])
        for optimizer, was in zip(self.optimizers, data["optimizers"], strict=True):
            optimizer.load_state_dict(was)
        self.adversary_optimizer.load_state_dict(data["adversary_optimizer"])
        self.guard.load_state_dict(data["guard"])
        self.step, self.calibrated = data["step"], data["calibrated"]
        self.routing = RoutingSpec.from_json(data["routing"])

    def _dict(self) -> dict[str, Any]:
        return {
            "model": self._own(),
            "ema": self.ema,
            "coder": self.coder.state_dict(),
            "adversary": self.adversary.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "adversary_optimizer": self.adversary_optimizer.state_dict(),
            "guard": self.guard.state_dict(),
            "step": self.step,
            "calibrated": self.calibrated,
            "routing": self.routing.to_json(),
        }


def _same_names(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """``found``. Raises KeyError where its names are not those expected."""
    if found.keys() != expected.keys():
        raise KeyError(f"it differs in {sorted(found.keys() ^ expected.keys())[:5]}")
    return found


def learning_rate(stage: StageConfig, step: int) -> float:
    """Linear warm-up, then half a cosine from ``lr`` to ``lr_end``."""
    warm = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    done = step / max(1, stage.steps - 1)
    return warm * (stage.lr_end + (stage.lr - stage.lr_end) * 0.5 * (1 + math.cos(math.pi * done)))


def set_learning_rate(optimizers: list[torch.optim.Optimizer], value: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = value


def _optimizers(
    config: TrainConfig, model: OasisModel, coder: ResidualCoder, fused: bool
) -> list[torch.optim.Optimizer]:
    """AdamW with the betas of Real-ESRGAN's Adam and decay on matrices only; Muon where the config says so."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    muon = [p for name, p in named if config.optimizer == "muon" and name.startswith("dit.blocks.") and p.ndim == 2]
    rest = [p for _, p in named if not any(p is m for m in muon)] + list(coder.parameters())
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.99), fused=fused)]
    if muon:
        found.append(Muon(muon, lr=1e-4, weight_decay=0.01))
    return found

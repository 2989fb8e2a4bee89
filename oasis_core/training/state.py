"""Everything a run needs to go on exactly where it stopped."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model import OasisModel
from ..routing.spec import HeadPattern, RoutingSpec
from .config import StageConfig, TrainConfig
from .discriminator import UNetDiscriminator
from .lora import add_adapters, merged
from .residual_coder import ResidualCoder


class TrainState:
    """Model, its average, discriminator, optimisers, routing and step; every random draw follows from seed and step."""

    def __init__(
        self, config: TrainConfig, model: OasisModel, routing: RoutingSpec | None, *, device: torch.device
    ) -> None:
        """``routing``: of a model that starts from a specialised checkpoint; None: dense until calibrated."""
        self.model = model.to(device).train().requires_grad_(True)
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
        # Betas of Real-ESRGAN's Adam; decay on matrices only.
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        matrices = [p for p in self.trained if p.ndim >= 2]
        vectors = [p for p in self.trained if p.ndim < 2]
        matrices += list(self.coder.parameters())
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
            lr=1e-4, betas=(0.9, 0.99), fused=fused,
        )  # fmt: skip
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

    def averaged_model(self) -> OasisModel:
        """A plain copy of the model with the averaged weights (adapters added in), in eval mode, on its device."""
        with torch.device("meta"):
            copy = OasisModel(self.model.config)
        averaged = {**self.model.state_dict(), **self.ema}
        plain = {name: t.detach().clone() for name, t in merged(self.model, averaged).items()}
        copy.load_state_dict(plain, assign=True)
        return copy.eval().requires_grad_(False)

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
            self.model.load_state_dict(data["model"])
        except (RuntimeError, KeyError) as e:
            raise ValueError(f"{path} is not a state of this run ({e}); remove it to start anew") from None
        for name, value in data["ema"].items():
            self.ema[name].copy_(value)
        self.coder.load_state_dict(data["coder"])
        self.adversary.load_state_dict(data["adversary"])
        self.optimizer.load_state_dict(data["optimizer"])
        self.adversary_optimizer.load_state_dict(data["adversary_optimizer"])
        self.guard.load_state_dict(data["guard"])
        self.step, self.calibrated = data["step"], data["calibrated"]
        self.routing = RoutingSpec.from_json(data["routing"])

    def _dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "coder": self.coder.state_dict(),
            "adversary": self.adversary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adversary_optimizer": self.adversary_optimizer.state_dict(),
            "guard": self.guard.state_dict(),
            "step": self.step,
            "calibrated": self.calibrated,
            "routing": self.routing.to_json(),
        }


def learning_rate(stage: StageConfig, step: int) -> float:
    """Linear warm-up, then half a cosine from ``lr`` to ``lr_end``."""
    warm = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    done = step / max(1, stage.steps - 1)
    return warm * (stage.lr_end + (stage.lr - stage.lr_end) * 0.5 * (1 + math.cos(math.pi * done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value

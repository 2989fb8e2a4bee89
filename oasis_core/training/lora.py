"""Low-rank adapters (LoRA, arXiv 2106.09685): a large model is fine-tuned by a hundredth of its weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import OasisModel


class LoRALinear(nn.Linear):
    """``x W^T + b + (x A^T) B^T``: W and b are frozen, A and B are trained; B starts at zero, so nothing changes at first."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight.requires_grad_(False), base.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features, device=device) / math.sqrt(base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype))


def add_adapters(model: OasisModel, rank: int) -> None:
    """Give every linear layer of the transformer's blocks an adapter, and freeze the rest of the blocks.

    What is new in an OASIS beside its base stays trainable as a whole: the projection from pixels, the time embedding,
    the head and the decoder.

    Raises:
        ValueError: a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"the adapters' rank is {rank}; it must be at least 1")
    model.dit.blocks.requires_grad_(False)
    for block in model.dit.blocks:
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, LoRALinear(child, rank))


def merged(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` (by the names of ``model``'s state) with each adapter added into its weight: a plain model's state."""
    plain = {name: t for name, t in tensors.items() if not name.endswith((".lora_a", ".lora_b"))}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            weight = plain[f"{name}.weight"]
            change = tensors[f"{name}.lora_b"].float() @ tensors[f"{name}.lora_a"].float()
            plain[f"{name}.weight"] = (weight.float() + change).to(weight.dtype)
    return plain

"""Muon for many matrices at once: those of one shape are orthogonalised together, and the device is never asked anything.

The method is that of ``torch.optim.Muon`` with ``match_rms_adamw`` (arXiv 2502.16982; tested equal), which goes through the
matrices one by one: for the hundred small ones of our transformers some thousands of kernels a step, and a wait for the device
where gradients may be scaled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration (https://kellerjordan.github.io/posts/muon/)."""
ITERATIONS = 5
TINY = 1e-7
RMS = 0.2
"""Root mean square of AdamW's updates, to which a matrix's update is brought (arXiv 2502.16982, section 2.2)."""


class Muon(torch.optim.Optimizer):
    """Moves matrices by their orthogonalised momentum (Nesterov's), with decoupled weight decay.

    Raises:
        ValueError: a parameter that is no matrix.
    """

    _step_supports_amp_scaling = True
    """A ``GradScaler`` hands over, as a tensor, whether a gradient was not finite: such a step changes nothing."""
    found_inf: Tensor
    grad_scale: Tensor | None

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, weight_decay: float = 0.01, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon moves matrices; a parameter has the shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; a ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[tuple(p.shape)].append(p)
            for alike in shapes.values():
                self._move(alike, group["lr"], group["weight_decay"], group["momentum"])

    def _move(self, params: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        """Matrices of one shape, stacked ``(K, rows, columns)``."""
        scale, found = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        memories = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params]
        gradient, memory = torch.stack([_given(p.grad) for p in params]), torch.stack(memories)
        if scale is not None:
            gradient = gradient / scale
        going = gradient.new_ones(()) if found is None else 1 - found.to(gradient).reshape(())
        if found is not None:
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        memory = memory.lerp(gradient, (1 - momentum) * going)
        update = orthogonalised(gradient.lerp(memory, momentum)).to(gradient.dtype)
        reach = lr * RMS * max(gradient.shape[1:]) ** 0.5
        moved = torch.stack(params) * (1 - lr * weight_decay * going) - update * (reach * going)
        torch._foreach_copy_(memories, list(memory.unbind()))
        torch._foreach_copy_(params, list(moved.unbind()))


def orthogonalised(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T of ``(K, rows, columns)``, in bf16 (singular values of 0.5 to 1.5)."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _given(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient

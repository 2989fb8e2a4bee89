"""FlashAttention 4, 3 or 2, whichever is installed, for global and intra-frame heads.

Version 4 is verified on Hopper with heads of 128. Versions 2 and 3, which come as source, were never run here: they are used
where somebody asks for ``flash-attn`` and has nothing newer, and never by ``auto``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module

import torch
from torch import Tensor

from .backend import Backend, give, in_a_line, installed, is_hopper, needs_nvidia
from .problem import Operation, Problem

log = logging.getLogger(__name__)

HALVES = (torch.float16, torch.bfloat16)


@lru_cache(maxsize=8)
def broken(module: str) -> str | None:
    """Why a module that is installed cannot be imported, which is tried: its own needs may be missing, or of another CUDA."""
    try:
        import_module(module)
    except Exception as e:  # an import of somebody else's code may raise anything
        log.warning("%s is installed but cannot be imported: %s", module, in_a_line(e))
        return f"{module} is installed but cannot be imported ({in_a_line(e)})"
    return None


@dataclass(frozen=True)
class Version:
    """One generation: all have ``flash_attn_func(q, k, v)`` on ``(B, L, N, D)``, which may return more than the output."""

    number: int
    module: str
    oldest: tuple[int, int]
    """Compute capability that it needs."""
    widest: int
    """Largest head."""
    verified: tuple[int, ...]
    """Heads with which it was tested against the reference, and measured, on Hopper."""


VERSIONS = (
    Version(4, "flash_attn.cute", (9, 0), 128, (128,)),
    Version(3, "flash_attn_interface", (9, 0), 256, ()),
    Version(2, "flash_attn.flash_attn_interface", (8, 0), 256, ()),
)


class FlashAttention(Backend):
    """The newest version that is installed and runs on the device."""

    name = "flash-attn"
    operations = frozenset({Operation.GLOBAL, Operation.INTRA_FRAME})

    def __init__(self, versions: tuple[Version, ...] = VERSIONS) -> None:
        self._versions = versions

    @cached_property
    def _installed(self) -> tuple[Version, ...]:
        return tuple(v for v in self._versions if installed(v.module))

    def version(self, device: torch.device) -> Version | None:
        """The one that is used there."""
        able = torch.cuda.get_device_capability(device)
        return next((v for v in self._installed if able >= v.oldest and not broken(v.module)), None)

    def missing(self, device: torch.device) -> str | None:
        if why := needs_nvidia(device):
            return why
        if not self._installed:
            return "pip install flash-attn-4 (Linux), or choose sdpa or auto"
        if self.version(device) is None:
            a, b = torch.cuda.get_device_capability(device)
            for version in self._installed:
                if (a, b) >= version.oldest and (why := broken(version.module)):
                    return f"{why}; choose sdpa or auto"
            return f"no installed FlashAttention runs on compute capability {a}.{b}; choose sdpa or auto"
        return None

    def preferred(self, problem: Problem) -> bool:
        version = self.version(problem.device)
        return version is not None and problem.head_dim in version.verified and is_hopper(problem.device)

    def supports(self, problem: Problem) -> str | None:
        if why := self.outside(problem) or self.missing(problem.device):
            return why
        version = self.version(problem.device)
        assert version is not None
        if problem.trained:
            return "its backward pass is not used here"
        if problem.dtype not in HALVES:
            return f"it computes in bf16 or fp16, not in {problem.dtype}"
        if problem.head_dim % 8 or problem.head_dim > version.widest:
            return f"heads of {problem.head_dim} channels; it takes multiples of 8 up to {version.widest}"
        return None

    def run(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
        version = self.version(problem.device)
        assert version is not None
        attend: Callable[..., Tensor | tuple[Tensor, ...]] = import_module(version.module).flash_attn_func
        with torch.cuda.device_of(q):  # it launches on the current one
            if problem.operation is Operation.GLOBAL:
                return give(_first(attend(q, k, v)), out)
            b, frames = q.shape[0], problem.grid.t
            split = (
                x.unflatten(1, (frames, -1)).flatten(0, 1) for x in (q, k, v)
            )  # (B * t, frame, N, D): views if B is 1
            return give(_first(attend(*split)).unflatten(0, (b, frames)).flatten(1, 2), out)


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output, of versions that return the log-sum-exp beside it."""
    return result[0] if isinstance(result, tuple) else result

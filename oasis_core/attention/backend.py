"""What a backend is: one predicate, one call. Exact against ``reference.py``."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from importlib.util import find_spec

import torch
from torch import Tensor

from .problem import Operation, Problem

log = logging.getLogger(__name__)


class Backend(ABC):
    """Code that computes some of the operations on q, k, v ``(B, L, N, D)`` in raster order."""

    name: str
    operations: frozenset[Operation]
    """Those that it has code for, whatever the sizes."""
    device: torch.device | None = None
    """The one that it was chosen for, maybe before the model is there."""

    @abstractmethod
    def missing(self, device: torch.device) -> str | None:
        """Why it cannot run on a device at all and what helps, one line; None where it can."""

    @abstractmethod
    def supports(self, problem: Problem) -> str | None:
        """Why it cannot run the problem, one line; None where it can."""

    @abstractmethod
    def run(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
        """The output ``(B, L, N, D)`` in q's dtype, of a problem that is supported.

        ``out``: where it goes, channels side by side, other strides as they are; None: a new tensor.
        """

    def chosen(self, problem: Problem) -> Backend:
        """What will run it: itself, or the one that it leaves it to."""
        return self

    def preferred(self, problem: Problem) -> bool:
        """Whether it was tested and measured on such hardware, with such heads: ``auto`` takes nothing else."""
        return True

    def outside(self, problem: Problem) -> str | None:
        """Why the operation is none of its own; None where it is."""
        return None if problem.operation in self.operations else f"it has no {problem.operation.value} attention"


def give(result: Tensor, out: Tensor | None) -> Tensor:
    """``result``, copied to ``out`` where there is one."""
    return result if out is None else out.copy_(result)


def installed(module: str) -> bool:
    """Whether a module could be found; it is not imported, only the package above it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False
    except Exception as e:  # the import of that may raise anything: a build for another CUDA, a stand-in without a spec
        log.warning("%s cannot be looked for: %s", module, in_a_line(e))
        return False


def in_a_line(e: Exception) -> str:
    """An error as part of a message."""
    lines = str(e).strip().splitlines()
    return f"{type(e).__name__}: {lines[0][:120]}" if lines else type(e).__name__


def is_hopper(device: torch.device) -> bool:
    """Whether it is of the kind that everything was measured on."""
    return torch.cuda.get_device_capability(device)[0] == 9


def needs_nvidia(device: torch.device) -> str | None:
    """Why code for NVIDIA's GPUs cannot run there."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU and the model is on {device}; choose sdpa or auto"
    return None

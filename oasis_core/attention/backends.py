"""Which code runs the three operations; which of it ``auto`` takes for a problem. Measured numbers: docs/attention.md."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..routing.extent import Extent
from . import sdpa
from .backend import Backend, give, is_hopper, needs_nvidia
from .cpu_window import gathered_window_attention
from .flash import HALVES, FlashAttention
from .grid import TokenGrid
from .problem import EVERYTHING, OWN_FRAME, Operation, Problem
from .triton_here import needs_triton

log = logging.getLogger(__name__)


class Sdpa(Backend):
    """torch's scaled_dot_product_attention with its own choice among its kernels; windows in tiles (``sdpa.py``).

    Runs everything everywhere, and has a backward pass.
    """

    name = "sdpa"
    operations = frozenset(Operation)

    def missing(self, device: torch.device) -> str | None:
        return None

    def supports(self, problem: Problem) -> str | None:
        return None

    def run(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
        if problem.operation is Operation.GLOBAL:
            return give(sdpa.global_attention(q, k, v), out)
        if problem.operation is Operation.INTRA_FRAME:
            return give(sdpa.intra_frame_attention(q, k, v, problem.grid), out)
        if out is None and not problem.trained:
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if out is not None and q.device.type == "cpu":
            return gathered_window_attention(q, k, v, problem.grid, problem.window, out)
        return sdpa.window_attention(q, k, v, problem.grid, problem.window, out)


class Cudnn(Backend):
    """cuDNN's kernels through torch."""

    name = "cudnn"
    operations = frozenset({Operation.GLOBAL, Operation.INTRA_FRAME})
    OLDEST = (8, 0)
    """Compute capability that cuDNN's fused attention needs."""
    WIDEST = 128

    def missing(self, device: torch.device) -> str | None:
        if why := needs_nvidia(device):
            return why
        if not torch.backends.cudnn.is_available() or not hasattr(torch.backends.cuda, "can_use_cudnn_attention"):
            return "this torch has no cuDNN attention; choose sdpa or auto"
        return None if torch.cuda.get_device_capability(device) >= self.OLDEST else "it needs an Ampere GPU or newer"

    def supports(self, problem: Problem) -> str | None:
        if why := self.outside(problem) or self.missing(problem.device):
            return why
        if problem.dtype not in HALVES:
            return f"it computes in bf16 or fp16, not in {problem.dtype}"
        if problem.head_dim % 8 or problem.head_dim > self.WIDEST:
            return f"heads of {problem.head_dim} channels; it takes multiples of 8 up to {self.WIDEST}"
        return None if cudnn_takes(problem) else "this torch does not give such sizes to cuDNN; choose sdpa or auto"

    def preferred(self, problem: Problem) -> bool:
        return is_hopper(problem.device)

    def run(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return SDPA.run(problem, q, k, v, out)


def cudnn_takes(problem: Problem) -> bool:
    """Whether torch's cuDNN attention would run the problem: that depends on torch, cuDNN, the GPU and the sizes (a single key is
    refused, say), so torch is asked, with a tensor of that shape that takes no memory."""
    grid, heads, head_dim = problem.grid, problem.heads, problem.head_dim
    batch, length = (1, grid.length) if problem.operation is Operation.GLOBAL else (grid.t, grid.frame)
    x = torch.empty(head_dim, dtype=problem.dtype, device=problem.device)
    x = x.as_strided((batch, heads, length, head_dim), (0, 0, 0, 1))
    with torch.cuda.device_of(x):
        return torch.backends.cuda.can_use_cudnn_attention(SDPAParams(x, x, x, None, 0.0, False, False))


class TritonWindow(Backend):
    """The window kernel (``triton_window.py``)."""

    name = "triton"
    operations = frozenset({Operation.WINDOW})
    WIDEST = 128
    """Channels of a head: what fits the shared memory of consumers' GPUs, and is tested."""
    DTYPES = (torch.float32, *HALVES)

    def missing(self, device: torch.device) -> str | None:
        return needs_triton(device)

    def supports(self, problem: Problem) -> str | None:
        if why := self.outside(problem) or self.missing(problem.device):
            return why
        if problem.trained:
            return "it has no backward pass"
        if problem.dtype not in self.DTYPES:
            return f"it computes in fp32, bf16 or fp16, not in {problem.dtype}"
        if problem.head_dim > self.WIDEST:
            return f"heads of {problem.head_dim} channels; it takes up to {self.WIDEST}"
        return None

    def run(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
        from .triton_window import window_attention  # Triton may be missing

        return window_attention(q, k, v, problem.grid, problem.window, out=out)[0]


SDPA, CUDNN, FLASH, TRITON = Sdpa(), Cudnn(), FlashAttention(), TritonWindow()
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (SDPA, CUDNN, FLASH, TRITON)}
"""By the name that users give."""
NAMES = ("auto", *BACKENDS)
FASTEST: dict[Operation, tuple[Backend, ...]] = {
    Operation.GLOBAL: (FLASH, CUDNN, SDPA),
    Operation.INTRA_FRAME: (FLASH, CUDNN, SDPA),
    Operation.WINDOW: (TRITON, SDPA),
}
"""What ``auto`` tries, fastest first, as measured on Hopper (docs/attention.md). cuDNN before sdpa: recent torch takes
cuDNN there by itself (equal within 5 %, either way), older ones FlashAttention 2, which takes 1.6 times as long."""


class Choice(Backend):
    """What a user chose: ``auto``, or a backend by name, which then runs every operation that it has or says why it cannot.

    Operations that it has no code for are left to ``auto``'s choice.
    """

    operations = frozenset(Operation)

    def __init__(self, named: Backend | None = None, device: torch.device | None = None) -> None:
        self.name, self.device = "auto" if named is None else named.name, device
        self._named = named
        self._known: dict[Problem, Backend] = {}
        self._told: set[tuple[Operation, str]] = set()

    def missing(self, device: torch.device) -> str | None:
        return None if self._named is None else self._named.missing(device)

    def supports(self, problem: Problem) -> str | None:
        if self._named is None or self._named.outside(problem):
            return None
        return self._named.supports(problem)

    def chosen(self, problem: Problem) -> Backend:
        """What runs it. Raises ValueError, one line, where what was chosen cannot."""
        if problem not in self._known:
            if why := self.supports(problem):
                raise ValueError(f"attention {self.name} cannot be used: {why}")
            own = self._named is not None and self._named.outside(problem) is None
            self._known[problem] = self._named if own and self._named is not None else fastest(problem)
            told = problem.operation, self._known[problem].name
            if told not in self._told:  # shapes differ: tiles, last chunks
                self._told.add(told)
                log.info("%s attention runs on %s", told[0].value, told[1])
        return self._known[problem]

    def run(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
        return self.chosen(problem).run(problem, q, k, v, out)


def fastest(problem: Problem) -> Backend:
    """The fastest backend that can run a problem, of those that are preferred for it: measured, not guessed."""
    if problem.device.type != "cuda" or problem.trained:
        return SDPA
    able = (b for b in FASTEST[problem.operation] if b.supports(problem) is None and b.preferred(problem))
    return next(able)  # sdpa runs everything


def backend_for(
    name: str, device: torch.device, dtype: torch.dtype | None = None, head_dim: int | None = None
) -> Backend:
    """What that name stands for.

    Raises:
        ValueError: there is no such backend, or it cannot run on ``device``, or, if they are given, with heads of that dtype
            and size; one line.
    """
    if name == "auto":
        return Choice(device=device)
    if name not in BACKENDS:
        raise ValueError(f"attention is {name!r}; allowed: {', '.join(NAMES)}")
    if why := BACKENDS[name].missing(device):
        raise ValueError(f"attention {name} cannot be used: {why}")
    choice = Choice(BACKENDS[name], device)
    if dtype is not None and head_dim is not None:
        for extent in (EVERYTHING, OWN_FRAME, Extent(1, 1, 1)):
            if why := choice.supports(Problem(TokenGrid(2, 8, 8), extent, 1, head_dim, dtype, device)):
                raise ValueError(f"attention {name} cannot be used: {why}")
    return choice

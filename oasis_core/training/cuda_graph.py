"""Forward and backward of a network as CUDA graphs: thousands of small kernels then cost the host two launches."""

from __future__ import annotations

import logging
from typing import cast

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

Sample = tuple[Tensor, ...]
"""Arguments of the shapes that every later call has."""


def as_graph(module: nn.Module, sample: Sample) -> nn.Module:
    """The same on CUDA as graphs, in bf16 by autocast; where they cannot be had, the module itself."""
    hold_unreached(module, sample)
    for last in (False, True):
        try:
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                return cast(nn.Module, torch.cuda.make_graphed_callables(module, tuple(x.clone() for x in sample)))
        except RuntimeError as e:
            # Code that was compiled while some parameters stood still may leave their gradients out: once more with new code.
            torch.compiler.reset()
            if last:
                log.warning("without CUDA graphs, which is slower: %s", str(e).strip().split("\n")[0])
    return module


def hold_unreached(module: nn.Module, sample: Sample) -> list[str]:
    """Let parameters that get no gradient stand still, since a graph needs one for all that move; tells and returns them.

    Only those that get none once compiled code is made anew: what was compiled while they stood still may know of none.
    """
    if not unreached(module, sample):
        return []
    torch.compiler.reset()
    missing = unreached(module, sample)
    if missing:
        log.warning("no gradient reaches %d parameters, which stand still: %s", len(missing), ", ".join(missing))
        for name in missing:
            module.get_parameter(name).requires_grad_(False)
    return missing


def unreached(module: nn.Module, sample: Sample) -> list[str]:
    """Names of the parameters that require a gradient and get none."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    kind = sample[0].device.type
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        out = module(*sample)
    found = torch.autograd.grad(out.float().sum(), [p for _, p in named], allow_unused=True)
    return [name for (name, _), gradient in zip(named, found, strict=True) if gradient is None]

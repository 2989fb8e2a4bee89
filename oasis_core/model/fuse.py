"""Compiled models: ``torch.compile`` for what does not depend on the routing, so that one compilation serves all blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .decoders import PixelDecoder
from .layers import Block
from .oasis import OasisModel


def fuse_model(model: OasisModel, dynamic: bool | None = False) -> None:
    """Compile the pixel decoder, and what surrounds the attention call in each block. It happens when they first run.

    Args:
        dynamic: as for ``torch.compile``: False, one compilation for each shape; None, the second shape makes them general.

    Raises (when it first runs):
        RuntimeError: the compiler is missing or fails; one line with the remedy.
    """
    for block in model.dit.blocks if model.dit.folded is None else ():  # folded, they are kernels and matrix products
        assert isinstance(block, Block)
        block.before = _compiled(block.before, dynamic)  # type: ignore[method-assign]
        block.before_values = _compiled(block.before_values, dynamic)  # type: ignore[method-assign]
        block.after = _compiled(block.after, dynamic)  # type: ignore[method-assign]
    if not isinstance(model.decoder, PixelDecoder):
        return  # a decoder with a state is convolutions and kernels of its own
    model.decoder.forward = _compiled(model.decoder.forward, dynamic)  # type: ignore[method-assign]


def _compiled(function: Callable[..., Any], dynamic: bool | None) -> Callable[..., Any]:
    compiled = torch.compile(function, dynamic=dynamic)

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except torch._dynamo.exc.BackendCompilerFailed as e:
            reason = str(e.inner_exception).strip().split("\n")[0]
            raise RuntimeError(f"torch.compile failed ({reason}); switch compile off") from e

    return run

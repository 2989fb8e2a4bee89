"""Whether oneDNN's products can be asked for more than a product."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def onednn_takes(x: Tensor) -> bool:
    """Whether it is there with products that add, or apply a function, to results, as torch.compile uses them; for ``x``."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and _takes(x.dtype)


@lru_cache(maxsize=4)
def _takes(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not hasattr(torch.ops.mkldnn, "_convolution_pointwise_"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())

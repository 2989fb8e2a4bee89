"""What is done to each token by itself between two matrix products: as Triton kernels where there are any, else by torch.

All take rows ``(tokens, channels)`` with the channels side by side, and have no backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import EPS, fused
from .onednn import onednn_takes

E4M3 = torch.float8_e4m3fn
E4M3_MAX = torch.finfo(E4M3).max
LEAST_SCALE = 1e-12 / E4M3_MAX
"""Of a row of zeros."""


def layer_norm(x: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm without weights of ``x + bias``, bias ``(channels,)``; in fp32, in x's dtype."""
    if fused(x):
        from .triton_rows import norm  # Triton may be missing

        return norm(x, EPS, bias=bias)[0]
    return F.layer_norm(x + bias.to(x.dtype), x.shape[-1:], None, None, EPS)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm with a weight ``(channels,)``; in fp32, in x's dtype."""
    if fused(x):
        from .triton_rows import norm

        return norm(x, EPS, centred=False, weight=weight)[0]
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def layer_norm_fp8(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """``layer_norm`` in e4m3, and the scales ``(rows, 1)`` in fp32 to multiply it by."""
    if fused(x):
        from .triton_rows import norm

        return norm(x, EPS, bias=bias, fp8=True)
    return to_fp8(F.layer_norm(x.float() + bias.float(), x.shape[-1:], None, None, EPS))


def to_fp8(x: Tensor, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """Rows in e4m3, and the scales ``(rows, 1)`` in fp32 to multiply them by; ``gelu``: of its tanh form."""
    if fused(x):
        from .triton_rows import to_fp8 as kernel

        return kernel(x, gelu)
    y = F.gelu(x.float(), approximate="tanh") if gelu else x.float()
    scale = (y.abs().amax(1, keepdim=True) / E4M3_MAX).clamp_min(LEAST_SCALE)
    return (y / scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3), scale


def linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None) -> Tensor:
    """A linear layer; into ``out`` if given."""
    if out is None and onednn_takes(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # adds the bias in the product
    return torch.addmm(bias, x, weight.t(), out=out)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU (tanh form) of a linear layer; on CUDA and in oneDNN in the matrix product itself.

    On a CPU in bf16 its exact form, which is 5e-4 off at most, where numbers near 1 are rounded to 4e-3: oneDNN takes two thirds
    of the time for it.
    """
    if x.is_cuda:
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    if onednn_takes(x):
        form = "none" if x.dtype == torch.bfloat16 else "tanh"
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], form)
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")

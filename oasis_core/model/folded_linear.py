"""A folded transformer's linear layers, with what stands before and after them: in the weights' dtype, or in fp8.

fp8: products of e4m3 numbers with a scale for each token and each output channel, summed in fp32 (``torch._scaled_mm``).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .rows import E4M3, E4M3_MAX, LEAST_SCALE, layer_norm, layer_norm_fp8, linear, linear_gelu, to_fp8

FP8_MULTIPLE = 16
"""Of channels that the fp8 product takes."""


def frozen(tensor: Tensor) -> nn.Parameter:
    """A weight that is never trained."""
    return nn.Parameter(tensor, requires_grad=False)


class FoldedLinear(nn.Module):
    """A layer on rows ``(tokens, channels)``, frozen."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        """``weight`` (out, in), ``bias`` (out,), fp32; kept in ``dtype``."""
        super().__init__()
        self.weight = frozen(weight.to(dtype))
        self.bias = None if bias is None else frozen(bias.to(dtype))

    def after_norm(self, x: Tensor, carried: Tensor, out: Tensor | None = None) -> Tensor:
        """The layer on LayerNorm of ``x + carried``; into ``out`` if given."""
        assert self.bias is not None
        return linear(layer_norm(x, carried), self.weight, self.bias, out)

    def hidden(self, x: Tensor, carried: Tensor) -> Tensor:
        """As a feed-forward's first layer; what ``add_hidden`` of the second takes."""
        assert self.bias is not None
        return linear_gelu(layer_norm(x, carried), self.weight, self.bias)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the layer on ``y``, without bias, to ``x`` in place."""
        x.addmm_(y, self.weight.t())

    def add_hidden(self, x: Tensor, hidden: Tensor) -> None:
        """``add`` for a feed-forward's second layer."""
        self.add(x, hidden)


class Fp8Linear(FoldedLinear):
    """The same in fp8; what is not a multiple of 16 channels stays ``FoldedLinear``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        """As ``FoldedLinear``; ``dtype``: of the bias and of what comes out. Scales are ``(1, out)``, fp32."""
        super().__init__(weight[:0], bias, dtype)
        scale = (weight.abs().amax(1, keepdim=True) / E4M3_MAX).clamp_min(LEAST_SCALE)
        self.weight = frozen((weight / scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3))
        self.scale = frozen(scale.t().contiguous())

    def _product(self, rows: tuple[Tensor, Tensor], like: Tensor, out: Tensor | None = None) -> Tensor:
        y, scale = rows
        if y.is_cuda:
            product = partial(torch._scaled_mm, y, self.weight.t(), scale, self.scale, self.bias, out_dtype=like.dtype)
            return product(use_fast_accum=True) if out is None else product(use_fast_accum=True, out=out)
        exact = (y.float() @ self.weight.float().t()) * scale * self.scale  # what it computes, for tests
        exact = exact if self.bias is None else exact + self.bias.float()
        return exact.to(like.dtype) if out is None else out.copy_(exact)

    def after_norm(self, x: Tensor, carried: Tensor, out: Tensor | None = None) -> Tensor:
        return self._product(layer_norm_fp8(x, carried), x, out)

    def hidden(self, x: Tensor, carried: Tensor) -> Tensor:
        return self.after_norm(x, carried)

    def add(self, x: Tensor, y: Tensor) -> None:
        x.add_(self._product(to_fp8(y), x))

    def add_hidden(self, x: Tensor, hidden: Tensor) -> None:
        x.add_(self._product(to_fp8(hidden, gelu=True), x))


def folded_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, fp8: bool) -> FoldedLinear:
    """The layer, in fp8 where that is asked for and its sizes allow it."""
    fits = not any(size % FP8_MULTIPLE for size in weight.shape)
    return (Fp8Linear if fp8 and fits else FoldedLinear)(weight, bias, dtype)

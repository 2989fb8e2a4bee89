"""The Wan decoder's residual blocks on a GPU, at inference: what lies between two convolutions is one kernel, and convolutions in
time are fewer ones of single frames (``winograd``) where a call brings more than one frame. Nothing is copied or added besides.

The residual stream keeps the model's dtype; what convolutions read and give is fp16, which normed inputs fit, with sums in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .streaming import Past
from .wan_layers import PAST, TINY, CausalConv, Norm, ResidualBlock, Upsample, fused, identity
from .winograd import Form, kernels

WIDE = 8
"""Channels of an output that cuDNN's kernels for tensor cores give at least; the picture's three are padded."""


def streams(x: Tensor) -> bool:
    """Whether the decoder goes this way for ``x``: where norms are kernels, in 16 bits, and nobody wants gradients."""
    return fused(x) and x.dtype in (torch.bfloat16, torch.float16) and not torch.is_grad_enabled()


@dataclass(frozen=True)
class Convolved:
    """What a convolution in time gave, without its bias."""

    products: list[Tensor]
    """``(B, groups, H, W, C)`` each."""
    bias: Tensor


@dataclass
class Stream:
    """A residual stream, of which something may not be added yet. What is done to it is done in place, and frees what it can."""

    shape: tuple[int, ...]
    """``(B, T, H, W, C)``"""
    dtype: torch.dtype
    x: Tensor | None
    """Of that shape; ``(B, T, H / 2 + 1, W / 2 + 1, 4 C)`` if ``corners``; None: ``more`` is all."""
    corners: Tensor | None = None
    """The bias of the folded upsampling that gave ``x``, whose four pixels are not in place yet."""
    more: Convolved | None = None

    @classmethod
    def of(cls, x: Tensor, more: Convolved | None = None) -> Stream:
        return cls(tuple(x.shape), x.dtype, x.contiguous(), None, more)

    def whole(self) -> Tensor:
        """``(B, T, H, W, C)``, everything added."""
        self._step(None, keep=True)
        assert self.x is not None
        return self.x

    def convolve(self, norm: Norm, conv: CausalConv, past: Past, keep: bool, multiple: int = 1) -> Convolved:
        """``conv(silu(norm(stream)))``, its channels padded with zeros to that multiple. ``keep``: the stream goes on, everything
        added; else it ends here."""
        b, t, h, w, c = self.shape
        before = past.inputs.get(conv.number)
        form, dtype = Form.of(t, before is not None), narrow(self.dtype)
        kept = before if before is not None else norm.gamma.new_empty(b, PAST, h, w, c, dtype=dtype)
        size = (b, PAST + t if form is Form.JOINED else t // form.group, h, w, c)
        inputs = self.more.products if self.more is not None else []
        if [tuple(x.shape) for x in inputs] != [
            size
        ] * form.products:  # else each position is read before it is written
            inputs = [norm.gamma.new_empty(size, dtype=dtype) for _ in range(form.products)]
        self._step(_Next(norm.gamma, form, inputs, kept, before is not None), keep)
        past.inputs[conv.number] = kept
        return _convolve(conv, form, inputs, multiple)

    def _step(self, after: _Next | None, keep: bool) -> None:
        if self.corners is None and self.more is None and after is None:
            return
        out = self.x
        if keep and (self.x is None or self.corners is not None):
            out = torch.empty(self.shape, dtype=self.dtype, device=self._device())
        changes = keep and (self.corners is not None or self.more is not None)
        _run(self, out if changes else None, after)
        self.x, self.corners, self.more = (out if keep else None), None, None

    def _device(self) -> torch.device:
        some = self.x if self.x is not None else self.more.products[0]  # type: ignore[union-attr]
        return some.device


def narrow(dtype: torch.dtype) -> torch.dtype:
    """What convolutions read and give where the stream is ``dtype``."""
    return torch.float16 if dtype in (torch.bfloat16, torch.float16) else dtype


def enlarged(layer: Upsample, x: Tensor) -> Stream:
    """``layer.enlarge`` of ``(B, T, H, W, C)``."""
    if not layer.folded:
        return Stream.of(layer.enlarge(x))
    b, t, h, w, c = x.shape
    four = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), layer.conv.weight, padding=1).permute(0, 2, 3, 1)
    assert layer.conv.bias is not None
    four = four.contiguous().unflatten(0, (b, t))
    return Stream((b, t, 2 * h, 2 * w, c // 2), x.dtype, four, layer.conv.bias[: c // 2])


def through(layers: Iterable[nn.Module], stream: Stream, past: Past) -> Stream:
    """Through residual blocks, attention and upsamplings."""
    for layer in layers:
        if isinstance(layer, ResidualBlock):
            stream = _block(layer, stream, past)
        elif isinstance(layer, Upsample):
            stream = enlarged(layer, layer.more_frames(stream.whole(), past))
        else:
            stream = Stream.of(layer(stream.whole(), past))
    return stream


def convolved(stream: Stream, norm: Norm, conv: CausalConv, past: Past) -> Tensor:
    """``conv(silu(norm(stream)))``: ``(B, T, H, W, cout)``."""
    more = stream.convolve(norm, conv, past, keep=False, multiple=WIDE)
    shape = (*stream.shape[:4], len(more.bias))
    return Stream(shape, stream.dtype, None, None, more).whole()[..., : len(conv.bias)]


def _block(block: ResidualBlock, stream: Stream, past: Past) -> Stream:
    more = stream.convolve(block.norm1, block.conv1, past, keep=True)
    inner = Stream((*stream.shape[:4], len(more.bias)), stream.dtype, None, None, more)
    del more
    more = inner.convolve(block.norm2, block.conv2, past, keep=False)
    assert stream.x is not None
    return Stream.of(stream.x if block.shortcut is None else block.shortcut(stream.x), more)


@dataclass(frozen=True)
class _Next:
    """The convolution that reads next: its norm's gain, its form, where its inputs and its past go, and whether there is one."""

    gamma: Tensor
    form: Form
    inputs: list[Tensor]
    past: Tensor
    before: bool


def _run(stream: Stream, out: Tensor | None, after: _Next | None) -> None:
    """Add what is missing, into ``out`` where given; and write the next convolution's inputs."""
    from .triton_stream import Shape, stream_step  # Triton may be missing

    b, t, h, w, c = stream.shape
    products = [] if stream.more is None else stream.more.products
    inputs = [] if after is None else after.inputs
    group = max(after.form.group if after else 1, {4: 2, 6: 4}.get(len(products), 1))
    bias = stream.corners if stream.more is None else stream.more.bias
    for i in range(b):
        stream_step(
            Shape(t // group, group, h, w, c),
            x=None if stream.x is None else stream.x[i],
            corners=stream.corners is not None,
            y=[y[i] for y in products],
            bias=bias,
            stream=None if out is None else out[i],
            gamma=None if after is None else after.gamma,
            past=None if after is None else after.past[i],
            has_past=after is not None and after.before,
            u=[u[i] for u in inputs],
            joined=after is not None and after.form is Form.JOINED,
            tiny=TINY,
        )


def _convolve(conv: CausalConv, form: Form, inputs: list[Tensor], multiple: int) -> Convolved:
    """The products, without the bias; ``inputs`` is emptied."""
    weights, bias = _weights(conv, form, inputs[0].dtype, multiple)
    b, side, products = inputs[0].shape[0], weights[0].shape[-1] // 2, []
    for weight in weights:
        x = inputs.pop(0)
        if form is Form.JOINED:
            y = F.conv3d(x.permute(0, 4, 1, 2, 3), weight, padding=(0, side, side)).permute(0, 2, 3, 4, 1)
        else:
            y = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, padding=side)
            y = y.permute(0, 2, 3, 1).unflatten(0, (b, -1))
        products.append(y.contiguous())
        del x, y
    return Convolved(products, bias)


def _weights(conv: CausalConv, form: Form, dtype: torch.dtype, multiple: int) -> tuple[list[Tensor], Tensor]:
    """Kernels of the products and the bias, padded to that multiple of channels; made once for the weights that ``conv`` has."""
    weight = conv.weight
    key = (*identity(weight), dtype)
    if conv.derived is None or conv.derived[0] != key:
        conv.derived = (key, {})
    forms = conv.derived[1]
    if form not in forms:
        more = -len(weight) % multiple
        padded = F.pad(weight, (0, 0) * 4 + (0, more))
        forms[form] = (kernels(padded, form, dtype), F.pad(conv.bias, (0, more)))
    return forms[form]

"""Winograd's minimal filtering along time: a convolution over three frames as fewer convolutions of single frames.

F(4, 3): four output frames are sums of six products where the plain way takes twelve; F(2, 3): two of four where it takes six.
Each product is a 2D convolution of a sum of input frames with a sum of the kernel's three taps, so the two sums are all that is
ours; ``triton_stream`` computes them beside norms and biases. In fp16, which normed inputs fit, F(4, 3) errs by a third of what
plain bf16 does (docs/full_size.md).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, section 4.1; points other than
0, +-1, +-2: Barabasz et al., arXiv 1803.10986.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

import torch
from torch import Tensor

P, Q = 0.5**0.5, 2.0**0.5
"""F(4, 3) interpolates at 0, +-P, +-Q and infinity: of the pairs tried, those with the smallest error (P Q is 1)."""


class Form(Enum):
    """How a call's frames are convolved in time."""

    FIRST = "first"
    """One frame and nothing before it: a convolution by the last tap alone."""
    JOINED = "joined"
    """Behind their past, by one 3D convolution."""
    PAIRS = "pairs"
    """F(2, 3): by four products each."""
    FOURS = "fours"
    """F(4, 3): by six."""

    @classmethod
    def of(cls, frames: int, before: bool) -> Form:
        """The one with the least work; ``before``: whether there are frames before."""
        if frames == 1 and not before:
            return cls.FIRST
        return cls.FOURS if frames % 4 == 0 else cls.PAIRS if frames % 2 == 0 else cls.JOINED

    @property
    def group(self) -> int:
        """Output frames that are computed together."""
        return {Form.PAIRS: 2, Form.FOURS: 4}.get(self, 1)

    @property
    def products(self) -> int:
        """Convolutions for each group."""
        return 1 if self.group == 1 else self.group + 2


@lru_cache(maxsize=4)
def matrices(group: int) -> tuple[Tensor, Tensor, Tensor]:
    """A, G, B in fp64: outputs (group) = A (products); kernels = G (three taps); inputs of products = B (group + 2 frames).

    Raises:
        ValueError: another group than 4 or 2.
    """
    if group not in (2, 4):
        raise ValueError(f"group is {group} frames; it must be 2 or 4")
    if group == 2:
        a: list[list[float]] = [[1, 1, 1, 0], [0, 1, -1, -1]]
        g: list[list[float]] = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
        b: list[list[float]] = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
        return _double(a), _double(g), _double(b)
    p, q, both, product = P, Q, P * P + Q * Q, P * P * Q * Q
    points = (0.0, p, -p, q, -q)
    sizes = (product, *[2 * p * p * (p * p - q * q)] * 2, *[2 * q * q * (q * q - p * p)] * 2)
    a = [[x**i for x in points] + [float(i == 3)] for i in range(4)]
    g = [[1 / n, x / n, x * x / n] for x, n in zip(points, sizes, strict=True)] + [[0, 0, 1]]
    b = [
        [product, 0, -both, 0, 1, 0],
        [0, -p * q * q, -q * q, p, 1, 0],
        [0, p * q * q, -q * q, -p, 1, 0],
        [0, -q * p * p, -p * p, q, 1, 0],
        [0, q * p * p, -p * p, -q, 1, 0],
        [0, product, 0, -both, 0, 1],
    ]
    return _double(a), _double(g), _double(b)


def _double(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def kernels(weight: Tensor, form: Form, dtype: torch.dtype) -> list[Tensor]:
    """Kernels of the products, channels last, of a weight ``(cout, cin, 3, k, k)``: 2D but for the joined form's."""
    if form is Form.JOINED:
        return [weight.to(dtype).contiguous(memory_format=torch.channels_last_3d)]
    taps = weight.movedim(2, 0).float()
    lines = (
        [taps[2]] if form is Form.FIRST else torch.tensordot(matrices(form.group)[1].to(taps), taps, dims=1).unbind(0)
    )
    return [line.to(dtype).contiguous(memory_format=torch.channels_last) for line in lines]

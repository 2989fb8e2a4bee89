"""CUDA graphs of a folded transformer: chunks of one shape come again and again, and small kernels wait for the host.

A graph holds some blocks, so that a host can interrupt between them. The kernels are the same as without graphs, and so is the
result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.window_plan import held_tables

BLOCKS = 5
"""Blocks in a graph."""
SHAPES = 2
"""Shapes that are kept: a clip's chunks, and its tiles or its last chunk."""
MEMORY_SHARE = 1 / 16
"""Of a device's memory that the activations of one shape may hold on to."""

Step = Callable[[Tensor], Tensor]
"""Part of the work: from what the one before gave (the first: from the latent)."""


@dataclass(frozen=True)
class _Recorded:
    """The steps on one shape, as graphs that work on the same memory each time."""

    z: Tensor
    out: Tensor
    graphs: Sequence[tuple[torch.cuda.CUDAGraph, int]]
    """With the number of steps in each."""
    keeps: object
    """What the kernels read, beside weights: alive as long as the graphs."""


@dataclass(frozen=True)
class _Seen:
    """A shape that came once."""

    keeps: object
    """Tables that its kernels read: still there when the shape is recorded, when none can be made."""


class Graphs:
    """Records a shape when it comes for the second time. Weights that move in memory make it begin anew."""

    def __init__(self, blocks: int = BLOCKS, shapes: int = SHAPES) -> None:
        self._blocks, self._shapes = blocks, shapes
        self._weights: tuple[int, ...] = ()
        self._seen: OrderedDict[tuple[object, ...], _Recorded | _Seen] = OrderedDict()

    def run(
        self, z: Tensor, steps: Sequence[Step], weights: tuple[int, ...], key: object, keeps: object,
        poll: Callable[[], None] | None,
    ) -> Tensor:  # fmt: skip
        """What the last step gives.

        Args:
            steps: the first makes what all but the last change in place.
            weights: addresses of all weights. key: what else the steps depend on. keeps: tensors that they read.
            poll: called before every step but the first and last; what it raises passes through.
        """
        if weights != self._weights:
            self._seen.clear()
            self._weights = weights
        shape = (tuple(z.shape), z.dtype, z.device, key)
        known = self._seen.pop(shape, None)
        if known is None:
            with held_tables() as tables:
                result = plain(z, steps, poll)
            self._keep(shape, _Seen(tables))
            return result
        recorded = known if isinstance(known, _Recorded) else self._record(z, steps, keeps)
        self._keep(shape, recorded)
        return _replay(recorded, z, poll)

    def _keep(self, shape: tuple[object, ...], what: _Recorded | _Seen) -> None:
        self._seen[shape] = what
        while len(self._seen) > self._shapes:
            self._seen.popitem(last=False)

    def _record(self, z: Tensor, steps: Sequence[Step], keeps: object) -> _Recorded:
        graphs = []
        with torch.cuda.device(z.device), held_tables() as tables:
            pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()  # torch's own is one for all devices
            place = x = z.clone()
            for start in range(0, len(steps), self._blocks):
                graph = torch.cuda.CUDAGraph()
                some = steps[start : start + self._blocks]
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    for step in some:
                        x = step(x)
                graphs.append((graph, len(some)))
        return _Recorded(place, x, graphs, (keeps, tables))


def plain(z: Tensor, steps: Sequence[Step], poll: Callable[[], None] | None) -> Tensor:
    """The same without graphs."""
    x = z
    for number, step in enumerate(steps):
        if poll is not None and 0 < number < len(steps) - 1:
            poll()
        x = step(x)
    return x


def _replay(recorded: _Recorded, z: Tensor, poll: Callable[[], None] | None) -> Tensor:
    recorded.z.copy_(z)
    done, last = 0, sum(count for _, count in recorded.graphs) - 1
    for graph, count in recorded.graphs:
        for number in range(done, done + count):
            if poll is not None and 0 < number < last:
                poll()
        graph.replay()
        done += count
    return recorded.out.clone()


def worth_graphs(numbers: int, element: int, device: torch.device) -> bool:
    """Whether activations of so many ``numbers`` are few enough to be held for good."""
    if device.type != "cuda":
        return False
    return numbers * element <= MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory

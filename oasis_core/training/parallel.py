"""One training run on several devices: a process for each, started by torchrun; gradients are averaged every step.

    torchrun --nproc-per-node 2 -m oasis_core train CONFIG

Gradients go through one all-reduce of one flat tensor after the backward pass: the models here are small beside their
activations (36 MB of gradients in fp32), and the network runs as a CUDA graph, inside which no hook could overlap it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process's place among those of the run."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Writes the files and the log."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Every process's ``.grad`` becomes the mean over all processes (None counts as missing everywhere alike)."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        pieces = [
            piece.view_as(g) for piece, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)
        ]
        torch._foreach_copy_(gradients, pieces)

    def share(self, value: T) -> T:
        """The leading process's value, everywhere (a small picklable one)."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


def join(device: torch.device) -> tuple[Group, torch.device]:
    """Enter the run that torchrun started (its variables RANK, WORLD_SIZE, LOCAL_RANK), or be alone.

    Returns:
        The group, and this process's own device: the LOCAL_RANK-th where ``device`` is CUDA.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        if device.type == "cuda" and device.index is None:  # threads and workers ask for it by number
            device = torch.device("cuda", torch.cuda.current_device())
        return Group(), device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Group(dist.get_rank(), world), device


def leave() -> None:
    """End the membership; nothing to do where there is none."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()

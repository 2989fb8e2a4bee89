"""Two training processes on the CPU are one run: the same weights everywhere, moved by the mean of both gradients."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from oasis_core.training import loop
from oasis_core.training.config import TrainConfig
from oasis_core.training.parallel import Group

from .test_loop import CPU, config

WORLD = 2


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def one_process(rank: int, port: int, run: TrainConfig, notes: Path) -> None:
    """What torchrun does for each process; notes the first step's gradients and the last state."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    average, state_class = Group.average_gradients, loop.TrainState
    gradients: list[list[Tensor]] = []
    states: list[loop.TrainState] = []

    def noting(self: Group, parameters: Iterable[Tensor]) -> None:
        parameters = list(parameters)
        own = [p.grad.clone() for p in parameters if p.grad is not None]
        average(self, parameters)
        gradients.extend([own, [p.grad.clone() for p in parameters if p.grad is not None]])

    def keeping(*args: object, **names: object) -> loop.TrainState:
        states.append(state_class(*args, **names))  # type: ignore[arg-type]
        return states[-1]

    Group.average_gradients = noting  # type: ignore[method-assign]
    loop.TrainState = keeping  # type: ignore[assignment, misc]
    loop.train(run, CPU)
    weights = {**states[0].model.state_dict(), **states[0].adversary.state_dict()}
    torch.save((gradients[:2], weights, states[0].routing.to_json()), notes / f"{rank}.pt")


def test_two_processes_are_one_run(data: Path, tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    arguments = (free_port(), config(data, tmp_path / "out"), tmp_path)
    processes = [context.Process(target=one_process, args=(rank, *arguments)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [0] * WORLD
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD))
    (own, mean), (other, same) = first[0], second[0]
    assert any(not torch.equal(a, b) for a, b in zip(own, other, strict=True)), "both processes saw the same data"
    for a, b, averaged, there in zip(own, other, mean, same, strict=True):
        torch.testing.assert_close(averaged, (a + b) / 2)
        assert torch.equal(averaged, there)
    for name, value in first[1].items():
        assert torch.equal(value, second[1][name]), name
    assert first[2] == second[2]

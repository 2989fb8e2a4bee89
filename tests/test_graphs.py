"""What is recorded when, and what stays alive with it; CUDA's own part is played (tests/test_folded_gpu.py has the real one)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from oasis_core.attention import TokenGrid
from oasis_core.attention.window_plan import TABLES, key_bits, plan_window
from oasis_core.model.graphs import Graphs

CPU = torch.device("cpu")
WEIGHTS = (1, 2)


class Recording:
    """The steps that were run while a graph was recorded."""

    def replay(self) -> None:
        replayed.append(self)


replayed: list[Recording] = []
recorded: list[Recording] = []
streams: list[object] = []


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def graph(what: Recording, pool: object, stream: object) -> Iterator[None]:
        assert devices == [CPU]
        streams.append(stream)
        yield
        recorded.append(what)

    @contextmanager
    def device(where: torch.device) -> Iterator[None]:
        devices.append(where)
        yield
        devices.pop()

    devices: list[torch.device] = []
    for name, stand_in in (
        ("CUDAGraph", Recording), ("graph", graph), ("device", device), ("Stream", object), ("graph_pool_handle", object),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for found in (replayed, recorded, streams):
        found.clear()


def table(keys: int = 32) -> Tensor:
    return key_bits(plan_window(TokenGrid(3, 9, 9), (3, 5, 5), 32, 32), keys, CPU)


class Steps:
    """Three, the second of which reads a table."""

    def __init__(self) -> None:
        self.tables: list[int] = []

    def __call__(self, graphs: Graphs, size: int = 4, weights: tuple[int, ...] = WEIGHTS, stop: bool = False) -> Tensor:
        def reading(x: Tensor) -> Tensor:
            self.tables.append(table().data_ptr())
            return x

        def poll() -> None:
            if stop:
                raise InterruptedError

        return graphs.run(torch.zeros(size), (torch.clone, reading, torch.clone), weights, None, None, poll)


def test_a_shape_is_recorded_when_it_comes_for_the_second_time() -> None:
    graphs, run = Graphs(blocks=2), Steps()
    run(graphs)
    assert (len(recorded), len(replayed)) == (0, 0)
    run(graphs)
    assert (len(recorded), len(replayed)) == (2, 2)
    assert len(set(streams)) == 1
    run(graphs)
    assert (len(recorded), len(replayed)) == (2, 4)
    run(graphs, weights=(3, 4))
    assert len(recorded) == 2


def test_an_interruption_loses_no_recording() -> None:
    graphs, run = Graphs(blocks=2), Steps()
    for _ in range(2):
        run(graphs)
    with pytest.raises(InterruptedError):
        run(graphs, stop=True)
    run(graphs)
    assert len(recorded) == 2


def test_only_the_last_shapes_are_kept() -> None:
    graphs, run = Graphs(blocks=3, shapes=2), Steps()
    for size in (4, 4, 5, 5, 6, 6):
        run(graphs, size)
    assert len(recorded) == 3
    run(graphs, 6)
    run(graphs, 4)
    assert len(recorded) == 3  # the first is gone, and seen for the first time again


def test_tables_stay_from_the_first_sight_of_a_shape_to_its_last_graph() -> None:
    """While a graph is recorded none can be made, and what it reads must stay where it is."""

    def others() -> None:
        for keys in range(1000, 1001 + TABLES):
            table(keys)

    graphs, run = Graphs(blocks=2), Steps()
    for _ in range(2):
        run(graphs)
        others()
    assert table().data_ptr() == run.tables[0]
    assert set(run.tables) == {run.tables[0]}

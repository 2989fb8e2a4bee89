"""What a job beside a GPU asks of its process, and that it is put back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from oasis_core.beside_gpu import INTERVAL, THREADS, feeding
from oasis_core.jobs.packers import Packers

from .jobs.conftest import run
from .test_cli import make_clip
from .tiny_job import save_random_model

USUAL = (0.005, 2)
FEEDING = (INTERVAL, THREADS)


def now() -> tuple[float, int]:
    return round(sys.getswitchinterval(), 6), torch.get_num_threads()


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    before = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(USUAL[0])
    torch.set_num_threads(USUAL[1])
    yield
    sys.setswitchinterval(before[0])
    torch.set_num_threads(before[1])


def test_a_gpu_is_fed_by_one_thread_and_a_short_interval() -> None:
    assert now() == USUAL
    with feeding("cuda"):
        assert now() == FEEDING
        with feeding("cuda"):
            assert now() == FEEDING
        assert sys.getswitchinterval() == pytest.approx(INTERVAL)
    assert now() == USUAL
    with pytest.raises(OSError, match="disk"), feeding("mps"):
        raise OSError("disk")
    assert now() == USUAL


def test_a_cpu_keeps_its_threads() -> None:
    with feeding("cpu"):
        assert now() == USUAL


def test_a_shorter_interval_stays() -> None:
    sys.setswitchinterval(0.0001)
    before = sys.getswitchinterval()
    for _ in range(3):
        with feeding("cuda"):
            assert sys.getswitchinterval() == before
    assert sys.getswitchinterval() == before


def test_jobs_that_overlap() -> None:
    """The first to begin is the first to end; the other one, in a thread of its own, still feeds."""
    begun, end, seen = threading.Event(), threading.Event(), list[tuple[float, int]]()

    def other() -> None:
        with feeding("cuda"):
            begun.set()
            end.wait()
            seen.append(now())
        seen.append(now())

    thread = threading.Thread(target=other)
    with feeding("cuda"):
        thread.start()
        begun.wait()
    assert sys.getswitchinterval() == pytest.approx(INTERVAL)
    assert torch.get_num_threads() == USUAL[1]
    end.set()
    thread.join()
    assert seen == [FEEDING, USUAL]
    assert now() == USUAL


def test_a_job_says_where_its_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job on a CPU changes nothing, one that takes its device for a GPU works as that says, and puts it back."""
    model, clip = save_random_model(tmp_path / "random.safetensors"), make_clip(tmp_path / "in.mkv", 9, 64, 64)
    seen, put = [], Packers.put

    def noted(self: Packers, made: torch.Tensor, number: int) -> object:
        seen.append(now())
        return put(self, made, number)

    monkeypatch.setattr(Packers, "put", noted)
    assert run(clip, tmp_path / "cpu.mp4", model) == 0
    assert len(seen) == 9
    assert all(one == USUAL for one in seen)
    seen.clear()
    monkeypatch.setattr("oasis_core.video_job.feeding", lambda device: feeding("cuda"))
    assert run(clip, tmp_path / "gpu.mp4", model) == 0
    assert len(seen) == 9
    assert all(one == FEEDING for one in seen)
    assert now() == USUAL

"""Fresh memory that is made ready by a thread: who writes it may rely on nothing else happening there."""

from __future__ import annotations

import threading

import pytest
import torch

from oasis_core import landing
from oasis_core.landing import PAGE, LaidOut

STEP = PAGE // 4


@pytest.mark.parametrize("inference", [False, True])
def test_every_page_is_touched_and_nothing_else(inference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of tensors of ComfyUI's, which runs nodes in inference mode."""
    monkeypatch.setattr(landing, "STRETCH", 4 * PAGE)
    with torch.inference_mode(inference):
        block = torch.ones(10, 3, STEP // 2)  # 15 pages
        with LaidOut(block) as pages:
            pages.reached(block.numel())
        touched = (block.view(-1) == 0).nonzero().view(-1).tolist()
    assert touched == list(range(0, block.numel(), STEP))


def test_what_is_written_where_it_is_ready_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing, "STRETCH", PAGE)
    for _ in range(50):
        block = torch.empty(64, STEP)
        with LaidOut(block) as pages:
            for number in range(64):
                pages.reached((number + 1) * STEP)
                block[number] = number + 1
        assert torch.equal(block, torch.arange(1.0, 65)[:, None].expand(64, STEP))


def test_a_job_that_fails_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing, "STRETCH", PAGE)
    with pytest.raises(RuntimeError, match="device"), LaidOut(torch.empty(4096, STEP)):
        raise RuntimeError("device")
    assert not [t for t in threading.enumerate() if t.name == "oasis-pages"]


def test_a_thread_that_fails_lets_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    block = torch.ones(4, STEP)
    with LaidOut(block) as pages:
        pages.reached(block.numel())
    broken = LaidOut(block)
    monkeypatch.setattr(broken, "_step", 0)  # no such stride
    with broken:
        broken.reached(block.numel())

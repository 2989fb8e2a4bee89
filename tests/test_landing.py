"""Fresh memory that is made ready by a thread: who writes it may rely on nothing else happening there."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

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
            pages._thread.join()
        touched = (block.view(-1) == 0).nonzero().view(-1).tolist()
    assert touched == list(range(0, block.numel(), STEP))


def test_what_is_claimed_stays_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writer and thread at the same block, in steps that are no pages."""
    monkeypatch.setattr(landing, "STRETCH", 2 * PAGE)
    for _ in range(50):
        block = torch.empty(97, 700)
        with LaidOut(block) as pages:
            for number in range(97):
                pages.claim((number + 1) * 700)
                block[number] = number + 1
        assert torch.equal(block, torch.arange(1.0, 98)[:, None].expand(97, 700))


def test_nobody_waits_for_memory_that_is_not_laid_out_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread hangs in a stretch: what lies before it can be claimed, and all once it is done."""
    monkeypatch.setattr(landing, "STRETCH", PAGE)
    block, hangs, go_on = torch.ones(8, STEP), threading.Event(), threading.Event()

    class Slow:
        """The block, as its thread sees it."""

        def element_size(self) -> int:
            return 4

        def __len__(self) -> int:
            return block.numel()

        def __setitem__(self, at: slice, value: int) -> None:
            if at.start == 3 * STEP:
                hangs.set()
                assert go_on.wait(60)
            block.view(-1)[at] = value

    pages = LaidOut(block)
    monkeypatch.setattr(pages, "_block", Slow())
    with pages:
        assert hangs.wait(60)
        pages.claim(3 * STEP)  # returns
        taken = threading.Thread(target=pages.claim, args=(6 * STEP,))
        taken.start()
        taken.join(0.1)
        assert taken.is_alive()
        go_on.set()
        taken.join(60)
        assert not taken.is_alive()
        pages._thread.join(60)
    assert (block[:, 0] == 0).tolist() == [True] * 4 + [False] * 2 + [True] * 2  # two were left to who claimed them


def test_a_job_that_fails_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing, "STRETCH", PAGE)
    with pytest.raises(RuntimeError, match="device"), LaidOut(torch.empty(4096, STEP)):
        raise RuntimeError("device")
    assert not [t for t in threading.enumerate() if t.name == "oasis-pages"]


def test_a_thread_that_fails_lets_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    broken = LaidOut(torch.ones(4, STEP))
    monkeypatch.setattr(broken, "_step", 0)  # no such stride
    with broken:
        broken.claim(STEP)


@pytest.mark.skipif(sys.platform != "linux", reason="resource is not Windows', and only Linux is asked for large pages")
def test_a_clip_s_memory_comes_in_large_pages() -> None:
    """Filling 64 MiB, 16384 pages of 4 KiB, faults a fraction as often; unless the system has no large pages to give."""
    told = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not told.is_file() or "[never]" in told.read_text(encoding="utf-8"):
        pytest.skip("no large pages here")
    counts = {}
    for how in ("torch.empty(1 << 24)", "landing.fresh(4, 1 << 22)"):
        script = f"""
import resource, torch
from oasis_core import landing
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(4), (block := {how})
before = faults()
assert block.dtype == torch.float32 and block.numel() == 1 << 24
block.fill_(1)
print(faults() - before)"""
        counts[how] = int(
            subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        )
    plain, large = counts.values()
    assert large < 0.5 * plain or plain < 1000, counts

"""Freed memory goes back to the system."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from oasis_core.heap import share_heaps, trim_heap

FILL = """
import re, torch
from oasis_core.heap import trim_heap
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
keep, blocks = [], []
for i in range(200):
    blocks.append(torch.ones(30_000))
    keep.append(torch.ones(100))  # pins the heap above each freed block
del blocks
before = resident()
assert trim_heap()
print(before - resident())
"""

THREAD = """
import ctypes, re, threading
from oasis_core.heap import trim_heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
def work():
    libc.free(libc.malloc(30_000_000))  # from now on smaller blocks lie in heaps
    blocks = [libc.malloc(2_000_000) for _ in range(10)]
    for block in blocks:
        ctypes.memset(block, 1, 2_000_000)
    for block in blocks:
        libc.free(block)
    before = resident()
    assert trim_heap()
    print(before - resident())
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
THREADS = """
import ctypes, re, sys, threading
from oasis_core.heap import share_heaps
assert share_heaps() or not int(sys.argv[2])
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
all_here = threading.Barrier(6)
def work():
    all_here.wait()
    libc.malloc(50_000)
    all_here.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
[t.start() for t in threads], [t.join() for t in threads]
libc.fopen.restype, libc.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
print(open(sys.argv[1]).read().count("<heap nr"))
"""


def test_it_is_harmless_anywhere() -> None:
    assert trim_heap() in (True, False)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps it")
@pytest.mark.parametrize("script", [FILL, THREAD])
def test_freed_memory_leaves(script: str) -> None:
    """20 MB of blocks below malloc's threshold for a mapping of their own, in a process of its own; in a thread, too."""
    if not trim_heap():
        pytest.skip("another C library")
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(re.search(r"-?\d+", result.stdout)[0]) > 10_000  # KiB


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has several")
def test_threads_share_heaps(tmp_path: Path) -> None:
    """Six threads at once; ``$MALLOC_ARENA_MAX`` of the user's goes before."""
    if not trim_heap():
        pytest.skip("another C library")
    own = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}
    for limit, expected in ((None, 2), ("4", 4)):
        env = own if limit is None else {**own, "MALLOC_ARENA_MAX": limit}
        command = [sys.executable, "-c", THREADS, str(tmp_path / "heaps.xml"), str(int(limit is None))]
        result = subprocess.run(command, capture_output=True, text=True, env=env)
        assert result.returncode == 0, result.stderr
        assert int(result.stdout) == expected
    assert share_heaps() in (True, False)


REPEAT = """
import contextlib, resource, sys
import torch
from oasis_core import heap
torch.set_num_threads(1)
resident = lambda: int(open("/proc/self/statm").read().split()[1])
kept = sys.argv[1] == "kept" and heap.keep_freed()
begun = resident()
def faults():
    for _ in range(20):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with heap.reused() if sys.argv[1] == "while" else contextlib.nullcontext():
    before = faults()
    print(faults() - before)
if sys.argv[1] == "while":
    assert resident() - begun < 4096, "what was kept has not gone back"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_is_kept_is_not_mapped_anew() -> None:
    """20 tensors of 64 MiB, 16384 pages each: mapped anew they fault (less with huge pages), kept they do not, for good or for
    a while."""
    counts = {}
    for how in ("anew", "kept", "while"):
        done = subprocess.run([sys.executable, "-c", REPEAT, how], capture_output=True, text=True, check=True)
        counts[how] = int(done.stdout)
    for how in ("kept", "while"):
        assert counts[how] < 0.2 * counts["anew"] or counts["anew"] < 1000, counts


OVERLAP = """
import resource, sys
import torch
from oasis_core import heap
torch.set_num_threads(1)
resident = lambda: int(open("/proc/self/statm").read().split()[1])
begun = resident()
def faults():
    for _ in range(20):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first, second = heap.reused(), heap.reused()
first.__enter__()
faults()
second.__enter__()
first.__exit__(None, None, None)
before = faults()
print(faults() - before)
second.__exit__(None, None, None)
assert resident() - begun < 4096, "what was kept has not gone back"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_segments_that_overlap_keep_it_until_the_last_ends() -> None:
    """An encoder finishes one while the model is at the next: the one that ends first gives nothing back."""
    anew, between = (
        int(subprocess.run([sys.executable, "-c", *of], capture_output=True, text=True, check=True).stdout)
        for of in ((REPEAT, "anew"), (OVERLAP,))
    )
    assert between < 0.2 * anew or anew < 1000, (anew, between)

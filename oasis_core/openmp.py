"""What GNU OpenMP is told before torch is loaded, and how many threads are left to torch beside a GPU."""

from __future__ import annotations

import os

SPIN = "GOMP_SPINCOUNT"
SPINS = "10000"
"""Rounds that a thread spins while it waits for others, before it sleeps; read once, when torch is loaded. With its own 300,000 a
job was up to six times slower where the cores had other work; this costs nothing where they have none (docs/cpu_speed.md)."""
BESIDE_GPU = 8
"""Threads of torch on the host in a worker with a GPU: copies and the like need few. Not measured."""


def spinning() -> dict[str, str]:
    """For the environment of a new process; what the user's says goes before."""
    return {SPIN: os.environ.get(SPIN, SPINS)}

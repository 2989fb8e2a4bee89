"""The ``oasis`` command."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
"""For GNU OpenMP, which reads it once, when torch is loaded: rounds that a thread spins while it waits for others, before it
sleeps. With its own 300,000 a job was up to six times slower where the cores had other work; this costs nothing where they have
none (docs/cpu_speed.md)."""

from .main import main  # noqa: E402

__all__ = ["main"]

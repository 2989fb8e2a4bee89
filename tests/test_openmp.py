"""What OpenMP is told before torch is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from oasis_core.openmp import SPINS, spinning

BEFORE_TORCH = "import sys, oasis_core.openmp; sys.exit('torch' in sys.modules)"


def test_what_the_user_says_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert spinning() == {"GOMP_SPINCOUNT": SPINS}
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert spinning() == {"GOMP_SPINCOUNT": "7"}


def test_it_is_said_before_torch_is_loaded() -> None:
    assert subprocess.run([sys.executable, "-c", BEFORE_TORCH]).returncode == 0

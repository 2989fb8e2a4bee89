"""What the marked tests need, where it is found, and one loud line where it is not.

Real ComfyUI: ``$COMFYUI_PATH``; else the ComfyUI whose ``custom_nodes`` holds this checkout; else ``~/comfy/ComfyUI``.
Its interpreter: ``$COMFYUI_PYTHON``; else a ``venv`` or ``.venv`` inside or beside it; else this one if it has what
ComfyUI needs.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core has a process of its own; read once, by torch's import

import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ("tests/comfy/", "tests/engines/")
REMEDY = "get it by `pip install comfy-cli`, `comfy install`; or set COMFYUI_PATH (and COMFYUI_PYTHON, its interpreter)"
COMFYUI_IMPORTS = (
    "aiohttp",
    "alembic",
    "comfyui_frontend_package",
    "torchsde",
    "torchvision",
    "transformers",
    "kornia",
)
"""A sample of ComfyUI's requirements that this project's own environment does not bring together."""


@dataclass(frozen=True)
class ComfyUI:
    """A real ComfyUI and the interpreter that runs it."""

    folder: Path
    python: Path


def find_comfyui() -> ComfyUI | str:
    """The ComfyUI to test in, or why there is none."""
    named = os.environ.get("COMFYUI_PATH")
    folders = [Path(named)] if named else [Path.home() / "comfy" / "ComfyUI"]
    if not named and ROOT.parent.name == "custom_nodes":
        folders.insert(0, ROOT.parent.parent)
    folder = next((f.expanduser().resolve() for f in folders if (f.expanduser() / "main.py").is_file()), None)
    if folder is None:
        return f"no ComfyUI in {' or '.join(str(f) for f in folders)}"
    python = _comfyui_python(folder)
    return ComfyUI(folder, python) if python else f"{folder} is ComfyUI, but no Python environment for it was found"


def _comfyui_python(folder: Path) -> Path | None:
    if named := os.environ.get("COMFYUI_PYTHON"):
        return Path(named).expanduser()
    program = Path("Scripts", "python.exe") if os.name == "nt" else Path("bin", "python")
    places = [place / name / program for place in (folder, folder.parent) for name in ("venv", ".venv")]
    if found := next((p for p in places if p.is_file()), None):
        return found
    return Path(sys.executable) if all(find_spec(name) for name in COMFYUI_IMPORTS) else None


FOUND = pytest.StashKey["ComfyUI | str"]()


def pytest_configure(config: pytest.Config) -> None:
    # Children hear Ctrl-C also where a shell started pytest in the background, which lets it and them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["OASIS_CACHE"] = tempfile.mkdtemp(prefix="oasis_tests_")  # also for fixtures that outlive a test
    config.stash[FOUND] = find_comfyui()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    found = config.stash[FOUND]
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("comfy") and isinstance(found, str):
            item.add_marker(pytest.mark.skip(reason=found))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where pytest-xdist shares the tests among processes: each file stays in one, and so do all that use ComfyUI's server, and
    all that use Ray."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((folder for folder in SHARED if file.startswith(folder)), file)

    return ByFile(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[FOUND]
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "comfy" in r.keywords]
    if isinstance(found, str) and skipped:
        line = f"REAL COMFYUI NOT TESTED: {len(skipped)} tests skipped, {found}; {REMEDY}"
        terminalreporter.write_line(line, red=True, bold=True)
    reasons = {r.longrepr[2].removeprefix("Skipped: ") for r in skipped if isinstance(r.longrepr, tuple)}
    for reason in sorted(reason for reason in reasons if reason.startswith("NOT TESTED")):
        terminalreporter.write_line(reason, red=True, bold=True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes what the user's jobs have remembered."""
    monkeypatch.setenv("OASIS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def comfyui(pytestconfig: pytest.Config) -> ComfyUI:
    """The real ComfyUI; only for tests marked ``comfy``."""
    found = pytestconfig.stash[FOUND]
    assert isinstance(found, ComfyUI), f"a test without the comfy marker asks for ComfyUI ({found})"
    return found

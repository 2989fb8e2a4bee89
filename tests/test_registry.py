"""What ComfyUI's registry is given: metadata that says what is true, and a package that runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
KEPT = (
    "__init__.py",
    "LICENSE",
    "README.md",
    "assets/sample.mp4",
    "locales/zh/nodeDefs.json",
    "nodes/upscale.py",
    "oasis_core/weights/oasis-tiny.safetensors",
    "pyproject.toml",
    "requirements.txt",
    "web/docs/OasisUpscale/en.md",
    "workflows/oasis_upscale_video.json",
)
TEMPLATE_FOLDERS = ("example_workflows", "example", "examples", "workflow", "workflows")
"""In this order ComfyUI looks for workflows (``app/custom_node_manager.py``), and gives out files of the first one only."""
LARGEST = 21 * 2**20
"""Bytes; all but 2 MB of them are the weights."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def listed(*options: str) -> list[str]:
    """Files that git knows."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a user gets: what git knows without what ``.comfyignore`` names."""
    left_out = set(listed("--ignored", "--exclude-from=.comfyignore"))
    folder = tmp_path_factory.mktemp("package")
    for name in set(listed()) - left_out:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_requirements_are_said_twice_alike(project: dict[str, Any]) -> None:
    """The registry reads pyproject.toml, ComfyUI's manager requirements.txt; neither may pin what ComfyUI brings."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = [line for line in lines if line.strip() and not line.startswith("#")]
    assert project["project"]["dependencies"] == required
    assert [r for r in required if "==" in r or "<" in r or r.startswith("torch")] == []


def test_metadata(project: dict[str, Any]) -> None:
    about, comfy = project["project"], project["tool"]["comfy"]
    assert "comfy" not in about["name"].lower()
    assert about["version"].count(".") == 2
    assert (ROOT / about["license"]["file"]).is_file()
    assert comfy["requires-comfyui"] == ">=0.3.64"
    assert comfy["Icon"].startswith("https://raw.githubusercontent.com" + about["urls"]["Repository"][18:])
    assert (ROOT / "assets" / comfy["Icon"].rpartition("/")[2]).is_file()


def test_package_is_complete_and_small(package: Path) -> None:
    assert [name for name in KEPT if not (package / name).is_file()] == []
    assert [name for name in ("tests", "benchmarks", "docs", ".ci") if (package / name).exists()] == []
    assert sum(f.stat().st_size for f in package.rglob("*") if f.is_file()) < LARGEST


def test_nothing_hides_the_workflows(package: Path) -> None:
    """A folder ``examples`` would: the template browser then lists the workflows and cannot open them."""
    assert [name for name in TEMPLATE_FOLDERS if (package / name).exists()] == ["workflows"]


@pytest.mark.slow
def test_command_line_runs_in_the_package(package: Path) -> None:
    """Nothing that is left out is imported."""
    for command in ("upscale", "info", "train", "evaluate"):
        result = subprocess.run(
            [sys.executable, "-m", "oasis_core", command, "--help"], cwd=package, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr


def test_sources_are_ascii(package: Path) -> None:
    """Older Windows consoles and editors show them as they are."""
    sources = list(package.rglob("*.py"))
    assert sources
    assert [s.name for s in sources if not s.read_bytes().isascii()] == []


def test_nodes_are_thin() -> None:
    """Schema and one call into the core: a long file has work in it that belongs there."""
    lines = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "nodes").glob("*.py")}
    assert lines
    assert {name: count for name, count in lines.items() if count >= 150} == {}


def test_nothing_that_the_registry_refuses() -> None:
    """exec, eval, statements joined by semicolons: the check that its publisher's tool makes."""
    ruff = [sys.executable, "-m", "ruff", "check", ".", "--isolated", "--select", "S102,S307,E702"]
    result = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout

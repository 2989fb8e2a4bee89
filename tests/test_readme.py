"""The README's commands are ones that a test or CI runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

RUN_BY = {
    "make demo": "test_make_runs_what_is_tested, tests/test_cli.py::test_demo_makes_video_and_picture",
    "make test": ".ci/run",
    "python -m venv .venv": "the Makefile's own steps, by CI",
    r".venv\Scripts\python -m pip install torch==2.13.0": "the Makefile's own steps, by CI",
    r".venv\Scripts\python -m pip install -e .": "the Makefile's own steps, by CI",
    r".venv\Scripts\python -m oasis_core demo": "tests/test_cli.py::test_the_command_is_installed and the demo's test",
    "oasis upscale input.mp4 output.mp4": "tests/test_cli.py::test_upscale",
    "oasis upscale photo.jpg photo_x4.png": "tests/test_stills.py::test_a_picture_becomes_a_picture",
    "oasis evaluate truth upscaled": "tests/test_evaluate_cli.py::test_evaluate",
}


def test_every_command_is_run_somewhere() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    commands = {line for block in blocks for line in block.splitlines() if line.strip()}
    assert commands == set(RUN_BY)


def test_the_readme_names_the_options_there_are() -> None:
    source = (ROOT / "oasis_core" / "cli" / "upscale.py").read_text(encoding="utf-8")
    table = README.split("| option | meaning |")[1].split("\n\n")[0]
    assert set(re.findall(r"--[a-z]+(?:-[a-z]+)*", table)) == set(re.findall(r'"(--[a-z-]+)"', source))


def test_files_named_in_the_readme_exist() -> None:
    named = re.findall(r"`((?:assets|benchmarks|docs|oasis_core|workflows)/[\w./-]+)`|\]\(([\w./-]+)\)", README)
    paths = [a or b for a, b in named]
    assert paths
    assert [p for p in paths if not (ROOT / p).exists()] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_runs_what_is_tested() -> None:
    def steps(target: str) -> str:
        return subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "oasis demo --out out" in steps("demo")
    for step in ("ruff check .", "ruff format --check .", "mypy", "python -m pytest"):
        assert step in steps("test")
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")

"""The commands in README and docs can be given as they stand, and a test runs each kind; the options they name exist."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from oasis_core.cli.main import parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_BY = {
    "upscale": "tests/test_cli.py::test_upscale",
    "upscale --decoder": "tests/test_full_size_pipeline.py::test_command_line_end_to_end_and_resumed",
    "upscale --plan": "tests/jobs/test_long_jobs.py::test_a_plan_is_told_and_nothing_is_done",
    "upscale --resume": "tests/test_full_size_pipeline.py::test_command_line_end_to_end_and_resumed",
    "upscale --routing": "tests/test_full_size_routing.py::test_a_routing_for_each_shot_is_not_folded",
    "upscale --engine": "tests/engines/test_ray.py::test_two_workers_make_what_one_makes",
    "upscale --batch": "tests/engines/test_batch.py::test_a_batch_here_goes_on_after_a_bad_file",
    "convert": "tests/test_wan_checkpoints.py::test_command_line",
    "info": "tests/test_wan_checkpoints.py::test_command_line",
    "calibrate": "tests/test_full_size_routing.py::test_a_calibrated_routing_is_found_without_a_decoder_and_folded",
    "routing show": "tests/test_routing_picture.py::test_the_command",
    "routing attention": "tests/test_routing_picture.py::test_the_attention_command",
    "train": "tests/training/test_command.py::test_the_command",
    "evaluate": "tests/test_evaluate_cli.py::test_evaluate",
}
"""What runs each kind of command; for ``upscale`` also with the options that make another thing of it."""


def commands() -> list[str]:
    """The lines of all pages' blocks that call ``oasis``, comments cut off."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = "\n".join(re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL))
        lines = [*fenced.splitlines(), *re.findall(r"^ {4}(oasis .*)$", text, re.MULTILINE)]
        found += [line.split("  #")[0].strip() for line in lines if line.strip().startswith("oasis ")]
    return found


def kinds(command: str) -> set[str]:
    words = shlex.split(command)[1:]
    if words[0] == "routing":
        return {" ".join(words[:2])}
    marks = {f"upscale {w}" for w in words if f"upscale {w}" in RUN_BY} if words[0] == "upscale" else set()
    return marks or {words[0]}


def options(of: argparse.ArgumentParser) -> set[str]:
    found: set[str] = set()
    for action in of._actions:
        found.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found |= options(child)
    return found


def test_there_are_commands() -> None:
    assert len(commands()) > 12


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_command_is_understood_and_its_kind_is_run(command: str) -> None:
    assert parser().parse_args(shlex.split(command)[1:]).run is not None
    assert kinds(command) <= set(RUN_BY)


@pytest.mark.parametrize("kind", RUN_BY)
def test_what_runs_a_command_exists(kind: str) -> None:
    file, _, name = RUN_BY[kind].partition("::")
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_options_named_in_the_docs_exist() -> None:
    known = options(parser())
    files = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "clients").glob("*.py")]
    scripts = "".join(path.read_text(encoding="utf-8") for path in files)
    for page in PAGES:
        for quoted in re.findall(r"`([^`\n]*--[^`\n]*)`", page.read_text(encoding="utf-8")):
            for option in re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", quoted):
                assert option in known or f'"{option}"' in scripts, (page.name, option)

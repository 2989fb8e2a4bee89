"""``oasis train`` as a command: a config in, weights out, and again to go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from oasis_core.checkpoints import load_checkpoint
from oasis_core.cli import main

SMALL = Path(__file__).parents[2] / "configs" / "small.toml"


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "small.toml", tmp_path / "out"
    licences = 'use_licences = "^(?!.*GPL)"\n'
    config.write_text(licences + SMALL.read_text(encoding="utf-8"), encoding="utf-8")
    command = ["train", str(config), "--data", str(data), "--out", str(out), "--device", "cpu"]
    for _ in range(2):  # the second one finds everything done
        assert main(command) == 0
        path = Path(capsys.readouterr().out.strip().splitlines()[-1].removeprefix("weights: "))
        assert load_checkpoint(path).config.name == "small"
    assert main([*command, "--data-device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err

"""``oasis train`` as a command: a config in, weights out, and again to go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from oasis_core.checkpoints import load_checkpoint
from oasis_core.cli import main

CONFIG = """
use_licences = "^(?!.*GPL)"

[model]
name = "small"
unshuffle = [1, 8, 8]
latent_channels = 4
dim = 16
depth = 1
heads = 2
ffn_dim = 16
freq_dim = 8
context_length = 0

[model.decoder]
width = 4
blocks = 1
hr_width = 4
hr_blocks = 0

[[stages]]
name = "dense"
steps = 2
batch = 1
frames = 2
size = 64
lr = 1e-3
lr_end = 1e-3
loss = { pixel = 1.0 }
"""


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "small.toml", tmp_path / "out"
    config.write_text(CONFIG, encoding="utf-8")
    command = ["train", str(config), "--data", str(data), "--out", str(out), "--device", "cpu"]
    for _ in range(2):  # the second one finds everything done
        assert main(command) == 0
        path = Path(capsys.readouterr().out.strip().splitlines()[-1].removeprefix("weights: "))
        assert load_checkpoint(path).config.name == "small"
    assert main([*command, "--data-device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err

"""The fidelity slider: what it asks of the model, and that the shipped model answers."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from oasis_core.checkpoints import embedded_path, load_checkpoint
from oasis_core.cli import main
from oasis_core.geometry import resize
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import DEFAULT_FIDELITY, Upscaler, UpscaleSettings
from oasis_core.routing.spec import HeadPattern, RoutingSpec
from oasis_core.video_io import VideoReader

SAMPLE = Path(__file__).parent.parent / "assets" / "sample.mp4"
PLAIN = OasisConfig(
    name="plain", unshuffle=(1, 8, 8), latent_channels=4, dim=24, depth=1, heads=2, ffn_dim=16, freq_dim=8,
    decoder=PixelDecoderConfig(width=8, blocks=0, hr_width=8, hr_blocks=0),
)  # fmt: skip
CONTROLLED = replace(PLAIN, faithful_timestep=990.0, fidelity_curve=2.0)


def upscaler(config: OasisConfig, fidelity: float | None) -> Upscaler:
    routing = RoutingSpec.uniform(config.depth, config.heads, HeadPattern.GLOBAL)
    return Upscaler(OasisModel(config), routing, UpscaleSettings(fidelity=fidelity))


def test_timestep_moves_along_the_curve() -> None:
    assert [CONTROLLED.timestep_at(f) for f in (0, 0.5, 1)] == [1000.0, 997.5, 990.0]
    assert PLAIN.timestep_at(0) == 1000.0


@pytest.mark.parametrize("fidelity", [-0.1, 1.01, float("nan")])
def test_outside_the_range_is_refused(fidelity: float) -> None:
    with pytest.raises(ValueError, match=r"fidelity is .*from 0 .* to 1"):
        upscaler(CONTROLLED, fidelity)


def test_a_model_without_the_control_says_so() -> None:
    assert upscaler(PLAIN, None).fidelity == 0
    assert upscaler(PLAIN, 0.0).fidelity == 0
    with pytest.raises(ValueError, match="'plain' was trained without it"):
        upscaler(PLAIN, 0.5)


def test_nothing_said_is_the_middle() -> None:
    assert upscaler(CONTROLLED, None).fidelity == DEFAULT_FIDELITY


def test_the_shipped_model_invents_less_with_more_fidelity() -> None:
    """The detail added to the plainly resized input (mean gradient) falls from step to step."""
    checkpoint = load_checkpoint(embedded_path())
    frames = torch.stack([f.rgb for f in islice(VideoReader(SAMPLE), 3)])[:, 40:104, 60:156]
    plain = resize(frames, 256, 384)
    detail = []
    for fidelity in (0.0, 0.25, 0.5, 1.0):
        up = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(fidelity=fidelity))
        change = up.upscale(frames) - plain
        detail.append((change.diff(dim=1).abs().mean() + change.diff(dim=2).abs().mean()).item())
    assert all(more > less for more, less in pairwise(detail)), detail


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(SAMPLE), str(tmp_path / "out.mp4"), "--fidelity", "1.5"]) == 2
    assert "fidelity is 1.5" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()

"""The choice of what runs attention and model: what cannot run here says so, what can changes nothing but speed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oasis_core.attention import TokenGrid
from oasis_core.attention.backends import BACKENDS, NAMES, SDPA, Sdpa, backend_for
from oasis_core.attention.problem import Problem
from oasis_core.cli import main
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.model.fuse import fuse_model
from oasis_core.routing import Extent, RoutingSpec

CPU = torch.device("cpu")
CONFIG = OasisConfig(
    name="random", unshuffle=(1, 8, 8), latent_channels=4, dim=24, depth=2, heads=2, ffn_dim=24, freq_dim=8,
    decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
)  # fmt: skip
ROUTING = RoutingSpec.by_ratio(2, 2, 0.5, 0.0)


def problem(extent: Extent, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> Problem:
    return Problem(TokenGrid(3, 9, 10), extent, 2, 32, dtype, device)


@pytest.fixture
def model() -> OasisModel:
    torch.manual_seed(0)
    model = OasisModel(CONFIG).eval().requires_grad_(False)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def test_every_backend_runs_or_says_what_it_needs() -> None:
    for operation in (Extent(None, None, None), Extent(1, None, None), Extent(3, 5, 5)):
        assert backend_for("auto", CPU).chosen(problem(operation)) is SDPA
    assert set(NAMES) == {"auto", *BACKENDS}
    for name in ("cudnn", "flash-attn", "triton"):
        with pytest.raises(ValueError, match=f"attention {name} cannot be used: it needs an NVIDIA GPU"):
            backend_for(name, CPU)
    with pytest.raises(ValueError, match="attention is 'fast'; allowed: auto, sdpa, cudnn, flash-attn, triton"):
        backend_for("fast", CPU)


def test_the_model_runs_the_backend_that_it_is_given(model: OasisModel) -> None:
    clip = torch.rand(1, 3, 2, 32, 48) * 2 - 1
    expected = model(clip, ROUTING)
    seen: list[str] = []

    class Spy(Sdpa):
        def run(self, problem, q, k, v, out=None):  # type: ignore[no-untyped-def]
            seen.append(problem.operation.value)
            return super().run(problem, q, k, v, out)

    model.dit.attention = Spy()
    assert torch.equal(model(clip, ROUTING), expected)
    assert seen == ["global", "window"] * 2


@pytest.mark.slow
def test_a_compiled_model_makes_the_same_picture(model: OasisModel) -> None:
    clips = [torch.rand(1, 3, t, 32, 48) * 2 - 1 for t in (2, 3)]
    with torch.inference_mode():
        expected = [model(clip, ROUTING) for clip in clips]
        fuse_model(model, dynamic=None)
        for clip, want in zip(clips, expected, strict=True):
            torch.testing.assert_close(model(clip, ROUTING), want, atol=1e-5, rtol=1e-5)


def test_a_failing_compiler_is_one_clear_line(model: OasisModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise OSError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", lambda f, dynamic: torch._dynamo.optimize(broken)(f))
    fuse_model(model)
    with pytest.raises(RuntimeError, match="torch.compile failed .*no compiler here.*; switch compile off"):
        model(torch.rand(1, 3, 2, 32, 48), ROUTING)
    torch._dynamo.reset()


def test_the_command_refuses_what_cannot_run_before_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = Path(__file__).resolve().parents[1] / "assets" / "sample.mp4"
    command = ["upscale", str(sample), str(tmp_path / "out.mp4"), "--device", "cpu", "--attention", "triton"]
    assert main(command) == 2
    assert "attention triton cannot be used: it needs an NVIDIA GPU" in capsys.readouterr().err

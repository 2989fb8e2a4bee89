"""A model of the full size's kind, small: trained through a Wan VAE's decoder that stays as it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from oasis_core.checkpoints import load_checkpoint
from oasis_core.checkpoints.decoder import load_decoder
from oasis_core.checkpoints.match import Naming
from oasis_core.checkpoints.vae_names import ORIGINAL
from oasis_core.model import OasisConfig
from oasis_core.model.decoders import MissingDecoder, WanDecoder
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.training import loop, trainer
from oasis_core.training.config import LossWeights, StageConfig, TrainConfig, load_config
from oasis_core.training.state import TrainState

from .test_loop import CPU, MODEL

WAN = OasisConfig(
    "small-wan", dim=24, depth=2, heads=3, ffn_dim=16, freq_dim=8, context_length=3, decoder=WanDecoderConfig(width=4)
)
STAGE = StageConfig("fine", 60, batch=2, frames=5, size=64, lr=1e-2, lr_end=1e-2, loss=LossWeights(low=0.5))


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file such as Wan's, with random weights."""
    torch.manual_seed(0)
    decoder, naming = WanDecoder(WAN.decoder), Naming("", ORIGINAL)  # type: ignore[arg-type]
    for name, p in decoder.named_parameters():
        torch.nn.init.normal_(p, std=0.1 if p.ndim == 1 else p[0].numel() ** -0.5)
        p.data += 0.7 * name.endswith("gamma")
    path = tmp_path_factory.mktemp("vae") / "wan_2.1_vae.safetensors"
    save_file({naming.theirs(n): t.detach().contiguous() for n, t in decoder.state_dict().items()}, path)
    return path


def config(data: Path, out: Path, vae: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        model=WAN, stages=(STAGE,), data=str(data), out=str(out), decoder=str(vae), checkpoint_blocks=True
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("lora", [0, 2])
def test_the_loss_falls_and_the_decoder_stays(
    lora: int, data: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "LOG_EVERY", 10)
    states: list[TrainState] = []
    write = loop.write_weights
    monkeypatch.setattr(loop, "write_weights", lambda c, s, path: (states.append(s), write(c, s, path)))
    path = loop.train(config(data, tmp_path, vae, lora_rank=lora), CPU)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["pixel"] < 0.95 * lines[0]["pixel"]
    trained, given = states[0].model.decoder.state_dict(), load_decoder(vae, config=WAN.decoder).state_dict()  # type: ignore[arg-type]
    for name, value in given.items():
        assert torch.equal(trained[name], value), f"{name} moved"
    loaded = load_checkpoint(path)
    assert isinstance(loaded.model.decoder, MissingDecoder), "the VAE was written into the model's file"
    loaded.check_trained()


def test_resuming_equals_running_through(
    data: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = dataclasses.replace(STAGE, steps=4)
    whole = loop.train(config(data, tmp_path / "a", vae, stages=(stage,)), CPU)
    step = loop.Trainer.step

    def stop_after_two(self: loop.Trainer, *given: object) -> None:
        if self.state.step == 2:
            raise KeyboardInterrupt
        step(self, *given)  # type: ignore[arg-type]

    half = config(data, tmp_path / "b", vae, stages=(stage,), save_every=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Trainer, "step", stop_after_two)
        loop.train(half, CPU)
    assert not any(n.startswith("decoder.") for n in torch.load(tmp_path / "b" / "state.pt")["model"])
    a, b = load_checkpoint(whole).model.state_dict(), load_checkpoint(loop.train(half, CPU)).model.state_dict()
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(b[name], value), name


def test_the_model_may_be_that_of_the_file_to_start_from(data: Path, tmp_path: Path, vae: Path) -> None:
    stage = dataclasses.replace(STAGE, steps=1)
    start = loop.train(config(data, tmp_path / "a", vae, stages=(stage,)), CPU)
    text = f"""
        data = '{data}'
        out = '{tmp_path / "b"}'
        start_from = '{start}'
        decoder = '{vae}'
        lora_rank = 2
        [[stages]]
        name = "fine"
        steps = 1
        batch = 1
        frames = 5
        size = 64
    """
    (tmp_path / "run.toml").write_text(text)
    run = load_config(tmp_path / "run.toml")
    assert run.model == WAN
    assert load_checkpoint(loop.train(run, CPU)).config == WAN
    (tmp_path / "run.toml").write_text(text.replace("start_from", "# start_from"))
    with pytest.raises(ValueError, match="neither a \\[model\\] nor a start_from"):
        load_config(tmp_path / "run.toml")


def test_refusals(data: Path, tmp_path: Path, vae: Path) -> None:
    with pytest.raises(ValueError, match="'small-wan' has no decoder of its own; name a Wan 2.1 VAE"):
        loop.train(config(data, tmp_path, vae, decoder=""), CPU)
    with pytest.raises(ValueError, match="'small' brings its own; leave it out"):
        dataclasses.replace(config(data, tmp_path, vae), model=MODEL)
    with pytest.raises(FileNotFoundError):
        loop.train(config(data, tmp_path, vae, decoder=str(tmp_path / "none.safetensors")), CPU)

"""The loop on the CPU: the loss falls, a run that was stopped goes on exactly, stages and routing follow the config."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import cv2
import pytest
import torch
from torch import Tensor

from oasis_core.checkpoints import load_checkpoint
from oasis_core.checkpoints.read import read_metadata
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.routing import HeadPattern
from oasis_core.routing.calibrated import read_calibrated
from oasis_core.training import cuda_graph, loop, losses, trainer, validation
from oasis_core.training.config import LossWeights, RoutingBudget, StageConfig, TrainConfig, load_config
from oasis_core.training.discriminator import UNetDiscriminator
from oasis_core.training.feed import Feed
from oasis_core.training.state import learning_rate

CPU = torch.device("cpu")
MODEL = OasisConfig(
    name="small", unshuffle=(1, 8, 8), latent_channels=8, dim=32, depth=2, heads=4, ffn_dim=48, freq_dim=16,
    faithful_timestep=998.0, decoder=PixelDecoderConfig(width=12, blocks=1, hr_width=8, hr_blocks=0),
)  # fmt: skip


def config(data: Path, out: Path, **changes: object) -> TrainConfig:
    stages = (
        StageConfig("dense", 3, batch=2, frames=3, size=64, lr=1e-3, lr_end=1e-3, loss=LossWeights(low=0.5)),
        StageConfig(
            "routed", 3, batch=2, frames=3, size=64, lr=1e-3, lr_end=1e-4, mode="walk", other_scales=0.5, routed=True,
            faithful=0.4, ramp=2, reuse=2, loss=LossWeights(frequency=0.1, motion=0.3, grid=0.02, adversarial=0.05, feature=0.05),
        ),
    )  # fmt: skip
    base = TrainConfig(
        model=MODEL, stages=stages, data=str(data), out=str(out), discriminator_width=8,
        routing=RoutingBudget(global_share=0.25, intra_frame_share=0.25),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_the_loss_falls(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "LOG_EVERY", 10)
    stage = StageConfig("pixel", 60, batch=2, frames=3, size=64, lr=3e-3, lr_end=1e-3)
    loop.train(config(data, tmp_path / "out", stages=(stage,)), CPU)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["pixel"] < 0.97 * lines[0]["pixel"]
    assert cv2.imread(str(tmp_path / "out" / "log.png")).std() > 5, "the log's picture is empty"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_equals_running_through(
    optimizer: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loop.train(config(data, tmp_path / "a", optimizer=optimizer), CPU)
    stopped = config(data, tmp_path / "b", save_every=4, optimizer=optimizer)
    step = loop.Trainer.step

    def stop_after_four(self: loop.Trainer, batch: object, lr: float, offset: int) -> None:
        if self.state.step == 5:
            raise KeyboardInterrupt
        step(self, batch, lr, offset)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Trainer, "step", stop_after_four)
        loop.train(stopped, CPU)
    assert read_metadata(loop.weights_path(stopped)).notes.startswith("trained by `oasis train`: 4 of")
    resumed = loop.train(stopped, CPU)
    a, b = load_checkpoint(whole), load_checkpoint(resumed)
    assert a.routing == b.routing
    for (name, x), y in zip(a.model.state_dict().items(), b.model.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def test_heads_are_specialised_within_the_budget(data: Path, tmp_path: Path) -> None:
    routing = load_checkpoint(loop.train(config(data, tmp_path / "out"), CPU)).routing
    assert routing.share(HeadPattern.GLOBAL) == 0.25
    assert routing.share(HeadPattern.INTRA_FRAME) <= 0.25
    record = read_calibrated(tmp_path / "out" / "routing.json")
    assert record.routing == routing
    assert len(record.kl.mean[0]) == MODEL.depth


def test_a_state_of_another_model_is_refused(data: Path, tmp_path: Path) -> None:
    loop.train(config(data, tmp_path / "out"), CPU)
    other = dataclasses.replace(MODEL, dim=64)
    with pytest.raises(ValueError, match="not a state of this run"):
        loop.train(config(data, tmp_path / "out", model=other), CPU)


def test_learning_rate_warms_up_and_decays() -> None:
    stage = StageConfig("s", 100, lr=1.0, lr_end=0.1, warmup=10)
    rates = [learning_rate(stage, i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1, abs=0.03)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_random_crops_and_stacks_match() -> None:
    sr = torch.rand(2, 3, 5, 72, 72)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = losses.stacked_frames(sr, sr, generator)
    assert torch.equal(ours, theirs)
    assert ours.shape == (2, 9, 72, 72)
    logits, features = UNetDiscriminator(8)(ours)
    assert logits.shape == (2, 1, 72, 72)
    assert losses.feature_match(features, features).item() == 0


@pytest.mark.parametrize(("size", "side"), [(256, 128), (384, 128), (96, 48), (72, 32), (64, 32), (24, 24)])
def test_the_perceptual_term_looks_at_several_sizes_of_the_same_place(size: int, side: int) -> None:
    """Of a picture whose pixels tell where they are: distances between neighbours tell the size, both pictures the same place."""
    ramp = torch.arange(size) / size
    sr = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size), torch.zeros(size, size)])
    sr = sr[None, :, None].repeat(2, 1, 3, 1, 1)
    sr[:, 2] += torch.tensor([0, 0.5, 1]).view(1, 3, 1, 1)  # which frame
    generator, seen, frames, places = torch.Generator().manual_seed(0), set[float](), set[float](), set[float]()
    for _ in range(40):
        ours, theirs = losses.looks(sr, 1 - sr, generator)
        assert ours.shape == theirs.shape == (losses.LOOKS * 2, 3, side, side)
        torch.testing.assert_close(ours, 1 - theirs)
        across = (ours[:, 0, 0, -1] - ours[:, 0, 0, 0]) / (side - 1) * size
        down = (ours[:, 1, -1, 0] - ours[:, 1, 0, 0]) / (side - 1) * size
        torch.testing.assert_close(across, down)  # no stretching
        seen |= {1 / step for step in across.tolist()}
        frames |= set(ours[:, 2, 0, 0].tolist())
        places |= {round(x, 4) for x in ours[:, 0, 0, 0].tolist()}
    assert frames == {0, 0.5, 1}
    if size >= 96:
        nearest = {min(losses.SHARES, key=lambda share: abs(share - one)): one for one in seen}
        assert set(nearest) == set(losses.SHARES)
        assert all(one == pytest.approx(share, abs=0.015) for share, one in nearest.items())
        assert len(places) > 10


def test_the_adversary_s_spectral_norms_are_one() -> None:
    """Against torch's singular values; the power iteration follows the weights as they move."""
    adversary = UNetDiscriminator(6)
    for _ in range(3):
        for conv in adversary.convs:
            conv.weight.data += 0.03 * torch.randn_like(conv.weight)
        for _ in range(60):
            weights = adversary.weights()
        for weight in weights[2:-2]:
            assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_the_spectrum_counts_spread_and_lone_errors_alike() -> None:
    """Parseval: white noise of deviation s has real and imaginary parts of s / sqrt 2; the mean of |normal| is .798."""
    hr = torch.rand(1, 3, 2, 64, 64)
    noise = 0.1 * torch.randn_like(hr)
    expected = 0.1 / 2**0.5 * (2 / torch.pi) ** 0.5
    assert losses.frequency(hr + noise, hr).item() == pytest.approx(expected, rel=0.05)
    assert losses.frequency(hr, hr).item() == 0


def test_fidelity_fades_what_is_perceptual() -> None:
    weights = LossWeights(pixel=1.0, motion=0.3, perceptual=0.4, adversarial=0.02, feature=0.1)
    assert weights.at(0, ramp=1) == weights
    faithful = weights.at(1, ramp=1)
    assert (faithful.perceptual, faithful.adversarial, faithful.feature) == (0, 0, 0)
    assert (faithful.pixel, faithful.motion) == (1.0, 0.3)
    assert weights.at(0.25, ramp=0.5).adversarial == pytest.approx(0.02 * 0.75 * 0.5)
    assert weights.at(0.25, ramp=0.5).perceptual == pytest.approx(0.3)


@pytest.mark.parametrize("between", [0.0, 0.5, 0.9])
def test_fidelities_are_drawn_as_often_as_asked(between: float) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [trainer.draw_fidelity(0.4, between, generator) for _ in range(4000)]
    assert sum(f > 0 for f in drawn) / 4000 == pytest.approx(0.4, abs=0.03)
    assert sum(f == 1 for f in drawn) / 4000 == pytest.approx(0.4 * (1 - between + between / 8), abs=0.03)
    assert all(0 <= f <= 1 for f in drawn)


def test_a_run_starts_from_a_checkpoint_with_its_routing(data: Path, tmp_path: Path) -> None:
    first = loop.train(config(data, tmp_path / "a"), CPU)
    stage = StageConfig("more", 1, batch=2, frames=3, size=64, lr=0.0, lr_end=0.0, routed=True)
    second = loop.train(config(data, tmp_path / "b", start_from=str(first), stages=(stage,)), CPU)
    a, b = load_checkpoint(first), load_checkpoint(second)
    assert a.routing == b.routing
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name]), name
    other = dataclasses.replace(MODEL, dim=64)
    with pytest.raises(ValueError, match="another model config"):
        loop.train(config(data, tmp_path / "c", start_from=str(first), model=other), CPU)


def test_fidelity_needs_a_model_that_has_it(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="faithful_timestep"):
        config(data, tmp_path, model=dataclasses.replace(MODEL, faithful_timestep=None))


def test_the_shipped_config_is_valid(tmp_path: Path) -> None:
    shipped = load_config(Path(__file__).parents[2] / "configs" / "oasis-tiny.toml")
    assert shipped.stage_at(shipped.steps - 1)[0] is shipped.stages[-1]
    bad = tmp_path / "bad.toml"
    bad.write_text((Path(__file__).parents[2] / "configs" / "oasis-tiny.toml").read_text() + "\nspeed = 3\n")
    with pytest.raises(ValueError, match="speed"):
        load_config(bad)
    with pytest.raises(FileNotFoundError, match="not found"):
        load_config(tmp_path / "none.toml")


def test_each_stage_moves_its_part_alone(data: Path, tmp_path: Path) -> None:
    drawing = dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, residual=True))
    stage = StageConfig("draw", 2, batch=2, frames=3, size=64, lr=1e-3, lr_end=1e-3, train="decoder")
    after = []
    for stages in ((stage,), (stage, dataclasses.replace(stage, train="transformer"))):
        out = tmp_path / str(len(stages))
        torch.manual_seed(0)
        loop.train(config(data, out, model=drawing, stages=stages), CPU)
        after.append(torch.load(out / "state.pt", weights_only=True)["model"])
    torch.manual_seed(0)
    start = OasisModel(drawing)
    start.init_weights()
    for name, was in start.state_dict().items():
        drawn, restored = (a[name] for a in after)
        moved = not torch.equal(drawn, was), not torch.equal(restored, drawn)
        if name.startswith("decoder."):
            assert moved == (True, False), name
        else:
            assert not moved[0], name
    assert not torch.equal(after[1]["dit.head.head.weight"], after[0]["dit.head.head.weight"])


def test_the_adversary_is_held_to_its_share(data: Path, tmp_path: Path) -> None:
    """A hundred times the weight gives the same step once the limit holds both; without a limit it does not."""

    def moved(weight: float, limit: float) -> Tensor:
        stage = StageConfig(
            "one",
            1,
            batch=1,
            frames=3,
            size=64,
            lr=1e-3,
            lr_end=1e-3,
            loss=LossWeights(adversarial=weight, feature=0.0),
        )
        out = tmp_path / f"{weight}_{limit}"
        loop.train(config(data, out, stages=(stage,), adversary_limit=limit, clip_gradient=1e9), CPU)
        state = torch.load(out / "state.pt", weights_only=True)["optimizers"][0]["state"]
        return torch.cat([entry["exp_avg"].flatten() for entry in state.values()])

    held, also_held = moved(1e4, 1e-3), moved(1e6, 1e-3)
    torch.testing.assert_close(held, also_held, rtol=1e-4, atol=1e-9)
    assert (moved(1e4, 1e9) - held).norm() > 10 * held.norm()


def test_held_out_clips_are_scored_and_never_trained_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "SIZE", 64)
    held = config(data, tmp_path / "out", validation=("pan_1.mp4", "still_0.jpg"), save_every=3)
    held = dataclasses.replace(held, validation_seen=("pan_0.mp4",))
    loop.train(held, CPU)
    lines = [json.loads(line) for line in (tmp_path / "out" / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 6]
    assert lines[1]["fidelity 0"] == lines[2]["fidelity 0"]  # no draw differs from one time to the next
    assert lines[1]["transformer zeroed"] != lines[1]["fidelity 0"]
    assert lines[0]["seen in training"] != lines[1]["seen in training"]
    with Feed(held, CPU, start=0, stop=1, workers=0) as feed:
        assert (len(feed._library.clips), len(feed._library.stills)) == (1, 2)


def test_a_decoder_stage_with_an_adversary_is_refused() -> None:
    with pytest.raises(ValueError, match="decoder stage has no"):
        StageConfig("draw", 1, train="decoder", loss=LossWeights(adversarial=0.1))
    with pytest.raises(ValueError, match="needs residual = true"):
        TrainConfig(MODEL, (StageConfig("draw", 1, batch=1, frames=1, size=64, train="decoder"),))
    with pytest.raises(ValueError, match="allowed: all, transformer, decoder"):
        StageConfig("draw", 1, train="encoder")  # type: ignore[arg-type]


def test_parameters_that_get_no_gradient_stand_still() -> None:
    """A graph needs a gradient for all that move."""

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    module = Half()
    assert cuda_graph.hold_unreached(module, (torch.rand(2, 4),)) == ["unused.weight", "unused.bias"]
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["used.weight", "used.bias"]
    assert cuda_graph.hold_unreached(module, (torch.rand(2, 4),)) == []

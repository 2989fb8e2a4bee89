"""Routing that is decided while a clip runs: the decision, the shots, resuming, and starting in the middle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.attention import TokenGrid
from oasis_core.checkpoints import load_checkpoint, save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.cli import main
from oasis_core.jobs.folder import job_path
from oasis_core.jobs.manifest import Manifest
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig, dit
from oasis_core.model.fuse import fuse_model
from oasis_core.model.layers import SelfAttention
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import Position
from oasis_core.routing import HeadPattern, RoutingSpec
from oasis_core.routing.auto import AutoRouting, Deciding, ShotRoutings
from oasis_core.routing.calibrated import first_chunk
from oasis_core.routing.calibration import measure
from oasis_core.routing.spec import Pattern

GLOBAL, FRAME, NEAR = HeadPattern.GLOBAL, HeadPattern.INTRA_FRAME, HeadPattern.WINDOW
FRAMES, CUT = 30, 17
WINDOW = (3, 3, 3)
SETTINGS = UpscaleSettings(scale=2.0, chunk_frames=5, chunk_overlap=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model."""
    config = OasisConfig(
        name="dense", unshuffle=(1, 8, 8), latent_channels=4, dim=48, depth=3, heads=4, ffn_dim=24, freq_dim=8,
        decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    model = OasisModel(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    for name, p in model.named_parameters():
        if "norm_" in name:
            p.data *= 4  # sharp attention, which heads lose in different measure
    path = tmp_path_factory.mktemp("model") / "dense.safetensors"
    save_checkpoint(path, model, Metadata(config, RoutingSpec.uniform(3, 4, GLOBAL, WINDOW), "Apache-2.0"))
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> OasisModel:
    return load_checkpoint(path).model


def shots() -> np.ndarray:
    """Two shots of moving stripes ``(FRAMES, 64, 64, 3)`` uint8."""
    y, x = np.mgrid[:64, :64]
    waves = [np.sin((x + 2 * i) / 5) if i < CUT else np.cos((y - 3 * i) / 9) for i in range(FRAMES)]
    return np.stack([np.stack([w, w * (x / 64), -w], -1) * 100 + 128 for w in waves]).astype(np.uint8)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.from_numpy(shots()).float() / 255


def auto(value: float = 2.7, rule: str = "threshold") -> AutoRouting:
    return AutoRouting(rule, value, WINDOW)


def decided(up: Upscaler) -> dict[int, RoutingSpec]:
    assert isinstance(up.routing, ShotRoutings)
    return {shot: spec for shot in range(FRAMES) if (spec := up.routing.of(shot)) is not None}


@pytest.mark.parametrize("choice", [auto(), auto(0.4, "budget"), auto(0.0), auto(99.0)])
def test_the_chunk_that_is_decided_on_is_made_with_the_decision(
    model: OasisModel, frames: torch.Tensor, choice: AutoRouting
) -> None:
    """Bit for bit what the model gives with that routing."""
    up = Upscaler(model, RoutingSpec.uniform(3, 4, GLOBAL), SETTINGS)
    deciding = Deciding(choice)
    with torch.inference_mode():
        z = model.encode(first_chunk(up, frames))
        got = model.restore(z, choice.dense(3, 4), decide=deciding)
        routing = deciding.routing()
        assert torch.equal(got, model.restore(z, routing))
    kinds = {p for layer in routing.layers for p in layer}
    if choice.value == 0:
        assert kinds == {GLOBAL}
    elif choice.value == 99:
        assert kinds == {NEAR}
    else:
        assert len(kinds) > 1
    if choice.rule == "budget":
        assert all(RoutingSpec((layer,), WINDOW).cost((5, 8, 8)) <= 0.4 for layer in routing.layers)


@pytest.mark.parametrize("at_once", [50, 1024])
def test_values_are_made_between_the_question_and_the_answer(
    model: OasisModel, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a device makes them while the host decides."""
    monkeypatch.setattr(dit, "CPU_TOKENS", at_once)
    told, values = [], SelfAttention.values
    monkeypatch.setattr(SelfAttention, "values", lambda self, x: told.append("values") or values(self, x))
    deciding = Deciding(auto())

    def decide(layer: int, q: torch.Tensor, k: torch.Tensor, grid: TokenGrid) -> Callable[[], tuple[Pattern, ...]]:
        told.append("asked")
        patterns = deciding(layer, q, k, grid)
        return lambda: told.append("answered") or patterns()

    z = torch.randn(1, 4, 5, 8, 8)
    with torch.inference_mode():
        got = model.restore(z, auto().dense(3, 4), decide=decide)
        pieces = -(-(5 * 4 * 4) // at_once)
        assert told == ["asked", *["values"] * pieces, "answered"] * 3
        assert torch.equal(got, model.restore(z, deciding.routing()))


@pytest.mark.slow
def test_a_compiled_model_decides_as_it_runs(path: Path) -> None:
    """Its first halves of blocks are compiled with and without values."""
    compiled, deciding = load_checkpoint(path).model, Deciding(auto())
    fuse_model(compiled)
    z = torch.randn(1, 4, 5, 8, 8)
    with torch.inference_mode():
        got = compiled.restore(z, auto().dense(3, 4), decide=deciding)
        assert torch.equal(got, compiled.restore(z, deciding.routing()))


def test_the_first_layer_decides_as_a_calibration_does(model: OasisModel, frames: torch.Tensor) -> None:
    """Of all queries; later layers see what the earlier ones' routing makes of the clip."""
    up = Upscaler(model, RoutingSpec.uniform(3, 4, GLOBAL), SETTINGS)
    pixels = first_chunk(up, frames)
    kl = measure(model, [pixels], WINDOW, queries=0).mean[:, 0]
    deciding = Deciding(replace(auto(), queries=0))
    with torch.inference_mode():
        model.restore(model.encode(pixels), auto().dense(3, 4), decide=deciding)
    expected = [NEAR if near <= 2.7 else FRAME if intra <= 2.7 else GLOBAL for intra, near in kl.T.tolist()]
    assert list(deciding.routing().layers[0]) == expected


def test_every_shot_is_decided_once_and_as_if_it_were_alone(model: OasisModel, frames: torch.Tensor) -> None:
    up = Upscaler(model, auto(), SETTINGS)
    whole = up.upscale(frames)
    assert set(decided(up)) == {0, CUT}
    for start, stop in ((0, CUT), (CUT, FRAMES)):
        alone = Upscaler(model, auto(), SETTINGS)
        assert torch.equal(alone.upscale(frames[start:stop]), whole[start:stop])
        assert decided(alone) == {0: decided(up)[start]}
        fixed = Upscaler(model, decided(up)[start], SETTINGS)
        assert torch.equal(fixed.upscale(frames[start:stop]), whole[start:stop])
    assert torch.equal(up.upscale(frames), whole)  # another stream decides anew


@pytest.mark.parametrize("tile", [0, 48])
def test_a_stream_that_begins_inside_a_shot_decides_the_same(
    model: OasisModel, frames: torch.Tensor, tile: int
) -> None:
    """As a worker does, to whom nobody has told the decision."""
    settings = replace(SETTINGS, tile=tile, tile_overlap=16)
    up = Upscaler(model, auto(), settings)
    parts = list(up.parts(frames, Position()))
    starts = [p.position for p in parts if p.restartable]
    inside = [s for s in starts if s.frame > s.shot]
    assert {s.shot for s in inside} == {0, CUT}
    for start in starts:
        other = Upscaler(model, auto(), settings)
        first = other.first_needed(start)
        again = torch.cat([p.frames for p in other.parts(frames[first:], start)])
        assert torch.equal(again, torch.cat([p.frames for p in parts])[start.frame :])
        assert all(decided(up)[shot] == spec for shot, spec in decided(other).items())


def test_what_is_decided_is_taken(model: OasisModel, frames: torch.Tensor) -> None:
    known = ShotRoutings(auto())
    told: list[int] = []
    known.keep_in({0: RoutingSpec.uniform(3, 4, FRAME)}, lambda shot, spec: told.append(shot))
    up = Upscaler(model, known, SETTINGS)
    parts = torch.cat([p.frames for p in up.parts(frames, Position())])
    assert told == [CUT]
    expected = Upscaler(model, RoutingSpec.uniform(3, 4, FRAME), SETTINGS).upscale(frames[:CUT])
    assert torch.equal(parts[:CUT], expected)


def save_clip(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "bgr0"
        for picture in shots():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def run(clip: Path, out: Path, model: Path, *more: str) -> int:
    fixed = ["--device", "cpu", "--scale", "2", "--chunk", "5", "--overlap", "1", "--segment", "4", "--codec", "ffv1"]
    return main(["upscale", str(clip), str(out), "--model", str(model), *fixed, *more])


def pictures(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="rgb24").tobytes() for f in container.decode(video=0)]


def test_a_job_keeps_its_decisions_and_goes_on_with_them(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, whole, out = save_clip(tmp_path / "in.mkv"), tmp_path / "whole.mkv", tmp_path / "out.mkv"
    choice = ("--routing", "auto:threshold=2.7")
    assert run(clip, whole, path, *choice) == 0
    real, count = OasisModel.decode, 0

    def decode(self: OasisModel, *args: object, **named: object) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 12:
            raise KeyboardInterrupt
        return real(self, *args, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(OasisModel, "decode", decode)
        assert run(clip, out, path, *choice) == 130
    manifest = Manifest.from_json((job_path(out) / "manifest.json").read_text())
    assert set(manifest.routings) == {0}
    assert 0 < manifest.position.frame < CUT
    assert manifest.position.shot == 0
    capsys.readouterr()
    assert run(clip, out, path, "--resume", "--routing", "auto") == 2
    assert "routing was" in capsys.readouterr().err
    made: list[int] = []
    call = Deciding.__call__
    monkeypatch.setattr(Deciding, "__call__", lambda self, layer, *rest: made.append(layer) or call(self, layer, *rest))
    assert run(clip, out, path, "--resume", *choice) == 0
    assert made == [0, 1, 2]  # the second shot alone
    assert pictures(out) == pictures(whole)


def test_a_manifests_decisions_read_back_and_damage_is_refused() -> None:
    spec = RoutingSpec.by_ratio(2, 4, 0.5, 0.25)
    manifest = Manifest({}, decided={"0": spec.to_json(), "17": spec.to_json()})
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.routings == {0: spec, 17: spec}
    for bad in ({"a": spec.to_json()}, {"-1": spec.to_json()}, {"0": 3}, {"0": "{}"}, [], None):
        data = json.loads(manifest.to_json()) | {"decided": bad}
        with pytest.raises(ValueError, match="decided|routing") as caught:
            Manifest.from_json(json.dumps(data))
        assert "\n" not in str(caught.value)


def test_what_makes_no_sense_is_refused(
    tmp_path: Path, path: Path, model: OasisModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert AutoRouting.parse("auto", WINDOW) == AutoRouting(window=WINDOW)
    assert AutoRouting.parse("auto:budget=0.35", WINDOW) == auto(0.35, "budget")
    clip, out = save_clip(tmp_path / "in.mkv"), tmp_path / "out.mkv"
    for text, message in (
        ("auto:", "routing is 'auto:'; give a file, auto, auto:threshold=0.5"),
        ("auto:threshold", "give a file, auto"),
        ("auto:threshold=x", "give a file, auto"),
        ("auto:threshold=-1", "threshold is -1.0; it must be 0 or more"),
        ("auto:threshold=nan", "threshold is nan"),
        ("auto:budget=0", "budget is 0.0; it must be above 0 and at most 1"),
        ("auto:luck=1", "rule is 'luck'; allowed: threshold, budget"),
        ("automatic", "routing file not found"),
    ):
        assert run(clip, out, path, "--routing", text) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert (
        run(clip, out, path, "--routing", "auto:budget=0.000001") == 0
    )  # more, as even the cheapest pattern costs more
    assert run(clip, tmp_path / "tiny.mkv", Path("oasis-tiny"), "--routing", "auto") == 2
    assert "oasis-tiny cannot be calibrated: only 0% of its heads" in capsys.readouterr().err
    up = Upscaler(model, auto(), SETTINGS)
    with pytest.raises(ValueError, match="routing is decided while a clip runs; give one that is fixed"):
        from oasis_core.routing.attention_map import attention_map

        attention_map(up, torch.rand(1, 32, 32, 3), 0, 0)

"""Calibrated routings: made from clips by the command, read back, used, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from oasis_core.checkpoints import load_checkpoint, save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.cli import main
from oasis_core.jobs.fingerprint import hash_model
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import Extent, HeadPattern, RoutingSpec
from oasis_core.routing.calibrated import CalibratedRouting, calibrate, first_chunk, read_calibrated
from oasis_core.routing.picture import NamedRouting, named_routing

GLOBAL, FRAME, NEAR = HeadPattern.GLOBAL, HeadPattern.INTRA_FRAME, HeadPattern.WINDOW


def save_model(path: Path, routing: RoutingSpec, group: int = 1) -> Path:
    config = OasisConfig(
        name=path.stem, unshuffle=(group, 8, 8), latent_channels=4, dim=24, depth=2, heads=2, ffn_dim=24, freq_dim=8,
        decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    model = OasisModel(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    save_checkpoint(path, model, Metadata(config, routing, "Apache-2.0"))
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "dense.safetensors"
    return save_model(path, RoutingSpec.uniform(2, 2, GLOBAL, (3, 3, 3)))


def make_clip(path: Path, frames: int = 6, width: int = 40, height: int = 32) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        coarse = np.random.default_rng(0).integers(0, 255, (height // 8, (width + frames) // 8 + 1, 3), dtype=np.uint8)
        noise = coarse.repeat(8, 0).repeat(8, 1)  # no cut where it moves by a pixel
        for i in range(frames):
            picture = np.ascontiguousarray(noise[:, i : i + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_the_command_writes_a_routing_that_upscale_takes(
    tmp_path: Path, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [make_clip(tmp_path / f"{n}.mkv", n) for n in (3, 6)]
    out = tmp_path / "routing.json"
    command = [
        "calibrate",
        str(dense),
        *map(str, clips),
        "-o",
        str(out),
        "--scale",
        "2",
        "--chunk",
        "4",
        "--device",
        "cpu",
        "--dtype",
        "fp32",
    ]
    assert main([*command, "--budget", "0.5", "--patterns", "window,intra-frame,3xallxall", "--queries", "9"]) == 0
    line = capsys.readouterr().out
    found = read_calibrated(out)
    assert f"attention {found.about['attention_cost']:.1%} of dense" in line
    assert RoutingSpec.from_file(out) == found.routing
    assert found.about["attention_cost"] <= 0.5
    assert found.about["clips"] == [
        {"name": "3.mkv", "pixels": [3, 64, 80], "tokens": [3, 4, 5]},
        {"name": "6.mkv", "pixels": [4, 64, 80], "tokens": [4, 4, 5]},
    ]
    assert found.about["weights_sha256"] == hash_model(load_checkpoint(dense).model)
    assert (found.about["queries"], found.about["seed"], found.about["rule"]) == (9, 0, {"budget": 0.5})
    assert found.routing.window == (3, 3, 3)
    assert found.kl.patterns == (NEAR, FRAME, Extent(3, None, None))
    assert found.kl.of(GLOBAL, 1, 1) == 0
    assert found.kl.of(NEAR, 0, 1) > 0  # type: ignore[operator]
    assert found.kl.of(Extent(1, 1, 1), 0, 1) is None
    assert CalibratedRouting.from_json(found.to_json()) == found
    again = tmp_path / "again.json"
    assert main([*command[:4], "-o", str(again), *command[6:], "--budget", "0.5", "--queries", "9",
                 "--patterns", "window,intra-frame,3xallxall"]) == 0  # fmt: skip
    assert again.read_text() == out.read_text()
    common = ["--model", str(dense), "--device", "cpu", "--codec", "ffv1", "--scale", "2"]
    assert main(["upscale", str(clips[0]), str(tmp_path / "out.mkv"), *common, "--routing", str(out)]) == 0
    assert main([*command, "--threshold", "1e9"]) == 0  # the default patterns
    assert RoutingSpec.from_file(out).share(NEAR) == 1


def exit_code(*argv: str) -> int:
    try:
        return main(list(argv))
    except SystemExit as e:  # argparse
        return int(e.code or 0)


def test_a_routed_model_is_refused_with_the_reason(
    tmp_path: Path, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    routed = save_model(tmp_path / "routed.safetensors", RoutingSpec.by_ratio(2, 2, 0.5, 0.5))
    clip, out, nowhere = make_clip(tmp_path / "in.mkv"), tmp_path / "r.json", tmp_path / "none" / "r.json"
    cases = [
        ([routed, clip, "-o", out], "cannot be calibrated: only 50% of its heads were trained with global attention"),
        ([dense, tmp_path / "none.mkv", "-o", out], "none.mkv"),
        ([dense, clip, "-o", nowhere], "does not exist; create it first"),
        ([dense, clip, "-o", out, "--budget", "1.5"], "attention budget is 1.5"),
        ([dense, clip, "-o", out, "--budget", "0.01"], "it must be at least 0."),
        ([dense, clip, "-o", out, "--threshold", "-1"], "KL threshold is -1"),
        ([dense, clip, "-o", out, "--threshold", "1", "--budget", "1"], "not allowed with"),
        ([dense, clip, "-o", out, "--patterns", "4x4x4"], "pattern is '4x4x4'; known patterns"),
        ([dense, clip, "-o", out, "--patterns", "global"], "calibration got no local pattern"),
        ([dense, clip, "-o", out, "--queries", "-2"], "queries is -2"),
        ([dense, clip, "-o", out, "--scale", "9"], "scale is 9"),
        ([dense, "-o", out], "CLIP"),
    ]
    for argv, message in cases:
        assert exit_code("calibrate", *map(str, argv), "--device", "cpu") == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if "clip/s" not in line and line.strip()]
        assert len(errors) == 1, errors
        assert message in errors[0]
    assert not out.exists()


def test_the_first_chunk_is_what_the_pipeline_gives_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load_checkpoint(
        save_model(tmp_path / "grouped.safetensors", RoutingSpec.uniform(2, 2, GLOBAL), group=4)
    )
    frames = torch.rand(1, 20, 24, 3).repeat(11, 1, 1, 1)
    model, seen = checkpoint.model, []
    restore = model.restore

    def spy(z_l: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(z_l)
        return restore(z_l, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "restore", spy)
    for settings, shape in (
        (UpscaleSettings(scale=2.0, chunk_frames=9, scene_cuts=False), (9, 48, 48)),
        (UpscaleSettings(scale=2.0, chunk_frames=64, scene_cuts=False), (9, 48, 48)),  # 11: no whole group
        (UpscaleSettings(scale=4.0, chunk_frames=1, tile=32, tile_overlap=0, scene_cuts=False), (1, 32, 32)),
    ):
        up = Upscaler(model, checkpoint.routing, settings)
        pixels = first_chunk(up, frames)
        assert pixels.shape == (1, 3, *shape)
        seen.clear()
        up.upscale(frames[: shape[0]])
        assert len(seen) == (9 if settings.tile else 1)  # of 80 x 96 pixels
        torch.testing.assert_close(model.encode(pixels), seen[len(seen) // 2])
    cut = torch.cat([torch.zeros(4, 20, 24, 3), torch.rand(4, 20, 24, 3)])
    assert first_chunk(Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(scale=2.0)), cut).shape[2] == 1
    with pytest.raises(ValueError, match="the clip has no frames"):
        first_chunk(up, [])


def test_what_is_no_calibration_is_refused_in_one_line(dense: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(dense)
    up = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(scale=1.0))
    good = calibrate(up, "dense", [("noise", torch.rand(1, 96, 96, 3).repeat(4, 1, 1, 1))], "budget", 0.9)
    data = json.loads(good.to_json())
    plain = RoutingSpec.uniform(2, 2, NEAR).to_json()
    assert named_routing("plain", plain).kl is None
    assert named_routing("good", good.to_json()) == NamedRouting("good", good.routing, good.kl, (4, 6, 6))
    bad = [
        plain, "", "[]", json.dumps(data | {"calibration": 3}), json.dumps(data | {"calibration": {}}),
        json.dumps(data | {"calibration": data["calibration"] | {"kl": {"window": [[1]]}}}),
        json.dumps(data | {"calibration": data["calibration"] | {"kl": {"none": [[1, 1], [1, 1]]}}}),
        json.dumps(data | {"calibration": data["calibration"] | {"kl_95": None}}),
        json.dumps(data | {"calibration": data["calibration"] | {"clips": []}}),
        json.dumps(data | {"calibration": data["calibration"] | {"clips": [{"tokens": [0, "1", None]}]}}),
    ]  # fmt: skip
    path = tmp_path / "bad.json"
    for text in bad:
        with pytest.raises(ValueError, match="routing") as caught:
            CalibratedRouting.from_json(text)
        assert "\n" not in str(caught.value)
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="bad.json"):
            read_calibrated(path)
    with pytest.raises(ValueError, match="assignment rule is 'luck'; allowed: threshold, budget"):
        calibrate(up, "dense", [("noise", torch.rand(1, 96, 96, 3).repeat(4, 1, 1, 1))], "luck", 1)

"""Full-size models (at reduced width) with a routing that is calibrated, or decided for each shot: folded or not, as commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from oasis_core.checkpoints import load_checkpoint, save_checkpoint
from oasis_core.checkpoints.decoder import load_decoder
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.checkpoints.vae_names import ORIGINAL
from oasis_core.cli import main
from oasis_core.color import ColorMethod
from oasis_core.memory import working_memory
from oasis_core.model import OasisConfig, OasisModel
from oasis_core.model.decoders import WanDecoder
from oasis_core.model.dit import DiT
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import Extent, HeadPattern, RoutingSpec
from oasis_core.routing.auto import AutoRouting
from oasis_core.video_io import VideoReader

CONFIG = OasisConfig(
    "dense", dim=24, depth=2, heads=4, ffn_dim=16, freq_dim=8, context_length=3, decoder=WanDecoderConfig(width=8)
)
DENSE = RoutingSpec.uniform(2, 4, HeadPattern.GLOBAL)
SETTINGS = UpscaleSettings(scale=4.0, color=ColorMethod.NONE, chunk_frames=9, scene_cuts=False)
SAME = ["--scale", "4", "--color", "none", "--chunk", "9", "--no-scene-cuts", "--device", "cpu", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model without a decoder, the decoder, and a clip."""
    folder = tmp_path_factory.mktemp("dense")
    torch.manual_seed(0)
    model, decoder = OasisModel(CONFIG), WanDecoder(WanDecoderConfig(width=8))
    for name, p in (*model.named_parameters(), *decoder.named_parameters()):
        torch.nn.init.normal_(p, std=0.3 if p.ndim == 1 or "modulation" in name else p[0].numel() ** -0.5)
        if "norm" in name or name.endswith("gamma"):
            p.data += 0.7
    decoder.conv_out.weight.data *= 0.2
    save_checkpoint(folder / "m.safetensors", model, Metadata(CONFIG, DENSE, "none", "", True))
    names = {n: next(ORIGINAL[k] + n.removeprefix(k) for k in sorted(ORIGINAL, key=len)[::-1] if n.startswith(k))
             for n in decoder.state_dict()}  # fmt: skip
    save_file({names[n]: t.contiguous() for n, t in decoder.state_dict().items()}, folder / "vae.safetensors")
    with av.open(str(folder / "in.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "bgr0"
        rng = np.random.default_rng(0)
        for _ in range(12):
            picture = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return folder


def upscale(folder: Path, out: Path, *more: str) -> np.ndarray:
    """What the command gives, ``(T, H, W, 3)``."""
    files = ["--model", str(folder / "m.safetensors"), "--decoder", str(folder / "vae.safetensors")]
    assert main(["upscale", str(folder / "in.mkv"), str(out), "--codec", "ffv1", *SAME, *files, *more]) == 0
    with av.open(str(out)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def unfolded(folder: Path, routing: RoutingSpec | AutoRouting) -> np.ndarray:
    """The same from the library, nothing folded."""
    checkpoint = load_checkpoint(folder / "m.safetensors")
    checkpoint.model.attach_decoder(load_decoder(folder / "vae.safetensors"))
    frames = torch.stack([f.rgb for f in VideoReader(folder / "in.mkv")])
    out = Upscaler(checkpoint.model, routing, SETTINGS).upscale(frames)
    return (out * 255).round().to(torch.uint8).numpy()


def furthest(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape == (12, 96, 128, 3)
    return int(np.abs(a.astype(int) - b).max())


def folds(monkeypatch: pytest.MonkeyPatch) -> list[RoutingSpec]:
    """What transformers are folded for, from now on."""
    real, seen = DiT.fold, []

    def fold(self: DiT, routing: RoutingSpec, fidelity: float = 0.0, fp8: bool = False) -> None:
        seen.append(routing)
        real(self, routing, fidelity, fp8)

    monkeypatch.setattr(DiT, "fold", fold)
    return seen


def test_a_calibrated_routing_is_found_without_a_decoder_and_folded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    routing, picture = tmp_path / "r.json", tmp_path / "a.png"
    model, source = str(folder / "m.safetensors"), str(folder / "in.mkv")
    more = ["--budget", "0.5", "--patterns", "intra-frame,1x3x3,3xallxall", "--queries", "0", "--chunk", "9"]
    assert main(["calibrate", model, source, "-o", str(routing), "--device", "cpu", *more]) == 0
    found = RoutingSpec.from_file(routing)
    kinds = {p for layer in found.layers for p in layer}
    assert any(isinstance(p, Extent) for p in kinds)
    assert len(kinds) > 1
    assert main(["routing", "attention", model, source, "-o", str(picture), "--device", "cpu", "--chunk", "5"]) == 0
    assert np.asarray(Image.open(picture)).std() > 1
    capsys.readouterr()
    seen = folds(monkeypatch)
    assert furthest(upscale(folder, tmp_path / "o.mkv", "--routing", str(routing)), unfolded(folder, found)) <= 1
    assert seen == [found]


def test_a_routing_for_each_shot_is_not_folded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = folds(monkeypatch)
    auto = AutoRouting("budget", 0.5, DENSE.window)
    decided = upscale(folder, tmp_path / "o.mkv", "--routing", "auto:budget=0.5")
    assert furthest(decided, unfolded(folder, auto)) <= 1
    assert furthest(decided, unfolded(folder, DENSE)) > 1
    assert seen == []


def test_memory_without_a_decoder_is_the_transformers() -> None:
    with torch.device("meta"):
        bare = OasisModel(replace(CONFIG, dim=1536, heads=12, ffn_dim=8960))
    routing, settings = RoutingSpec.uniform(2, 12, HeadPattern.GLOBAL), UpscaleSettings()
    alone = working_memory(Upscaler(bare, routing, settings, decodes=False), 16, 180, 320)
    bare.attach_decoder(WanDecoder(WanDecoderConfig()).to("meta"))
    assert 2**28 < alone < working_memory(Upscaler(bare, routing, settings), 16, 180, 320)

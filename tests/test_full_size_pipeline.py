"""A model of the full size's kind, made small, end to end: Wan decoder, four frames to a latent frame, continuous decode."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from oasis_core.blend import TemporalCrossFade
from oasis_core.checkpoints import save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.checkpoints.vae_names import ORIGINAL
from oasis_core.cli import main
from oasis_core.color import ColorMethod
from oasis_core.decode_order import WARM_UP
from oasis_core.jobs.fit import WAN_PLANS
from oasis_core.jobs.folder import JobFolder
from oasis_core.jobs.manifest import Manifest
from oasis_core.model import OasisConfig, OasisModel
from oasis_core.model.decoders import DecodePlan, WanDecoder
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.patchify import replicate_first
from oasis_core.pipeline import Part, Upscaler, UpscaleSettings
from oasis_core.plan import Position, plan_chunks
from oasis_core.routing import RoutingSpec

CONFIG = OasisConfig(
    "small", dim=24, depth=2, heads=3, ffn_dim=16, freq_dim=8, context_length=3, decoder=WanDecoderConfig(width=8)
)
ROUTING = RoutingSpec.by_ratio(2, 3, 1 / 3, 1 / 3)
PLAIN = UpscaleSettings(scale=1.0, color=ColorMethod.NONE, chunk_frames=100, tile=0, scene_cuts=False)
CLOSE = 2e-5
"""fp32, order of sums only; pixel values from 0 to 1."""


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def random_model(config: OasisConfig = CONFIG) -> OasisModel:
    """Every weight random; the output stays mostly inside 0 to 1, so that clamping hides nothing."""
    model = OasisModel(config)
    assert isinstance(config.decoder, WanDecoderConfig)
    model.attach_decoder(WanDecoder(config.decoder))
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, std=0.3 if p.ndim == 1 or "modulation" in name else p[0].numel() ** -0.5)
        if "norm" in name or name.endswith("gamma"):
            p.data += 0.7
    model.decoder.conv_out.weight.data *= 0.2  # type: ignore[union-attr, operator]
    return model.eval().requires_grad_(False)


def clip(frames: int, height: int = 16, width: int = 32) -> Tensor:
    return torch.rand(frames, height, width, 3)


def as_frames(pixels: Tensor) -> Tensor:
    return ((pixels[0].movedim(0, -1) + 1) / 2).clamp(0, 1)


@torch.inference_mode()
def reference(model: OasisModel, frames: Tensor, size: int, overlap: int) -> Tensor:
    """Whole clip in memory: z_L, chunks of ``size`` latent frames cross-faded, ONE decode, nothing streamed."""
    fill = -(len(frames) - 1) % 4
    pixels = torch.cat([frames, frames[-1:].expand(fill, -1, -1, -1)]).movedim(-1, 0)[None] * 2 - 1
    z_l = model.encode(replicate_first(pixels, 4), first=False)
    spans = plan_chunks(z_l.shape[2], min(size, z_l.shape[2]), overlap)
    fade = TemporalCrossFade(overlap)
    z_h = torch.cat(
        [fade.add(model.restore(z_l[:, :, s.start : s.stop], ROUTING), s, s is spans[-1]) for s in spans], dim=2
    )
    return as_frames(model.decoder(z_h))[: len(frames)]


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 6, 9, 13])
def test_one_chunk_equals_the_whole(frames: int) -> None:
    model, lr = random_model(), clip(frames)
    out = Upscaler(model, ROUTING, PLAIN).upscale(lr)
    assert out.shape == lr.shape
    expected = reference(model, lr, 100, 0)
    assert expected.std() > 0.05
    assert ((expected == 0) | (expected == 1)).float().mean() < 0.2
    assert (out - expected).abs().max() < CLOSE


@pytest.mark.parametrize(("frames", "chunk", "overlap"), [(21, 9, 1), (30, 13, 2), (26, 5, 0), (33, 17, 3)])
def test_chunks_share_latent_frames_and_one_continuous_decode(frames: int, chunk: int, overlap: int) -> None:
    model, lr = random_model(), clip(frames)
    out = Upscaler(model, ROUTING, replace(PLAIN, chunk_frames=chunk, chunk_overlap=overlap)).upscale(lr)
    assert (out - reference(model, lr, 1 + (chunk - 1) // 4, overlap)).abs().max() < CLOSE


def test_folded_and_in_decoder_tiles_it_is_the_same() -> None:
    model, lr = random_model(), clip(9, 20, 40)
    upscaler = Upscaler(model, ROUTING, replace(PLAIN, scale=2.0))
    expected = upscaler.upscale(lr)
    assert expected.shape == (9, 40, 80, 3)
    model.dit.fold(ROUTING)
    model.decoder.plan = DecodePlan(tile=32, frames=2, keep_on=torch.device("cpu"))  # type: ignore[assignment]
    assert (upscaler.upscale(lr) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("frames", [1, 5, 12, 22])
@pytest.mark.parametrize("plan", [DecodePlan(latents=2), DecodePlan(frames=4, latents=2), DecodePlan(latents=3)])
def test_latent_frames_that_are_decoded_together_give_the_same(frames: int, plan: DecodePlan) -> None:
    model, lr = random_model(), clip(frames)
    settings = replace(PLAIN, chunk_frames=9, chunk_overlap=1)
    expected = Upscaler(model, ROUTING, settings).upscale(lr)
    model.decoder.plan = plan  # type: ignore[assignment]
    found = list(Upscaler(model, ROUTING, settings).stream(iter(lr), len(lr)))
    sizes = [1, *[4 * plan.latents] * (frames // 4)]
    assert [len(part) for part in found[:-1]] == sizes[: len(found) - 1]
    assert (torch.cat(found) - expected).abs().max() < CLOSE


@pytest.mark.parametrize(("frames", "restart"), [(1, None), (5, 8), (22, None), (30, 8)])
def test_tiles_in_turn_give_the_same(frames: int, restart: int | None) -> None:
    model, lr = random_model(), clip(frames, 20, 40)
    settings, polls = replace(PLAIN, chunk_frames=13, chunk_overlap=1, restart_frames=restart), []
    expected = Upscaler(model, ROUTING, settings).upscale(lr)
    model.decoder.plan = DecodePlan(  # type: ignore[assignment]
        16, frames=4, keep_on=torch.device("cpu"), latents=2, turn=9, resident=1
    )
    upscaler = Upscaler(model, ROUTING, settings)
    found = list(upscaler.stream(iter(lr), len(lr), poll=lambda: polls.append(1)))
    assert max(len(part) for part in found) <= 8  # finished by two latent frames, though decoded by four
    assert (torch.cat(found) - expected).abs().max() < CLOSE
    assert frames < 22 or len(polls) > 2 * 2 * len(found)


def parts(upscaler: Upscaler, frames: Tensor, start: Position) -> list[Part]:
    return list(upscaler.parts(iter(frames[upscaler.first_needed(start) :]), start))


@pytest.mark.parametrize("color", [ColorMethod.NONE, ColorMethod.LAB])
@pytest.mark.parametrize(
    ("chunk", "overlap", "restart", "latents"), [(5, 0, 8, 1), (9, 1, 10, 2), (13, 2, 1, 3), (9, 1, 10, -3)]
)
def test_from_any_restartable_part_on_a_stream_gives_the_same(
    chunk: int, overlap: int, restart: int, latents: int, color: ColorMethod
) -> None:
    model, frames = random_model(), 0.1 * clip(46)
    model.decoder.plan = DecodePlan(latents=max(1, latents), turn=max(0, -latents))  # type: ignore[assignment]
    frames[:25] += torch.linspace(0, 0.8, 32)[:, None]
    frames[25:] += torch.linspace(0.9, 0, 16)[:, None, None]  # a cut
    settings = replace(PLAIN, chunk_frames=chunk, chunk_overlap=overlap, scene_cuts=True, color=color)
    upscaler = Upscaler(model, ROUTING, settings).restarting(restart)
    whole = parts(upscaler, frames, Position())
    assert sum(len(p.frames) for p in whole) == 46
    places = [p.position for p in whole if p.restartable]
    assert len(places) > 3
    assert Position(25, 25) in places
    stride = 4 * (upscaler.chunk - upscaler.chunk_overlap)
    assert all((b.frame - a.frame) <= restart + 2 * stride for a, b in pairwise(places))
    for place in places:
        again = parts(upscaler, frames, place)
        expected = [p for p in whole if p.position >= place]
        assert [p.position for p in again] == [p.position for p in expected]
        assert [p.restartable for p in again] == [p.restartable for p in expected]
        for a, b in zip(again, expected, strict=True):
            assert (a.frames - b.frames).abs().max() < CLOSE


def test_without_restarts_a_shot_is_decoded_in_one_go() -> None:
    model, frames = random_model(), clip(40)
    settings = replace(PLAIN, chunk_frames=9)
    whole = parts(Upscaler(model, ROUTING, settings), frames, Position())
    assert [p.position.frame for p in whole if p.restartable] == [0]


def test_a_restart_that_is_warmed_up_is_nearer_to_the_continuous_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights, whose memory is long: a bound on the direction, not on the size."""
    model, frames = random_model(), clip(50)
    settings = replace(PLAIN, chunk_frames=17, chunk_overlap=0)
    continuous = Upscaler(model, ROUTING, settings).upscale(frames)
    errors = []
    for warm_up in (1, 2, WARM_UP, 8):
        monkeypatch.setattr("oasis_core.decode_order.WARM_UP", warm_up)
        restarted = Upscaler(model, ROUTING, settings).restarting(20).upscale(frames)
        errors.append(float((restarted - continuous).abs().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0


# The command line.


def files(folder: Path) -> tuple[Path, Path, Path]:
    """A clip, a model and its decoder."""
    config = CONFIG
    model = random_model(config)
    decoder, model_path, vae = model.decoder, folder / "m.safetensors", folder / "vae.safetensors"
    names = {n: next(ORIGINAL[k] + n.removeprefix(k) for k in sorted(ORIGINAL, key=len)[::-1] if n.startswith(k))
             for n in decoder.state_dict()}  # fmt: skip
    save_file({names[n]: t.contiguous() for n, t in decoder.state_dict().items()}, vae)
    bare = OasisModel(config)
    bare.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("decoder.")})
    save_checkpoint(model_path, bare, Metadata(config, ROUTING, "none", "", True))
    source = folder / "in.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv444p"
        rng = np.random.default_rng(0)
        for i in range(14):
            picture = np.full((16, 16, 3), 10 * i, np.uint8) + rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return source, model_path, vae


def test_command_line_end_to_end_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model, vae = files(tmp_path)
    options = ["--model", str(model), "--decoder", str(vae), "--scale", "1", "--codec", "ffv1", "--device", "cpu",
               "--dtype", "fp32", "--chunk", "5", "--overlap", "0", "--segment", "5", "--no-scene-cuts"]  # fmt: skip
    whole, broken = tmp_path / "whole.mkv", tmp_path / "broken.mkv"
    assert main(["upscale", str(source), str(whole), *options]) == 0
    assert "14 frames, 16x16" in capsys.readouterr().out
    real, count = OasisModel.decode, 0

    def decode(self: OasisModel, *args: object, **named: object) -> Tensor:
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return real(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(OasisModel, "decode", decode)
    assert main(["upscale", str(source), str(broken), *options]) == 130
    monkeypatch.setattr(OasisModel, "decode", real)
    assert main(["upscale", str(source), str(broken), *options, "--resume"]) == 0
    assert "kept from before" in capsys.readouterr().out
    frames = [pictures(path) for path in (whole, broken)]
    assert frames[0].shape == (14, 16, 16, 3)
    assert frames[0].std() > 5
    assert np.abs(frames[0].astype(int) - frames[1]).max() <= 1


def test_a_job_begun_with_little_memory_goes_on_with_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was planned is not what was asked for: the job is the same, and so is its plan."""
    source, model, vae = files(tmp_path)
    options = ["--model", str(model), "--decoder", str(vae), "--scale", "1", "--codec", "ffv1", "--device", "cpu",
               "--dtype", "fp32", "--chunk", "13", "--overlap", "0", "--segment", "5", "--no-scene-cuts"]  # fmt: skip
    out, manifests = tmp_path / "out.mkv", list[Manifest]()
    add = JobFolder.add

    def stop(self: JobFolder, *given: Any) -> None:
        add(self, *given)
        manifests.append(self.manifest)
        if len(manifests) == 1:
            raise OSError("the end")

    monkeypatch.setattr(JobFolder, "add", stop)
    monkeypatch.setattr("oasis_core.video_job.device_budget", lambda device: 1 << 10)
    assert main(["upscale", str(source), str(out), *options]) == 2
    assert (manifests[0].chunk_frames, manifests[0].decode_plan) == (5, WAN_PLANS[-1])
    monkeypatch.setattr("oasis_core.video_job.device_budget", lambda device: 1 << 40)
    assert main(["upscale", str(source), str(out), *options, "--resume"]) == 0
    assert (manifests[-1].chunk_frames, manifests[-1].decode_plan) == (5, WAN_PLANS[-1])
    monkeypatch.undo()
    whole = tmp_path / "whole.mkv"
    assert main(["upscale", str(source), str(whole), *options[:-6], "5", *options[-5:]]) == 0
    assert np.abs(pictures(out).astype(int) - pictures(whole)).max() <= 1


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_refusals(tmp_path: Path) -> None:
    bare = OasisModel(CONFIG)
    with pytest.raises(ValueError, match="--decoder"):
        Upscaler(bare, ROUTING, PLAIN)
    with pytest.raises(ValueError, match="decoder is for 3 latent channels"):
        bare.attach_decoder(WanDecoder(WanDecoderConfig(width=8, latent_mean=(0.0,) * 3, latent_std=(1.0,) * 3)))
    own = OasisModel(OasisConfig("x", dim=24, depth=1, heads=2, ffn_dim=4, freq_dim=4))
    with pytest.raises(ValueError, match="takes no other"):
        own.attach_decoder(WanDecoder(CONFIG.decoder))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs \\(4, 8, 8\\) and 16"):
        replace(CONFIG, unshuffle=(1, 8, 8))
    with pytest.raises(ValueError, match="restart is 0"):
        replace(PLAIN, restart_frames=0)

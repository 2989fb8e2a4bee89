"""On CUDA: attention, the pipeline and a training step against the same on the CPU (`pytest -m gpu`)."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from oasis_core.attention import TokenGrid, routed, routed_attention
from oasis_core.attention.backends import BACKENDS, backend_for
from oasis_core.attention.reference import reference_attention
from oasis_core.checkpoints import embedded_path, load_checkpoint
from oasis_core.color import ColorMethod
from oasis_core.jobs.fit import device_budget
from oasis_core.memory import working_memory
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig, dit
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.plan import Position
from oasis_core.ready import ready
from oasis_core.routing import Extent, HeadPattern, RoutingSpec
from oasis_core.routing.auto import AutoRouting, Deciding
from oasis_core.routing.divergence import kernel_missing, localisation_kl
from oasis_core.training.config import LossWeights, StageConfig, TrainConfig
from oasis_core.training.feed import Batch
from oasis_core.training.parallel import Group
from oasis_core.training.state import TrainState
from oasis_core.training.trainer import Trainer
from oasis_core.transfer import sent
from oasis_core.video_io import VideoReader

pytestmark = pytest.mark.gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SAMPLE = Path(__file__).parent.parent / "assets" / "sample.mp4"
# Of values of about 1: fp32 by summation order (tf32 off), bf16 and fp16 by their own rounding.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("pattern", HeadPattern)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (3, 9, 10), (5, 16, 16), (2, 31, 33)])
def test_attention_equals_the_reference(shape: tuple[int, int, int], pattern: HeadPattern, dtype: torch.dtype) -> None:
    grid = TokenGrid(*shape)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, grid.length, 3, 32, generator=generator).to(dtype) for _ in range(3))
    expected, _ = reference_attention(q, k, v, grid, pattern, (3, 5, 5))
    got = routed_attention(q.cuda(), k.cuda(), v.cuda(), grid, (pattern,) * 3, (3, 5, 5)).cpu()
    torch.testing.assert_close(got.to(expected.dtype), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("text", ["3xallxall", "allx3x3", "3x7x7", "1xallx3", "3x3xall"])
@pytest.mark.parametrize("shape", [(1, 1, 7), (5, 16, 16), (2, 31, 33)])
def test_every_backend_runs_any_extent(shape: tuple[int, int, int], text: str, name: str) -> None:
    if why := BACKENDS[name].missing(CUDA):
        pytest.skip(why)
    backend = backend_for(name, CUDA)
    grid, extent = TokenGrid(*shape), Extent.parse(text)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, grid.length, 3, 64, generator=generator).bfloat16() for _ in range(3))
    expected, _ = reference_attention(q, k, v, grid, extent, (3, 5, 5))
    got = routed_attention(q.cuda(), k.cuda(), v.cuda(), grid, (extent,) * 3, (3, 5, 5), backend).cpu()
    torch.testing.assert_close(got.float(), expected, atol=2e-2, rtol=2e-2)


def test_what_localising_loses_is_the_same() -> None:
    grid, generator = TokenGrid(4, 17, 19), torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, grid.length, 5, 32, generator=generator) for _ in range(2))
    extents, queries = [Extent.parse(t) for t in ("1xallxall", "3x5x5", "3xallxall")], torch.randperm(grid.length)[:100]
    got = localisation_kl(q.cuda(), k.cuda(), grid, extents, queries.cuda()).cpu()
    torch.testing.assert_close(got, localisation_kl(q, k, grid, extents, queries), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_localising_loses_is_the_same_by_the_kernel(dtype: torch.dtype) -> None:
    grid, generator = TokenGrid(4, 17, 19), torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, grid.length, 5, 64, generator=generator).to(dtype) for _ in range(2))
    assert kernel_missing(q.cuda().device, dtype, 64) is None
    extents, queries = [Extent.parse(t) for t in ("1xallxall", "3x5x5", "allx5x5")], torch.randperm(grid.length)[:64]
    got = localisation_kl(q.cuda(), k.cuda(), grid, extents, queries.cuda()).cpu()
    torch.testing.assert_close(got, localisation_kl(q, k, grid, extents, queries), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("at_once", [100, 10**6])
def test_a_decision_makes_nothing_wait_but_itself(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the pass in which it is made is, bit for bit, one with the routing that it found; in slices too."""
    monkeypatch.setattr(dit, "DEVICE_TOKENS", at_once)
    config = OasisConfig("small", dim=256, heads=4, ffn_dim=128, depth=3)
    torch.manual_seed(0)
    model = OasisModel(config).eval()
    model.init_weights()
    torch.nn.init.normal_(model.dit.head.head.weight, std=0.02)
    for name, p in model.named_parameters():
        if "norm_" in name:
            p.data *= torch.linspace(0.5, 4, len(p))  # attention of a sharpness of its own in each head
    model.to(CUDA, torch.bfloat16)
    z = torch.randn(1, config.latent_channels, 5, 16, 18).to(CUDA, torch.bfloat16)
    auto = AutoRouting("threshold", 2.5)
    dense = auto.dense(config.depth, config.heads)
    with torch.inference_mode():
        model.restore(z, dense, decide=Deciding(auto))  # what is made once for a grid may wait
        routed._index.cache_clear()  # as if the heads came in an order that is new
        deciding = Deciding(auto)
        torch.cuda.set_sync_debug_mode("error")  # but for events
        try:
            got = model.restore(z, dense, decide=deciding)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        routing = deciding.routing()
        assert torch.equal(got, model.restore(z, routing))
        assert not torch.equal(got, model.restore(z, dense))
    assert all(len(set(layer)) > 1 for layer in routing.layers)


def test_deciding_costs_under_two_percent_of_a_forward_pass() -> None:
    """Three blocks of the full size on 33 frames of 720x1280: the share is that of any number. Medians.

    A budget of 1 leaves the solver little to do; what it takes otherwise is in docs/routing.md."""
    config = OasisConfig("full size", depth=3)
    with CUDA:
        model = OasisModel(config).to(torch.bfloat16).eval()
        model.init_weights()
        clip = torch.rand(1, 3, 33, 720, 1280, dtype=torch.bfloat16) * 2 - 1
    dense = RoutingSpec.uniform(config.depth, config.heads, HeadPattern.GLOBAL)
    choices = (
        None,
        AutoRouting("threshold", 0.0),
        AutoRouting("budget", 1.0),
    )  # all stay global: only deciding is added
    seconds: list[list[float]] = [[] for _ in choices]
    with torch.inference_mode():
        z = model.encode(clip)
        for _ in range(9):
            for times, auto in zip(seconds, choices, strict=True):
                torch.cuda.synchronize()
                began = time.perf_counter()
                model.restore(z, dense, decide=None if auto is None else Deciding(auto))
                torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
    plain, *deciding = (statistics.median(times[2:]) for times in seconds)
    assert max(deciding) < 1.02 * plain, (plain, deciding)


@pytest.mark.parametrize(("dtype", "codes"), [(torch.float32, 0.02), (torch.bfloat16, 1.0), (torch.float16, 0.2)])
def test_the_shipped_model_gives_the_same_picture(dtype: torch.dtype, codes: float) -> None:
    """``codes``: allowed mean difference, in steps of an 8-bit picture."""
    frames = torch.stack([frame.rgb for frame, _ in zip(VideoReader(SAMPLE), range(4), strict=False)])[:, :96, :128]
    results = []
    for device, kind in ((CPU, torch.float32), (CUDA, dtype)):
        checkpoint = load_checkpoint(embedded_path(), device, kind)
        up = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(chunk_frames=3, chunk_overlap=1))
        results.append(up.upscale(frames))
    assert (results[0] - results[1]).abs().mean().item() * 255 < codes


def test_a_training_step_as_a_graph_equals_one_without(tmp_path: Path) -> None:
    """Two steps of the whole loss on the device, captured, against the same uncaptured (checkpointed blocks)."""
    model = OasisConfig(
        name="small", unshuffle=(1, 8, 8), latent_channels=8, dim=64, depth=2, heads=4, ffn_dim=96, freq_dim=16,
        faithful_timestep=998.0, decoder=PixelDecoderConfig(width=16, blocks=1, hr_width=8, hr_blocks=1),
    )  # fmt: skip
    loss = LossWeights(low=0.5, frequency=0.1, motion=0.3, adversarial=0.05, feature=0.05)
    stage = StageConfig("s", 2, batch=2, frames=3, size=64, lr=1e-3, lr_end=1e-3, loss=loss)
    base = TrainConfig(model=model, stages=(stage,), out=str(tmp_path), discriminator_width=8)
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, 3, 64, 64, generator=generator).cuda()
    batch = Batch(torch.nn.functional.avg_pool3d(hr, (1, 4, 4)), hr)
    weights = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        net = OasisModel(model)
        net.init_weights()
        config = dataclasses.replace(base, checkpoint_blocks=checkpointed)
        state = TrainState(config, net, None, device=CUDA)
        trainer = Trainer(config, state, CUDA, Group())
        trainer.enter(stage, batch)
        for offset in range(2):
            trainer.step(batch, 1e-3, offset)
        weights.append(np.concatenate([p.detach().float().cpu().numpy().ravel() for p in state.trained]))
    moved = np.abs(weights[0]).mean()
    assert np.abs(weights[0] - weights[1]).mean() < 0.02 * moved


def test_the_stages_of_a_run_follow_each_other_on_the_device(tmp_path: Path) -> None:
    """Decoder, transformer and all of a residual model in turn, compiled and captured: what shall move does, what not stays."""
    model = OasisConfig(
        name="small", unshuffle=(1, 8, 8), latent_channels=8, dim=64, depth=2, heads=4, ffn_dim=96, freq_dim=16,
        faithful_timestep=998.0, decoder=PixelDecoderConfig(width=16, blocks=1, hr_width=8, hr_blocks=1, residual=True),
    )  # fmt: skip
    loss = LossWeights(low=0.5, frequency=0.1)
    parts: tuple[Literal["all", "transformer", "decoder"], ...] = ("decoder", "transformer", "all")
    stages = tuple(
        StageConfig(p, 2, batch=2, frames=3, size=64, lr=1e-3, lr_end=1e-3, train=p, loss=loss) for p in parts
    )
    config = TrainConfig(model=model, stages=stages, out=str(tmp_path), discriminator_width=8)
    hr = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).cuda()
    batch = Batch(torch.nn.functional.avg_pool3d(hr, (1, 4, 4)), hr)
    torch.manual_seed(0)
    net = OasisModel(model)
    net.init_weights()
    state = TrainState(config, net, None, device=CUDA)
    trainer = Trainer(config, state, CUDA, Group(), fuse=True)
    for stage in stages:
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        trainer.enter(stage, batch)
        for offset in range(2):
            trainer.step(batch, 1e-3, offset)
        moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
        decoder = {name for name in before if name.startswith("decoder.")}
        rest = {name for name in before if name not in decoder and before[name].numel()}
        expected = {"decoder": decoder, "transformer": rest, "all": decoder | rest}[stage.train]
        assert not moved - expected, stage.name
        assert len(expected - moved) < 0.1 * len(expected), sorted(expected - moved)


def test_frames_come_to_the_device_as_they_are() -> None:
    frames = torch.rand(3, 20, 30, 3)
    for given in (frames, frames[..., :2], frames.half(), frames.to(CUDA)):
        there = sent(given, CUDA)
        assert (there.device.type, there.dtype) == ("cuda", given.dtype)
        torch.testing.assert_close(there.cpu(), given.cpu(), atol=0, rtol=0)


def test_what_may_be_taken_is_told_of_a_device_without_a_number() -> None:
    budget, numbered = device_budget(CUDA), device_budget(torch.device("cuda", torch.cuda.current_device()))
    assert budget
    assert numbered
    assert abs(budget - numbered) < 2**28  # others may use the device in between


@pytest.mark.parametrize("size", [(180, 320), (270, 480), (540, 960)])
def test_what_ships_needs_no_more_than_is_predicted(size: tuple[int, int]) -> None:
    """Whole frames of 720p, 1080p and 4K, four times enlarged: the plan keeps a tenth of what is free in reserve."""
    checkpoint = load_checkpoint(embedded_path(), CUDA, torch.bfloat16)
    settings = UpscaleSettings(tile=0, scene_cuts=False)
    upscaler = ready(checkpoint, checkpoint.routing, settings, "auto", False)
    frames = torch.rand(20, *size, 3)
    upscaler.upscale(frames[:16])  # kernels are chosen, tables made
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    upscaler.upscale(frames)
    peak, predicted = torch.cuda.max_memory_allocated() - before, working_memory(upscaler, 20, *size)
    print(f"{size}: {peak / 2**30:.3f} GiB, predicted {predicted / 2**30:.3f}, {peak / predicted:.3f}")
    assert peak < 1.1 * predicted


@pytest.mark.parametrize("color", ColorMethod)
def test_several_frames_at_once_give_what_one_gives(color: ColorMethod) -> None:
    """In fp32; and in bf16 a stream that begins at any chunk is the same, bit for bit."""
    frames = torch.rand(1, 24, 32, 3) * torch.linspace(0.5, 1, 40)[:, None, None, None]
    checkpoint = load_checkpoint(embedded_path(), CUDA, torch.float32)
    settings = UpscaleSettings(scene_cuts=False, color=color)
    several, one = (Upscaler(checkpoint.model, checkpoint.routing, replace(settings, at_once=n)) for n in (None, 1))
    assert several.latents(several.geometry(24, 32)) == 16
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert (several.upscale(frames) - one.upscale(frames)).abs().max() < 1e-4
    checkpoint = load_checkpoint(embedded_path(), CUDA, torch.bfloat16)
    narrow = ready(checkpoint, checkpoint.routing, settings, "auto", False)
    parts = list(narrow.parts(iter(frames), Position()))
    whole = torch.cat([p.frames for p in parts])
    for place in (p.position for p in parts if p.restartable):
        again = torch.cat([p.frames for p in narrow.parts(iter(frames[narrow.first_needed(place) :]), place)])
        assert torch.equal(again, whole[place.frame :])

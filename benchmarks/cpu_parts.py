"""oasis-tiny on a CPU beside Real-ESRGAN x4plus's network, and where its time goes (``speed.py --parts cpu``)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from clock import now
from flops import decoder_flops_per_pixel, transformer_flops
from random_models import TINY, random_tiny, routings
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from oasis_core.attention import TokenGrid
from oasis_core.attention.backends import Sdpa
from oasis_core.attention.problem import Problem
from oasis_core.checkpoints import load_checkpoint
from oasis_core.checkpoints.read import embedded_path
from oasis_core.color import ColorCorrector
from oasis_core.model import OasisModel
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import RoutingSpec
from oasis_core.training.rrdb import RRDBNet

LOW = (180, 320)
"""Rows and columns of the frame that is enlarged four times."""
HOST = torch.device("cpu")
Way = tuple[Callable[[], object], int]
"""What is done, and how many frames it makes."""


def network(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """One frame through Real-ESRGAN x4plus's network, channels last."""
    last = torch.channels_last
    net = RRDBNet().to(device, dtype).eval().to(memory_format=last)  # type: ignore[call-overload]
    still = torch.rand(1, 3, *LOW, device=device, dtype=dtype).contiguous(memory_format=last)
    return lambda: net(still)


class Timed(Sdpa):
    """The attention that runs on a CPU, with a clock for each operation."""

    def __init__(self, seconds: Counter[str]) -> None:
        self.seconds = seconds

    def run(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
        began = now(HOST)
        out = super().run(problem, q, k, v, out)
        self.seconds[f"attention, {problem.operation.value}"] += now(HOST) - began
        return out


def parts(model: OasisModel, routing: RoutingSpec, clip: Tensor) -> dict[str, float]:
    """Milliseconds of the cores a frame of each stage, as the pipeline runs them; ``clip`` is one chunk, the model folded."""
    seconds: Counter[str] = Counter()

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            began = now(HOST)
            done = work(*args, **more)
            seconds[name] += now(HOST) - began
            return done

        return run

    before, correct = model.dit.attention, ColorCorrector.correct
    upscaler = Upscaler(model, routing, UpscaleSettings(scene_cuts=False))
    for name, owner, method in (
        ("upsample, twice", upscaler.ends, "pixels"),
        ("encode with upsampling", upscaler.ends, "encode"),
        ("transformer", upscaler, "_one_step"),
    ):
        setattr(owner, method, timed(name, getattr(owner, method)))
    model.dit.attention = Timed(seconds)
    model.decode = timed("decode", model.decode)  # type: ignore[method-assign]
    ColorCorrector.correct = timed("colour", correct)  # type: ignore[method-assign]
    try:
        began = now(HOST)
        upscaler.upscale(clip)
        whole = now(HOST) - began
    finally:
        del model.decode
        model.dit.attention, ColorCorrector.correct = before, correct  # type: ignore[method-assign]
    up, attended = seconds["upsample, twice"], sum(s for n, s in seconds.items() if n.startswith("attention"))
    rows = {
        "upsample, twice": up,
        "encode": seconds["encode with upsampling"] - up / 2,
        "transformer but attention": seconds["transformer"] - attended,
        **{n: s for n, s in sorted(seconds.items()) if n.startswith("attention")},
        "decode": seconds["decode"],
        "colour": seconds["colour"],
    }
    rows["all else"] = whole - sum(rows.values())
    return {n: round(s / len(clip) * 1000, 1) for n, s in rows.items()}


def arithmetic() -> dict[str, float]:
    """GFLOP a frame."""
    rows, columns = LOW
    grid = TokenGrid(UpscaleSettings.chunk_frames, rows // 4, columns // 4)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        RRDBNet()(torch.empty(1, 3, *LOW))
    done = {
        "transformer": transformer_flops(TINY, grid, routings(TINY)["routed"]) / grid.t / 1e9,
        "decode": decoder_flops_per_pixel(TINY) * rows * columns * 16 / 1e9,
        "Real-ESRGAN x4plus": counter.get_total_flops() / 1e9,
    }
    return {name: round(giga, 1) for name, giga in done.items()}


def measured(ways: dict[str, Way], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds a frame by the cores' clock and by the wall's, the least of ``rounds``, in turns: a busy machine slows all."""
    done: dict[str, dict[str, float]] = {}
    for turn in range(rounds + 1):
        for name, (work, frames) in ways.items():
            wall, cores = time.perf_counter(), now(HOST)
            work()
            took = {"cores": (now(HOST) - cores) / frames * 1000, "wall": (time.perf_counter() - wall) / frames * 1000}
            if turn:
                done[name] = {clock: round(min(ms, done.get(name, took)[clock]), 1) for clock, ms in took.items()}
    return done


def cpu(record: dict[str, Any], rounds: int) -> None:
    """Both networks, the other one in its better format; oasis-tiny in the shape of configs/oasis-tiny.toml and as shipped."""
    clip = torch.rand(UpscaleSettings.chunk_frames, *LOW, 3)
    ways: dict[str, Way] = {}
    stages = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        shipped = load_checkpoint(embedded_path(), HOST, dtype)
        ours = {"oasis-tiny": (random_tiny(HOST, dtype), routings(TINY)["routed"])}
        ours["shipped weights"] = (shipped.model, shipped.routing)
        for which, (model, routing) in ours.items():
            upscaler = Upscaler(model, routing, UpscaleSettings(scene_cuts=False))
            model.dit.fold(routing, upscaler.fidelity)
            ways[f"{which}, {name}"] = (partial(upscaler.upscale, clip), len(clip))
        if dtype == torch.bfloat16:
            stages = {which: partial(parts, *ours[which], clip) for which in ours}
        ways[f"Real-ESRGAN x4plus, {name}"] = (network(HOST, dtype), 1)
    best = measured(ways, rounds)
    ratios = {
        f"{which}, {clock}": round(_least(best, "Real", clock) / _least(best, which, clock), 2)
        for which in stages
        for clock in ("cores", "wall")
    }
    split = {which: work() for which, work in stages.items()}
    record["cpu"] = {
        "threads": torch.get_num_threads(), "ms a frame": best, "ratio": ratios, "stages, bf16, ms of the cores": split,
        "GFLOP a frame": arithmetic(),
    }  # fmt: skip
    for way, ms in best.items():
        print(f"{way}: {ms['cores']:.0f} ms a frame of the cores, {ms['wall']:.0f} of the wall")
    for which, rows in split.items():
        print(f"{which}, bf16, ms of the cores: " + ", ".join(f"{stage} {ms:.0f}" for stage, ms in rows.items()))
    print(f"GFLOP a frame: {record['cpu']['GFLOP a frame']}")
    print(f"ratio: {ratios}, {torch.get_num_threads()} threads", flush=True)


def _least(best: dict[str, dict[str, float]], which: str, clock: str) -> float:
    return min(ms[clock] for way, ms in best.items() if way.startswith(which))

"""The full-size model end to end on random weights: time by stage, peak memory against the prediction, dense against routed.

    python benchmarks/full_size.py                 # a CUDA device, bf16, true size: some minutes, no files needed
    python benchmarks/full_size.py --limit 8       # the same in 8 GiB: the plan that is made for it
    python benchmarks/full_size.py --small         # a CPU, small sizes: does it run?

Clips of 33 frames at 720x1280 and 1088x1920 and of 85 frames at 720x1280 come as a quarter of that (random pixels), and go
through the whole pipeline but files. The cost does not depend on the weights; the picture is noise. Writes
``benchmarks/results/full_size_DATE.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch
from clock import GIB, with_peak
from random_models import FULL, fill
from torch import Tensor, nn

from oasis_core.attention.backends import NAMES, backend_for
from oasis_core.jobs.fit import device_budget, fit, told
from oasis_core.memory import gathers_windows, transformer_memory, wan_decoder_memory, working_memory
from oasis_core.model import OasisConfig, OasisModel
from oasis_core.model.decoders import DecodePlan, DecoderState, WanDecoder
from oasis_core.model.fuse import fuse_model
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import HeadPattern, RoutingSpec

SMALL_SIZE = replace(
    FULL, name="small", dim=48, depth=2, heads=3, ffn_dim=64, freq_dim=16, decoder=WanDecoderConfig(width=8)
)
CASES = ((33, 720, 1280), (33, 1088, 1920), (85, 720, 1280))
SMALL_CASES = ((9, 64, 96),)
DECODE, WHOLE = "decode, latent frames a call: {}", "whole pipeline"


@dataclass(frozen=True)
class Device:
    """What is measured on, and how."""

    device: torch.device
    dtype: torch.dtype

    def measure(self, work: Callable[[], object], rounds: int) -> dict[str, float | None]:
        return with_peak(work, self.device, rounds)


def build(config: OasisConfig, on: Device) -> OasisModel:
    """The model with its decoder, convolutions in the layout of their inputs."""
    with torch.device("meta"):
        model = OasisModel(config)
        assert isinstance(config.decoder, WanDecoderConfig)
        model.decoder = WanDecoder(config.decoder)
    fill(model, on.device, on.dtype)
    for p in model.decoder.parameters():
        if p.ndim in (4, 5):
            last = torch.channels_last if p.ndim == 4 else torch.channels_last_3d
            p.data = p.data.contiguous(memory_format=last)
    return model


def gib(count: float) -> float:
    return round(count / GIB, 2)


def weights_of(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def stage_times(
    model: OasisModel, routing: RoutingSpec, case: tuple[int, int, int], on: Device, rounds: int
) -> tuple[dict[str, dict[str, float | None]], dict[str, float]]:
    """Each stage by itself, and the peaks in GiB that are predicted."""
    frames, height, width = case
    config, decoder = model.config, model.decoder
    assert isinstance(decoder, WanDecoder)
    pixels = torch.rand(1, 3, frames, height, width, device=on.device, dtype=on.dtype) * 2 - 1
    z_l = model.encode(pixels)

    def decode(at_once: int) -> None:
        state = DecoderState()
        for piece in z_l.split(at_once, dim=2):
            decoder(piece, state)

    stages = {
        "project": on.measure(lambda: model.encode(pixels), rounds),
        "transformer": on.measure(lambda: model.restore(z_l, routing), rounds),
        DECODE.format(1): on.measure(lambda: decode(1), rounds),
        DECODE.format(2): on.measure(lambda: decode(2), rounds),
    }
    element = pixels.element_size()
    held = weights_of(model) + (pixels.numel() + z_l.numel()) * element
    step = transformer_memory(
        config, model.dit.grid(z_l), element, routing, gathers_windows(model), model.dit.folded is not None
    )
    predicted = {"transformer": gib(held + step)}
    for n in (1, 2):
        state, work = wan_decoder_memory(decoder.config, height, width, n, decoder.plan, element)
        predicted[DECODE.format(n)] = gib(held + state + work)
    return stages, predicted


def run_case(
    model: OasisModel, routing: RoutingSpec, case: tuple[int, int, int], on: Device, rounds: int, fitted: bool,
    tile: int | None = 0,
) -> dict[str, object]:  # fmt: skip
    """One clip, stage by stage and whole; ``fitted``: whole alone, with the plan for the memory that is allowed; so, too, where
    frames go in tiles (``UpscaleSettings.tile``)."""
    frames, height, width = case
    stages, predicted = ({}, {}) if fitted or tile != 0 else stage_times(model, routing, case, on, rounds)
    upscaler = Upscaler(model, routing, UpscaleSettings(scale=4, chunk_frames=frames, tile=tile, scene_cuts=False))
    if fitted:
        upscaler = fit(upscaler, frames, height // 4, width // 4, device_budget(on.device))
        print(f"  plan: chunk {upscaler.settings.chunk_frames}, {told(model.decoder.plan)}")  # type: ignore[arg-type]
    clip = torch.rand(frames, height // 4, width // 4, 3)
    check(upscaler.upscale(clip), case)
    whole = on.measure(lambda: upscaler.upscale(clip), rounds)
    stages = stages_inside(upscaler, clip, on) if fitted else stages
    predicted[WHOLE] = gib(weights_of(model) + working_memory(upscaler, frames, height // 4, width // 4))
    for name, got in {**stages, WHOLE: whole}.items():
        peak = "" if got["peak_gib"] is None else f", peak {got['peak_gib']:.2f} GiB"
        said = f" (predicted {predicted[name]:.2f})" if name in predicted else ""
        print(f"  {frames} x {height}x{width} {name}: {got['ms']:.0f} ms{peak}{said}", flush=True)
    return {
        "frames": frames, "height": height, "width": width, "stages": stages, "predicted_gib": predicted,
        WHOLE: whole, "frames_per_second": round(frames / (float(whole["ms"] or 0) / 1000), 2),
    }  # fmt: skip


def stages_inside(upscaler: Upscaler, clip: Tensor, on: Device) -> dict[str, dict[str, float | None]]:
    """Transformer and decoder within one turn of the whole pipeline, waiting for the device before and after each call."""
    spent: dict[str, float] = {"transformer": 0.0, "decode": 0.0}
    hooks = []

    def now() -> float:
        if on.device.type == "cuda":
            torch.cuda.synchronize(on.device)
        return time.perf_counter()

    for name, module in (("transformer", upscaler.model.dit), ("decode", upscaler.model.decoder)):

        def before(*_: object, name: str = name) -> None:
            spent[name] -= now()

        def after(*_: object, name: str = name) -> None:
            spent[name] += now()

        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    upscaler.upscale(clip)
    for hook in hooks:
        hook.remove()
    return {name: {"ms": 1000 * seconds, "peak_gib": None} for name, seconds in spent.items()}


def check(out: Tensor, case: tuple[int, int, int]) -> None:
    """Raises AssertionError for a result of another size, or with values that are no numbers."""
    assert out.shape == (*case, 3), out.shape
    assert bool(torch.isfinite(out).all())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small sizes on the CPU: does it run?")
    parser.add_argument("--rounds", type=int, default=3, help="turns after the first (default 3)")
    parser.add_argument("--attention", default="auto", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--compile", action="store_true", help="compile the blocks first")
    parser.add_argument("--unfolded", action="store_true", help="keep all weights as they are stored")
    parser.add_argument("--tile", type=int, default=0, help="decoder tile in output pixels (default 0: whole frames)")
    parser.add_argument(
        "--at-once", type=int, default=0, help="output frames that its large stages take (default: all)"
    )
    parser.add_argument("--routing", default="", help="only those whose name holds this: dense, third, window")
    parser.add_argument("--cases", default="", help="such as 33x720x1280,85x720x1280 instead of the three")
    parser.add_argument(
        "--limit", type=float, default=0, help="GiB that the process may take: plan for it (default: all)"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.small:
        on, config, cases = Device(torch.device("cpu"), torch.float32), SMALL_SIZE, SMALL_CASES
    elif not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --small runs on the CPU")
    else:
        on, config, cases = Device(torch.device("cuda", 0), torch.bfloat16), FULL, CASES
    if args.cases:
        cases = tuple((int(a), int(b), int(c)) for a, b, c in (case.split("x") for case in args.cases.split(",")))
    if args.limit and on.device.type == "cuda":
        fraction = args.limit * GIB / torch.cuda.get_device_properties(on.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, fraction), torch.cuda.current_device())
    plan = DecodePlan(args.tile, frames=args.at_once)
    third = 1 / 3
    routings = {
        "dense": RoutingSpec.uniform(config.depth, config.heads, HeadPattern.GLOBAL),
        "a third of the heads each": RoutingSpec.by_ratio(config.depth, config.heads, third, third),
        "all window": RoutingSpec.uniform(config.depth, config.heads, HeadPattern.WINDOW),
    }
    routings = {name: routing for name, routing in routings.items() if args.routing in name}
    if not routings:
        raise SystemExit(f"no routing's name holds {args.routing!r}; there are: dense, third, window")
    results: dict[str, list[dict[str, object]]] = {}
    with torch.inference_mode():
        for name, routing in routings.items():
            torch.manual_seed(0)
            model = build(config, on)
            model.dit.attention = backend_for(args.attention, on.device)
            if not args.unfolded:
                model.dit.fold(routing)
                model.decoder.fold()  # type: ignore[operator]
            if args.compile:
                fuse_model(model)
            assert isinstance(model.decoder, WanDecoder)
            model.decoder.plan = plan
            print(f"{name}: {gib(weights_of(model))} GiB of weights", flush=True)
            results[name] = [run_case(model, routing, case, on, args.rounds, args.limit > 0) for case in cases]
            del model
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    chip = torch.cuda.get_device_name(on.device) if on.device.type == "cuda" else platform.machine()
    record = {
        "date": date.today().isoformat(), "commit": commit, "device": chip, "torch": torch.__version__,
        "dtype": str(on.dtype), "attention": args.attention, "compile": args.compile, "folded": not args.unfolded,
        "decode_tile": args.tile, "decode_frames": args.at_once, "limit_gib": args.limit,
        "model": config.name, "results": results,
    }  # fmt: skip
    small = "_small" if args.small else ""
    path = args.json or Path(__file__).parent / "results" / f"full_size{small}_{date.today().isoformat()}.json"
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()

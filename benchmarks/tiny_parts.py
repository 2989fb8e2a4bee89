"""What the shipped size's time goes to: stages, and on a CUDA device kernels and host calls by name.

    python benchmarks/tiny_parts.py [--attention NAME] [--json FILE]

The sizes of configs/oasis-tiny.toml with random weights, 180x320 to 720x1280 as shipped (chunks of 16 frames).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from clock import now
from torch.profiler import ProfilerActivity, profile

from oasis_core.attention import backends
from oasis_core.color import ColorCorrector
from oasis_core.frame_groups import FrameGroup
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.model.graphs import Graphs
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import HeadPattern, RoutingSpec

TINY = OasisConfig(
    "oasis-tiny", unshuffle=(1, 8, 8), latent_channels=64, dim=256, depth=10, heads=8, ffn_dim=768, freq_dim=64,
    rope_theta=100.0, faithful_timestep=998.0, decoder=PixelDecoderConfig(width=64, blocks=5, residual=True),
)  # fmt: skip
"""configs/oasis-tiny.toml."""
HEIGHT, WIDTH = 180, 320


def tiny_routing(config: OasisConfig) -> RoutingSpec:
    """The shares of configs/oasis-tiny.toml: one head of all global, 6 of 80 within their frame, the rest windows."""
    g, i, w = HeadPattern.GLOBAL, HeadPattern.INTRA_FRAME, HeadPattern.WINDOW
    rest = (w,) * (config.heads - 1)
    kinds = [g] + [i] * round(0.075 * config.heads * config.depth)
    layers = [(kind, *rest) for kind in kinds] + [(w, *rest)] * config.depth
    return RoutingSpec(tuple(layers[: config.depth]))


def build(device: torch.device, dtype: torch.dtype, config: OasisConfig = TINY) -> OasisModel:
    torch.manual_seed(0)
    model = OasisModel(config)
    model.init_weights()
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.02)
    return model.to(device, dtype).eval().requires_grad_(False)


def seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The best of ``rounds`` after two to warm up."""
    times = []
    for _ in range(rounds + 2):
        began = now(device)
        work()
        times.append(now(device) - began)
    return min(times[2:])


def stages(up: Upscaler, device: torch.device, rounds: int) -> dict[str, float]:
    """Milliseconds a frame of each stage by itself, of the whole, and of the whole as the wall has it."""
    model, dtype = up.model, up.model.project.weight.dtype
    group = FrameGroup(torch.rand(1, HEIGHT, WIDTH, 3), 1, first=True)
    pixels = up._pixels(group)
    narrow = pixels.to(dtype)
    z = torch.cat([up._encode(group) for _ in range(up.chunk)], dim=2)
    z_h = z[:, :, :1]
    decoded = model.decode(z_h, narrow)
    flat = decoded.float()[0].movedim(0, -1)
    corrector = ColorCorrector(up.settings.color)
    routing = up.routing
    assert isinstance(routing, RoutingSpec)
    done = {
        "upsample": seconds(lambda: up._pixels(group), device, rounds),
        "encode": seconds(lambda: model.encode(narrow), device, rounds),
        "transformer": seconds(lambda: model.restore(z, routing, fidelity=up.fidelity), device, rounds) / up.chunk,
        "decode": seconds(lambda: model.decode(z_h, narrow), device, rounds),
        "colour": seconds(lambda: corrector.correct(flat, flat), device, rounds),
        "to the host": seconds(flat.cpu, device, rounds),
        "a frame's end": seconds(lambda: up._decode(group, z_h, corrector, None), device, rounds),
    }
    frames = 3 * (up.chunk - up.chunk_overlap) + up.chunk_overlap
    clip = torch.rand(frames, HEIGHT, WIDTH, 3)
    done["whole"] = seconds(lambda: up.upscale(clip), device, max(1, rounds // 3)) / frames
    began = time.perf_counter()
    up.upscale(clip)
    done["whole, wall"] = (time.perf_counter() - began) / frames
    return {name: value * 1000 for name, value in done.items()}


def profiled(work: Callable[[], object], title: str) -> None:
    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as prof:
        work()
        torch.cuda.synchronize()
    found = prof.key_averages()
    device = [(e.device_time_total / 1000, e.count, e.key) for e in found if e.device_type.name == "CUDA"]
    host = [(e.self_cpu_time_total / 1000, e.count, e.key) for e in found if e.device_type.name == "CPU"]
    for kind, rows in (("device", device), ("host", host)):
        print(f"{title}, {kind}: {sum(r[0] for r in rows):.1f} ms in {sum(r[1] for r in rows)} calls")
        for ms, count, key in sorted(rows, reverse=True)[:16]:
            print(f"  {ms:8.2f} ms {count:6d} x {key[:100]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--attention", default="auto", help="a backend")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--plain", action="store_true", help="neither folded nor as graphs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    model, routing = build(device, dtype), tiny_routing(TINY)
    model.dit.attention = backends.backend_for(args.attention, device)
    up = Upscaler(model, routing, UpscaleSettings())
    if not args.plain:
        model.dit.fold(routing, up.fidelity)
        model.dit.graphs = Graphs() if device.type == "cuda" else None
    with torch.inference_mode():
        done = stages(up, device, args.rounds)
        for name, ms in done.items():
            print(f"{name}: {ms:.3f} ms a frame", flush=True)
        if device.type == "cuda":
            z = torch.randn(1, 64, up.chunk, 90, 160, device=device, dtype=dtype)
            profiled(lambda: model.restore(z, routing, fidelity=up.fidelity), "transformer, a chunk")
            clip = torch.rand(2 * up.chunk, HEIGHT, WIDTH, 3)
            profiled(lambda: up.upscale(clip), f"whole, {len(clip)} frames")
    if args.json:
        args.json.write_text(json.dumps({"arguments": sys.argv[1:], "ms": done}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

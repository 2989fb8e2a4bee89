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
from clock import milliseconds
from random_models import TINY, random_tiny, tiny_routing
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from oasis_core.attention import backends
from oasis_core.color import ColorCorrector
from oasis_core.frame_groups import FrameGroup
from oasis_core.model.graphs import Graphs
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import RoutingSpec
from oasis_core.training.rrdb import RRDBNet

HEIGHT, WIDTH = 180, 320


def seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    return milliseconds(work, device, rounds) / 1000


def stages(up: Upscaler, device: torch.device, rounds: int, clip: Tensor) -> dict[str, float]:
    """Milliseconds a frame of each stage by itself, on the frames ``(T, H, W, 3)`` of one chunk; as many at once as in a job."""
    model, dtype = up.model, up.model.project.weight.dtype
    at_once = up.latents(up.geometry(*clip.shape[1:3]))
    groups = [FrameGroup(frame[None], 1, first=number == 0) for number, frame in enumerate(clip[:at_once])]
    pixels = up.ends.pixels(groups)
    narrow = pixels.to(dtype)
    z = torch.cat([up.ends.encode(groups[:1])] * len(clip), dim=2)
    z_h = z[:, :, :at_once]
    decoded = model.decode(z_h, narrow)
    flat = decoded.float()[0].movedim(0, -1)
    corrector = ColorCorrector(up.settings.color)
    routing = up.routing
    assert isinstance(routing, RoutingSpec)
    parts: dict[str, Callable[[], object]] = {
        "upsample": lambda: up.ends.pixels(groups),
        "encode": lambda: model.encode(narrow),
        "transformer": lambda: model.restore(z, routing, fidelity=up.fidelity),
        "decode": lambda: model.decode(z_h, narrow),
        "colour": lambda: corrector.correct(flat, flat, at_once),
        "to the host": flat.cpu,
        "a frame's end": lambda: up.ends.decode(groups, z_h, corrector, None),
    }
    done = {name: milliseconds(work, device, rounds) for name, work in parts.items()}
    return {name: ms / (len(clip) if name == "transformer" else at_once) for name, ms in done.items()}


def whole(up: Upscaler, device: torch.device, rounds: int) -> dict[str, float]:
    """Milliseconds a frame of a clip of some chunks; and as the wall has it, where that is not the same."""
    frames = up.chunk if device.type == "cpu" else 3 * (up.chunk - up.chunk_overlap) + up.chunk_overlap
    clip = torch.rand(frames, HEIGHT, WIDTH, 3)
    done = {"whole": milliseconds(lambda: up.upscale(clip), device, max(1, rounds // 3))}
    began = time.perf_counter()
    up.upscale(clip)
    done["whole, wall"] = (time.perf_counter() - began) * 1000
    return {name: ms / frames for name, ms in done.items()}


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
    parser.add_argument("--at-once", type=int, help="frames drawn in one call; by default as in a job")
    parser.add_argument("--plain", action="store_true", help="neither folded nor as graphs")
    parser.add_argument("--peer", action="store_true", help="Real-ESRGAN x4plus's network, too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    model, routing = random_tiny(device, dtype), tiny_routing(TINY)
    model.dit.attention = backends.backend_for(args.attention, device)
    up = Upscaler(model, routing, UpscaleSettings(at_once=args.at_once))
    if not args.plain:
        model.dit.fold(routing, up.fidelity)
        model.dit.graphs = Graphs() if device.type == "cuda" else None
    with torch.inference_mode():
        done = stages(up, device, args.rounds, torch.rand(up.chunk, HEIGHT, WIDTH, 3))
        done |= whole(up, device, args.rounds)
        if args.peer:
            other = RRDBNet().to(device, dtype).eval().to(memory_format=torch.channels_last)
            still = torch.rand(1, 3, HEIGHT, WIDTH, device=device, dtype=dtype).to(memory_format=torch.channels_last)
            done["Real-ESRGAN x4plus"] = milliseconds(lambda: other(still), device, max(1, args.rounds // 3))
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

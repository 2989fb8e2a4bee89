"""The whole table of speeds in one command: stages, frames per second, TFLOP/s, share of what the chip can do, memory.

    python benchmarks/speed.py                                  # CUDA: everything, some minutes; JSON, table and PNG
    python benchmarks/speed.py --parts ceilings,full --routing routed    # less than two minutes, as is every part alone
    python benchmarks/speed.py --parts cpu                      # a CPU: oasis-tiny beside Real-ESRGAN x4plus

Parts: ``ceilings`` (what this machine multiplies and copies at best), ``tiny`` and ``full`` (sizes of configs/oasis-tiny.toml
and of Wan 2.1 1.3B, random weights, bf16), ``small`` (the latter with the small decoder, 33 frames of 720p), ``peer``
(Real-ESRGAN x4plus's network on the same device), ``cpu``. Parts that run later add to the same JSON. Clips come as a quarter of
the output's sides; a 4K frame goes in tiles. ``share`` is the arithmetic at the rate of the machine's own square products in bf16
against the time that was taken: 1 is the roof. What peers' numbers rest on: benchmarks/peers.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from clock import milliseconds
from cpu_parts import LOW, cpu, network
from flops import ceilings, decoder_flops_per_pixel, transformer_flops
from full_size import DECODE, WHOLE, Device, build, run_case
from random_models import FULL, TINY, fill, random_tiny, routings
from tiny_parts import stages

from oasis_core.attention.backends import backend_for
from oasis_core.model import OasisConfig
from oasis_core.model.decoders import TaehvDecoder
from oasis_core.model.graphs import Graphs
from oasis_core.model.vae_config import TaehvConfig
from oasis_core.patchify import latent_length
from oasis_core.pipeline import Upscaler, UpscaleSettings

Case = tuple[int, int, int]
CASES: tuple[Case, ...] = (
    (5, 720, 1280), (17, 720, 1280), (33, 720, 1280), (85, 720, 1280), (33, 480, 832), (33, 1088, 1920), (5, 2176, 3840),
)  # fmt: skip
"""Frames, height and width of the output."""
GROWTH = {"frames": [c for c in CASES if c[1:] == (720, 1280)], "pixels": [c for c in CASES if c[0] == 33]}
Record = dict[str, Any]


def key(case: Case) -> str:
    return "x".join(map(str, case))


def full(record: Record, on: Device, wanted: str, cases: tuple[Case, ...], rounds: int, fp8: bool) -> None:
    """The full size by routing: stages and whole pipeline of each case, arithmetic beside them."""
    for name, routing in ((n, r) for n, r in routings(FULL).items() if wanted in n):
        model = build(FULL, on)
        model.dit.attention = backend_for("auto", on.device)
        model.dit.fold(routing, fp8=fp8)
        model.decoder.fold()  # type: ignore[operator]
        print(f"full, {name}{', fp8' * fp8}", flush=True)
        done = record.setdefault(f"full, {name}{', fp8' * fp8}", {})
        for case in cases:
            frames, height, width = case
            tile = None if UpscaleSettings().tiling(height // 16, width // 16, 16)[0] else 0
            got: Record = run_case(model, routing, case, on, rounds, False, tile)
            steps = got.pop("stages")
            times = {s: steps[s]["ms"] for s in ("project", "transformer") if s in steps}
            if steps:
                times["decode"] = min(steps[DECODE.format(n)]["ms"] for n in (1, 2))
            grid = model.dit.grid(torch.empty(1, 16, latent_length(frames, 4), height // 8, width // 8, device="meta"))
            tera = {
                "transformer": transformer_flops(FULL, grid, routing) / 1e12,
                "decode": decoder_flops_per_pixel(FULL) * frames * height * width / 1e12,
            }
            whole = got[WHOLE]
            done[key(case)] = row(case, times, tera if steps else {}, whole["ms"], whole["peak_gib"], record)
            torch.cuda.empty_cache() if on.device.type == "cuda" else None


def tiny(record: Record, on: Device, wanted: str, cases: tuple[Case, ...], rounds: int, label: str = "tiny") -> None:
    """The shipped size in the same way, in its own chunks; stages are for a whole chunk's frames, each by itself."""
    for name, routing in ((n, r) for n, r in routings(TINY).items() if wanted in n):
        model = random_tiny(on.device, on.dtype)
        model.dit.attention = backend_for("auto", on.device)
        upscaler = Upscaler(model, routing, UpscaleSettings(scene_cuts=False))
        model.dit.fold(routing, upscaler.fidelity)
        model.dit.graphs = Graphs() if on.device.type == "cuda" else None
        print(f"{label}, {name}", flush=True)
        done = record.setdefault(f"{label}, {name}", {})
        for case in cases:
            frames, height, width = case
            clip = torch.rand(frames, height // 4, width // 4, 3)
            whole = on.measure(partial(upscaler.upscale, clip), rounds)
            at_once = min(frames, upscaler.chunk)
            grid = model.dit.grid(torch.empty(1, 64, at_once, height // 8, width // 8, device="meta"))
            whole_frames = not upscaler.tiling(grid.h, grid.w)[0]
            each = stages(upscaler, on.device, rounds, clip[:at_once]) if whole_frames else {}
            tera = {
                "transformer": transformer_flops(TINY, grid, routing) / at_once * frames / 1e12,
                "decode": decoder_flops_per_pixel(TINY) * frames * height * width / 1e12,
            }
            times = {stage: ms * frames for stage, ms in each.items()}
            done[key(case)] = row(case, times, tera if each else {}, whole["ms"], whole["peak_gib"], record)


def small(
    record: Record, on: Device, cases: tuple[Case, ...], rounds: int, fp8: bool, config: OasisConfig = FULL
) -> None:
    """The full size, routed, with the small decoder (TAEHV): the whole pipeline."""
    routing, name = routings(config)["routed"], f"full, routed, small decoder{', fp8' * fp8}"
    model = build(config, on)
    with torch.device("meta"):
        tiny_decoder = TaehvDecoder(TaehvConfig())
    model.decoder = fill(tiny_decoder, on.device, on.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.dit.attention = backend_for("auto", on.device)
    model.dit.fold(routing, fp8=fp8)
    print(name, flush=True)
    done = record.setdefault(name, {})
    for case in cases:
        upscaler = Upscaler(model, routing, UpscaleSettings(chunk_frames=case[0], tile=0, scene_cuts=False))
        clip = torch.rand(case[0], case[1] // 4, case[2] // 4, 3)
        whole = on.measure(partial(upscaler.upscale, clip), rounds)
        done[key(case)] = row(case, {}, {}, whole["ms"], whole["peak_gib"], record)


def row(
    case: Case, times: dict[str, float], tera: dict[str, float], whole: float | None, peak: float | None, record: Record
) -> Record:
    """One line of the table, printed as it comes."""
    assert whole is not None
    ceiling = record.get("ceilings", {}).get("bf16 TFLOP/s")
    rates = {s: round(t / times[s] * 1000, 1) for s, t in tera.items()}
    got = {
        "ms": {s: round(ms, 3) for s, ms in times.items()}, "TFLOP/s": rates,
        "share": {s: round(r / ceiling, 3) for s, r in rates.items()} if ceiling else {},
        "whole ms": round(whole, 2), "frames per second": round(case[0] / whole * 1000, 2),
        "peak GiB": None if peak is None else round(peak, 2),
    }  # fmt: skip
    said = ", ".join(
        f"{s} {ms:.1f} ms" + (f" ({rates[s]:.0f} TFLOP/s)" if s in rates else "") for s, ms in times.items()
    )
    print(f"  {key(case)}: whole {whole:.1f} ms, {got['frames per second']} frames per second; {said}", flush=True)
    return got


def peer(record: Record, on: Device, rounds: int) -> None:
    ms = milliseconds(network(on.device, on.dtype), on.device, rounds)
    record["Real-ESRGAN x4plus"] = {"ms a frame": ms}
    print(f"Real-ESRGAN x4plus: {ms:.1f} ms a frame of {LOW[0]}x{LOW[1]}", flush=True)


def draw(record: Record, picture: Path) -> None:
    """Growth with frames and with pixels, of each model and routing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (along, cases) in zip(figure.subplots(1, 2), GROWTH.items(), strict=True):
        for name, rows in record.items():
            at = sorted(
                (c[0] if along == "frames" else c[1] * c[2] / 1e6, rows[key(c)]["whole ms"] / 1000)
                for c in cases
                if name.startswith(("full", "tiny")) and key(c) in rows
            )
            if at:
                axes.plot(*zip(*at, strict=True), "o-", markersize=3, linewidth=1, label=name)
        axes.set(xscale="log", yscale="log", ylabel="seconds", title=f"{record['device']}: growth with {along}")
        axes.set_xlabel("frames of 720x1280" if along == "frames" else "megapixels, 33 frames")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both", linewidth=0.4)
        axes.legend(fontsize=7) if axes.lines else None
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", default="", help="of ceilings, tiny, full, small, peer, cpu (default: all that run here)"
    )
    parser.add_argument("--routing", default="", help="only those whose name holds this: dense, routed, window")
    parser.add_argument("--cases", default="", help="such as 33x720x1280,5x480x832 instead of all")
    parser.add_argument("--rounds", type=int, default=3, help="turns that count (default 3)")
    parser.add_argument("--fp8", action="store_true", help="the full size's linear layers in fp8")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / f"speed_{date.today()}.json")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    on = Device(torch.device("cuda", 0) if cuda else torch.device("cpu"), torch.bfloat16)
    cases = tuple((int(a), int(b), int(c)) for a, b, c in (t.split("x") for t in args.cases.split(",") if t)) or CASES
    chip = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU"
    record: Record = json.loads(args.json.read_text(encoding="utf-8")) if args.json.is_file() else {}
    if record.get("device", chip) != chip:
        raise SystemExit(f"{args.json} is of another machine ({record['device']}); give another --json")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    record |= {"date": str(date.today()), "commit": commit, "device": chip, "torch": torch.__version__}
    record["command"] = " ".join(["python", *sys.argv])
    if hasattr(os, "getloadavg"):  # of a machine that is doing something else, too
        record["load average before"] = round(os.getloadavg()[1], 1)
    parts: dict[str, Callable[[], object]] = {
        "ceilings": lambda: record.update(ceilings=ceilings(on.device)),
        "tiny": lambda: tiny(record, on, args.routing, cases, args.rounds),
        "full": lambda: full(record, on, args.routing, cases, args.rounds, args.fp8),
        "small": lambda: small(record, on, ((33, 720, 1280),), args.rounds, args.fp8),
        "peer": lambda: peer(record, on, args.rounds),
        "cpu": lambda: cpu(record, args.rounds),
    }
    asked = args.parts or ("ceilings,tiny,full,small,peer" if cuda else "ceilings,cpu")
    with torch.inference_mode():
        for part in asked.split(","):
            parts[part]()
            args.json.parent.mkdir(exist_ok=True)
            args.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(record.get("ceilings"))
    if any(name.startswith(("full", "tiny")) for name in record):
        draw(record, args.json.with_suffix(".png"))
    print(args.json)


if __name__ == "__main__":
    main()

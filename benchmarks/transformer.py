"""What the full-size transformer's time goes to on a CUDA device: variants, single products, kernels by name.

    python benchmarks/transformer.py --parts products,variants,kernels,fp8,compiled --json out.json

Random weights; 33 frames of 720x1280 unless --case says otherwise. Parts by themselves take less than two minutes each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from clock import milliseconds
from random_models import FULL, random_transformer, routings
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from oasis_core.attention import TokenGrid, backends
from oasis_core.attention.problem import EVERYTHING, Problem
from oasis_core.device import missing_fp8
from oasis_core.model import dit as dit_module
from oasis_core.model import layers, rows
from oasis_core.model.dit import DiT
from oasis_core.model.fuse import fuse_model
from oasis_core.model.graphs import Graphs
from oasis_core.routing import RoutingSpec

ROUTINGS = routings(FULL)
KINDS = {
    "attention": ("fmha", "flash", "sdpa", "window", "attention", "fwd_kernel"),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "gemv"),
    "rows": ("_norm_kernel", "_fp8_kernel", "rope", "turn"),
}


def timed(work: Callable[[], object], rounds: int = 5) -> float:
    return milliseconds(work, torch.device("cuda"), rounds)


def build(routing: RoutingSpec | None, name: str, fp8: bool = False) -> DiT:
    """A random transformer, folded for ``routing`` if given."""
    dit = random_transformer(FULL, torch.device("cuda"), torch.bfloat16)
    dit.attention = backends.backend_for(name, torch.device("cuda"))
    if routing is not None:
        dit.fold(routing, fp8=fp8)
    return dit


def variants(z: Tensor, name: str, only: str) -> dict[str, float]:
    """Milliseconds of a forward pass by routing, way and slices."""
    done = {}

    def note(label: str, dit: DiT, routing: RoutingSpec, at_once: int = dit_module.DEVICE_TOKENS) -> None:
        torch.cuda.reset_peak_memory_stats()
        with patch.object(dit_module, "DEVICE_TOKENS", at_once):
            done[label] = timed(lambda: dit(z, routing))
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"{label}: {done[label]:.1f} ms, peak {peak:.2f} GiB", flush=True)

    for key, routing in ((k, r) for k, r in ROUTINGS.items() if only in k):
        note(f"{key}, unfolded", build(None, name), routing)
        dit = build(routing, name)
        with patch.object(layers, "_has_triton", lambda device: False):
            note(f"{key}, folded, no Triton", dit, routing)
        note(f"{key}, folded", dit, routing)
        for at_once in (8192, 32768, 1 << 20) if key == "routed" else ():
            note(f"{key}, folded, slices of {at_once}", dit, routing, at_once)
        with patch.object(dit_module, "worth_graphs", lambda *_: True):
            dit.graphs = Graphs()
            note(f"{key}, folded, graphs", dit, routing)
        del dit
        if missing_fp8(z.device) is None:
            note(f"{key}, fp8", build(routing, name, fp8=True), routing)
    return done


def compiled(z: Tensor, name: str) -> dict[str, float]:
    """Milliseconds of the unfolded transformer with torch.compile around its attention, and seconds until it runs."""
    routing, model = ROUTINGS["routed"], SimpleNamespace(decoder=None)
    model.dit = dit = random_transformer(FULL, z.device, z.dtype)
    dit.attention = backends.backend_for(name, z.device)
    fuse_model(model)  # type: ignore[arg-type]
    began = time.perf_counter()
    dit(z, routing)
    torch.cuda.synchronize()
    done = {"seconds to compile": time.perf_counter() - began, "ms": timed(lambda: dit(z, routing))}
    print(f"routed, unfolded, compiled: {done}", flush=True)
    return done


def products(tokens: int) -> dict[str, float]:
    """Milliseconds of each matrix product, plain and with what it can do besides; and in fp8."""
    done = {}
    for label, n, k in (("qkv", 4608, 1536), ("o", 1536, 1536), ("wide", 8960, 1536), ("narrow", 1536, 8960)):
        a, w, b, x = (
            torch.randn(*s, device="cuda").bfloat16() * 0.05 for s in ((tokens, k), (n, k), (n,), (tokens, n))
        )
        ways: dict[str, Callable[[], object]] = {
            "linear": partial(F.linear, a, w, b),
            "adds to the stream": partial(x.addmm_, a, w.t(), beta=0.5, alpha=0.5),
            "stream, beta 1": partial(x.addmm_, a, w.t()),
            "with GELU": partial(rows.linear_gelu, a, w, b),
        }
        if missing_fp8(a.device) is None:
            (a8, sa), (w8, sw) = rows.to_fp8(a), rows.to_fp8(w)
            sw, kind = sw.t().contiguous(), torch.bfloat16
            ways["fp8"] = partial(torch._scaled_mm, a8, w8.t(), sa, sw, bias=b, out_dtype=kind, use_fast_accum=True)
            one = torch.ones((), device="cuda")
            ways["fp8, a scale for all"] = partial(
                torch._scaled_mm, a8, w8.t(), one, one, bias=b, out_dtype=kind, use_fast_accum=True
            )
            ways["to fp8"] = partial(rows.to_fp8, a)
            ways["GELU to fp8"] = partial(rows.to_fp8, a, gelu=True)
        for way, work in ways.items():
            ms = timed(work, 11)
            done[f"{label}, {way}"] = ms
            print(f"{label}, {way}: {ms:.3f} ms, {2 * tokens * n * k / ms / 1e9:.0f} TFLOP/s", flush=True)
    x, bias = torch.randn(tokens, 1536, device="cuda").bfloat16(), torch.randn(1536, device="cuda")
    for way, run in (("norm", rows.layer_norm), ("norm to fp8", rows.layer_norm_fp8)):
        done[way] = timed(partial(run, x, bias), 11)
        print(f"{way}: {done[way]:.3f} ms, {2 * x.nbytes / done[way] / 1e9:.2f} TB/s", flush=True)
    q = torch.randn(1, tokens, 12, 128, device="cuda").bfloat16()
    k = torch.randn(1, 512, 12, 128, device="cuda").bfloat16()
    problem = Problem.of(q, k, k, TokenGrid(1, 1, tokens), EVERYTHING)
    for backend in (b for b in backends.BACKENDS.values() if b.supports(problem) is None):
        ms = timed(partial(backend.run, problem, q, k, k), 11)
        done[f"cross, {backend.name}"] = ms
        print(f"cross-attention, {backend.name}: {ms:.3f} ms", flush=True)
    return done


def kernels(z: Tensor, name: str, only: str, fp8: bool) -> dict[str, object]:
    """Milliseconds of one pass on the device, by kind of kernel and by kernel."""
    done: dict[str, object] = {}
    for key, routing in ((k, r) for k, r in ROUTINGS.items() if only in k):
        dit = build(routing, name, fp8)
        dit(z, routing)
        dit(z, routing)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as prof:
            dit(z, routing)
            torch.cuda.synchronize()
        found = [
            (e.key, e.device_time_total / 1000, e.count) for e in prof.key_averages() if e.device_type.name == "CUDA"
        ]
        kinds = dict.fromkeys((*KINDS, "rest"), 0.0)
        for kernel, ms, _ in found:
            kinds[next((k for k, words in KINDS.items() if any(w in kernel.lower() for w in words)), "rest")] += ms
        print(f"{key}{', fp8' if fp8 else ''}: " + ", ".join(f"{k} {v:.1f}" for k, v in kinds.items()))
        top = sorted(found, key=lambda f: -f[1])[:18]
        for kernel, ms, count in top:
            print(f"  {ms:8.2f} ms {count:5d} x {kernel[:110]}", flush=True)
        done[key] = {"kinds": kinds, "top": top}
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="products,variants,kernels")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--routing", default="", help="only those whose name holds this: dense, routed, window")
    parser.add_argument("--case", default="33x720x1280")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    frames, height, width = (int(n) for n in args.case.split("x"))
    shape = (1, FULL.latent_channels, 1 + (frames - 1) // 4, height // 8, width // 8)
    z = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    print(torch.cuda.get_device_name(), torch.__version__, shape, flush=True)
    record: dict[str, object] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "case": args.case}
    work = {
        "products": lambda: products(shape[2] * shape[3] * shape[4] // 4),
        "compiled": lambda: compiled(z, args.attention),
        "variants": lambda: variants(z, args.attention, args.routing),
        "kernels": lambda: kernels(z, args.attention, args.routing, False),
        "fp8": lambda: kernels(z, args.attention, args.routing, True),
    }
    with torch.inference_mode():
        for part in args.parts.split(","):
            record[part] = work[part]()
    if args.json:
        args.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

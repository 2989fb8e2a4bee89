"""The three attention operations on a GPU: every candidate of the window kernel checked and timed, every backend timed.

    python benchmarks/attention.py                 # a CUDA device: about a minute
    python benchmarks/attention.py --only fp32     # sizes whose name has that in it
    python benchmarks/attention.py --json out.json # where the results go; default: benchmarks/results/attention_DATE.json

Two sizes: the full one (12 heads of 128, 33 frames of 720x1280) and that of the small model (8 heads of 32, 16 frames); besides,
heads of 64, fp32, and a wider window, for which larger tiles read fewer keys. ``*``: the configuration in use. Errors are against
the reference in fp64, on grids that no tile divides, of one frame, of one row, and random ones. Candidates are built and checked
in processes of their own, side by side; times are medians of ``triton.testing.do_bench`` with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from oasis_core.attention import TokenGrid
from oasis_core.attention.backends import BACKENDS, SDPA, TRITON
from oasis_core.attention.problem import EVERYTHING, OWN_FRAME, Problem
from oasis_core.attention.reference import reference_attention
from oasis_core.attention.triton_window import WindowConfig, config_for, window_attention
from oasis_core.attention.window_plan import plan_window
from oasis_core.model.layers import EPS, apply_rope, norm_rope, rope_table
from oasis_core.routing import Extent, HeadPattern

WINDOW = (3, 5, 5)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WORST = {"bf16": 4e-3, "fp16": 6e-4, "fp32": 2e-6}
"""Largest relative error (Frobenius) that passes: the rounding of probabilities and output."""
PROCESSES = 15
C = WindowConfig


@dataclass(frozen=True)
class Size:
    """What is timed."""

    name: str
    grid: tuple[int, int, int]
    heads: int
    head_dim: int
    dtype: str
    candidates: tuple[WindowConfig, ...]
    window: tuple[int, int, int] = WINDOW


LARGE = (
    C(128, 64, 8, 2), C(128, 64, 8, 2, 128), C(128, 64, 8, 3), C(128, 32, 8, 2), C(128, 32, 8, 3), C(128, 32, 8, 3, 128),
    C(128, 128, 8, 2), C(64, 64, 4, 2), C(64, 64, 4, 3), C(64, 32, 4, 2), C(64, 32, 4, 3), C(64, 32, 4, 4),
    C(64, 32, 4, 4, 128), C(64, 128, 4, 2), C(32, 32, 2, 2), C(64, 32, 4, 2, 128), C(64, 16, 4, 3), C(32, 32, 1, 2),
)  # fmt: skip
SMALL = (
    C(128, 64, 8, 2), C(128, 64, 4, 2), C(128, 32, 4, 3), C(64, 64, 4, 2), C(64, 64, 4, 3), C(64, 32, 4, 2),
    C(64, 32, 4, 3), C(64, 32, 4, 4), C(64, 128, 4, 2), C(32, 32, 2, 2), C(32, 32, 2, 3), C(32, 64, 2, 2),
    C(32, 32, 1, 2), C(16, 32, 1, 2), C(16, 32, 1, 3),
)  # fmt: skip
SINGLE = (
    C(64, 32, 4, 2), C(32, 32, 4, 2), C(64, 64, 8, 2), C(32, 32, 2, 2), C(64, 32, 4, 2, precision="tf32x3"),
    C(64, 64, 4, 2, precision="tf32x3"), C(32, 32, 2, 2, precision="tf32x3"), C(64, 32, 4, 3, precision="tf32x3"),
)  # fmt: skip
WIDE = (3, 9, 9)
SIZES = (
    Size("12 x 128, 9x45x80, bf16", (9, 45, 80), 12, 128, "bf16", LARGE),
    Size("8 x 32, 16x45x80, bf16", (16, 45, 80), 8, 32, "bf16", SMALL),
    Size("8 x 64, 9x45x80, bf16", (9, 45, 80), 8, 64, "bf16", LARGE[:5] + SMALL[3:8]),
    Size("8 x 32, 16x45x80, fp32", (16, 45, 80), 8, 32, "fp32", SINGLE),
    Size("12 x 128, 5x45x80, fp32", (5, 45, 80), 12, 128, "fp32", SINGLE),
    Size("12 x 128, 9x45x80, bf16, 3x9x9", (9, 45, 80), 12, 128, "bf16", LARGE[4:6] + LARGE[7:11], WIDE),
    Size("8 x 32, 16x45x80, bf16, 3x9x9", (16, 45, 80), 8, 32, "bf16", SMALL[3:6] + SMALL[9:14], WIDE),
    Size("8 x 64, 9x45x80, fp32", (9, 45, 80), 8, 64, "fp32", SINGLE[4:]),
)
SHAPES = ((5, 13, 19), (1, 17, 33), (3, 1, 40), (9, 8, 8))


def inputs(grid: TokenGrid, heads: int, head_dim: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    """q, k, v as slices of one projection, as the model has them."""
    g = torch.Generator("cuda").manual_seed(seed)
    whole = torch.randn(1, grid.length, 3, heads, head_dim, generator=g, device="cuda").to(dtype)
    return whole.unbind(2)


def shapes(seed: int) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Grids and windows to check on: the listed ones, a random one."""
    yield from ((shape, WINDOW) for shape in SHAPES)
    rng = random.Random(seed)
    grid = rng.randint(1, 7), rng.randint(1, 20), rng.randint(1, 30)
    yield grid, (2 * rng.randint(0, 2) + 1, 2 * rng.randint(0, 8) + 1, 2 * rng.randint(0, 8) + 1)


def check(job: tuple[Size, WindowConfig]) -> dict[str, object]:
    """The worst error of a candidate; the kernel for the timed size is built on the way."""
    size, config = job
    torch.cuda.init()
    worst, where = 0.0, None
    try:
        for i, (shape, window) in enumerate(shapes(config.queries + config.keys)):
            grid = TokenGrid(*shape)
            q, k, v = inputs(grid, 2, size.head_dim, DTYPES[size.dtype], i)
            out = torch.full_like(q, float("nan"))
            _, lse = window_attention(q, k, v, grid, window, config, out, with_lse=True)
            truth, true_lse = reference_attention(q.double(), k.double(), v.double(), grid, HeadPattern.WINDOW, window)
            assert lse is not None
            error = max(relative(out, truth), float((lse - true_lse).abs().max()) / 10)
            if not error <= worst:
                worst, where = error, (shape, window)
        grid = TokenGrid(*size.grid)
        window_attention(*inputs(grid, size.heads, size.head_dim, DTYPES[size.dtype], 0), grid, size.window, config)
        torch.cuda.synchronize()
    except Exception as e:  # a candidate that does not fit the chip is a result, not the end of the run
        return {"failed": f"{type(e).__name__}: {str(e).splitlines()[0][:120]}"}
    return {"error": worst, "worst_at": where, "right": worst <= WORST[size.dtype]}


def relative(got: Tensor, truth: Tensor) -> float:
    return float((got.to(truth.dtype) - truth).norm() / truth.norm())


def median(work: Callable[[], object], rep: int = 60) -> float:
    """Milliseconds."""
    return triton.testing.do_bench(work, warmup=15, rep=rep, return_mode="median")


def floor(size: Size, config: WindowConfig) -> dict[str, float]:
    """What the candidate cannot be faster than: dense arithmetic on tile and halo at 700 TFLOP/s, bytes at 3.3 TB/s, in ms."""
    grid = TokenGrid(*size.grid)
    plan = plan_window(grid, size.window, config.queries, config.keys)
    flops = 4 * plan.blocks(config.keys) * config.queries * config.keys * size.head_dim * size.heads
    moved = 4 * grid.length * size.heads * size.head_dim * (4 if size.dtype == "fp32" else 2)
    return {"arithmetic_ms": flops / 700e9, "bytes_ms": moved / 3.3e9}


def window_times(size: Size, checked: list[dict[str, object]]) -> list[dict[str, object]]:
    grid = TokenGrid(*size.grid)
    q, k, v = inputs(grid, size.heads, size.head_dim, DTYPES[size.dtype], 0)
    out, rows = torch.empty_like(q), []
    for config, result in zip(size.candidates, checked, strict=True):
        row: dict[str, object] = {"config": asdict(config), **result, **floor(size, config)}
        if "failed" not in result:
            row["ms"] = median(lambda config=config: window_attention(q, k, v, grid, size.window, config, out))
            plan = plan_window(grid, size.window, config.queries, config.keys)
            row["tile"] = [plan.t.tile, plan.h.tile, plan.w.tile]
        rows.append(row)
    return rows


def backend_times(size: Size) -> list[dict[str, object]]:
    """Every backend on every operation that it runs, with its error against torch in fp32 on some heads."""
    grid = TokenGrid(*size.grid)
    q, k, v = inputs(grid, size.heads, size.head_dim, DTYPES[size.dtype], 1)
    rows = []
    for name, extent in (("global", EVERYTHING), ("intra-frame", OWN_FRAME), ("window", Extent(*size.window))):
        truth = None
        for backend in BACKENDS.values():
            problem = Problem.of(q, k, v, grid, extent)
            row: dict[str, object] = {"operation": name, "backend": backend.name}
            if why := backend.supports(problem):
                rows.append({**row, "refused": why})
                continue
            if truth is None:
                few = [x[:, :, :2].float() for x in (q, k, v)]
                truth = SDPA.run(Problem.of(*few, grid, extent), *few)
            try:
                row["error"] = relative(backend.run(problem, q, k, v)[:, :, :2], truth)
                row["ms"] = median(lambda b=backend, p=problem: b.run(p, q, k, v))
            except Exception as e:  # told in the table
                row["failed"] = f"{type(e).__name__}: {str(e).splitlines()[0][:120]}"
            rows.append(row)
    return rows


def qk_times(size: Size) -> list[dict[str, object]]:
    """Norm and rotation of q and k, in torch and as one kernel."""
    grid, dim = TokenGrid(*size.grid), size.heads * size.head_dim
    rope = rope_table(grid, size.head_dim, 10000.0, torch.device("cuda"))
    whole = torch.randn(1, grid.length, 3 * dim, device="cuda", dtype=DTYPES[size.dtype])
    q, k, _ = whole.chunk(3, -1)
    gain = torch.ones(dim, device="cuda", dtype=whole.dtype)

    def eager() -> None:
        for x in (q, k):
            apply_rope(F.rms_norm(x, (dim,), gain, EPS).unflatten(-1, (size.heads, -1)), rope)

    moved = 4 * q.numel() * q.element_size() + 2 * rope[0].numel() * 4
    fused = median(lambda: norm_rope(q, k, gain, gain, rope, size.heads))
    return [
        {"operation": "norm, rope", "backend": "torch", "ms": median(eager)},
        {"operation": "norm, rope", "backend": "one kernel", "ms": fused, "tb_per_s": moved / fused / 1e9},
    ]


def table(results: dict[str, dict[str, list[dict[str, object]]]]) -> str:
    lines = []
    for name, parts in results.items():
        lines.append(f"\n{name}")
        used = {tuple(asdict(config_for(s.head_dim, DTYPES[s.dtype])).values()) for s in SIZES if s.name == name}
        for row in sorted(parts["window"], key=lambda r: float(r.get("ms", 1e9))):  # type: ignore[arg-type]
            config = tuple(row["config"].values())  # type: ignore[attr-defined]
            head = f"  {config!s:28}{'*' if config in used else ' '}"
            if "failed" in row:
                lines.append(f"{head} {row['failed']}")
                continue
            lines.append(
                f"{head} {row['ms']:7.3f} ms  floor {row['arithmetic_ms']:.3f} {row['bytes_ms']:.3f}  tile {row['tile']}"
                f"  error {row['error']:.1e}{'' if row['right'] else '  WRONG at ' + str(row['worst_at'])}"
            )
        for row in parts["backends"]:
            what = row.get("refused") or row.get("failed") or f"{row['ms']:7.3f} ms"
            more = [f"{key} {row[key]:.2g}" for key in ("error", "tb_per_s") if key in row]
            lines.append(f"  {row['operation']:12} {row['backend']:11} {what}  {' '.join(more)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(__file__).parent / "results" / f"attention_{date.today().isoformat()}.json"
    parser.add_argument("--json", type=Path, default=default, help="where the results go")
    parser.add_argument("--only", default="", help="sizes whose name has this in it, such as fp32")
    args = parser.parse_args()
    began, sizes = time.perf_counter(), [size for size in SIZES if args.only in size.name]
    jobs = [(size, config) for size in sizes for config in size.candidates]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        checked = pool.map(check, jobs, chunksize=1)
    built, results = time.perf_counter() - began, {}
    for size in sizes:
        mine = [result for (s, _), result in zip(jobs, checked, strict=True) if s is size]
        results[size.name] = {"window": window_times(size, mine), "backends": [*backend_times(size), *qk_times(size)]}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    facts = {
        "date": date.today().isoformat(),
        "commit": commit,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "auto_window": TRITON.name,
        "seconds": {"check": round(built, 1), "whole": round(time.perf_counter() - began, 1)},
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts))
    print(table(results))


if __name__ == "__main__":
    main()

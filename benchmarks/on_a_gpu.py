"""Everything that needs a GPU, one after another: the tests marked ``gpu``, then the benchmarks; what each said goes to a folder.

    python benchmarks/on_a_gpu.py --out out/gpu                    # about half an hour on an H100
    python benchmarks/on_a_gpu.py --only "tests" full-size-limits  # runs whose name begins so
    python benchmarks/on_a_gpu.py --list

A run that fails or takes too long is told, and the next begins. ``--seconds``: begin no run for which too little is left. Runs of
two GPUs (``two-gpus-...``) are left out where there is one. ``summary.json`` is written after every run; each run's own JSON lies
beside what it printed. The data sets of the routing study and of training are not part of this.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
MEMCHECK = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
WINDOW = "(random_grids and (32-dtype2 or 80-dtype0 or 128-dtype1)) or 3-18-dtype1"


def bench(script: str, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *options]


def runs(out: Path) -> dict[str, tuple[int, list[str]]]:
    """Name -> most seconds, command; what matters most first."""

    def to(name: str, option: str = "--json") -> list[str]:
        return [option, str(out / f"{name}.json")]

    table = to("speed")
    listed: dict[str, tuple[int, list[str]]] = {
        "tests-attention": (180, [*PYTEST, "tests/test_attention_gpu.py", "tests/test_triton_lse.py"]),
        "tests-decoder": (120, [*PYTEST, "tests/test_wan_gpu.py"]),
        "tests-folded": (120, [*PYTEST, "tests/test_folded_gpu.py"]),
        "tests-whole": (240, [*PYTEST, "tests/test_gpu.py"]),
        "full-size-limits": (120, bench("full_size_runs", "--only", "limit", *to("full_size_limits"))),
        "full-size-stages": (150, bench("full_size_runs", "--only", "by stage", *to("full_size_stages"))),
        "calibration": (60, bench("calibration", *to("calibration"))),
        "speed-ceilings": (60, bench("speed", "--parts", "ceilings,peer", *table)),
        "speed-routed": (120, bench("speed", "--parts", "full", "--routing", "routed", *table)),
        "speed-routed-fp8": (120, bench("speed", "--parts", "full", "--routing", "routed", "--fp8", *table)),
        "speed-dense": (120, bench("speed", "--parts", "full", "--routing", "dense", *table)),
        "speed-window": (120, bench("speed", "--parts", "full", "--routing", "window", *table)),
        "speed-small-decoder": (60, bench("speed", "--parts", "small", *table)),
        "speed-small-decoder-fp8": (60, bench("speed", "--parts", "small", "--fp8", *table)),
        "speed-tiny": (120, bench("speed", "--parts", "tiny", *table)),
        "attention": (130, bench("attention", *to("attention"))),
        "tiny": (60, bench("tiny_parts", "--peer", *to("tiny"))),
        "tiny-one-by-one": (60, bench("tiny_parts", "--at-once", "1", *to("tiny_one_by_one"))),
        "decoder": (120, bench("decoder_speed", "--parts", "errors,decode,pipeline", *to("decoder"))),
        "decoder-kernels": (120, bench("decoder_speed", "--parts", "kernel,convs,attention", *to("decoder_kernels"))),
        "transformer": (120, bench("transformer", "--parts", "products,kernels,fp8", *to("transformer"))),
        "streaming": (480, bench("streaming", "--gpu", *to("streaming"))),
        "full-size-dense": (90, bench("full_size_runs", "--only", "dense", *to("full_size_dense"))),
        "memcheck-window": (
            240,
            [*MEMCHECK, "--kernel-name", "kns=_window_kernel,kns=_norm_rope_kernel", *PYTEST,
             "tests/test_attention_gpu.py", "-k", WINDOW],
        ),
        "memcheck-lse": (
            120,
            [*MEMCHECK, "--kernel-name", "kns=_lse_kernel", *PYTEST, "tests/test_triton_lse.py", "-k", "128 and dtype2"],
        ),
    }  # fmt: skip
    if torch.cuda.device_count() > 1:
        listed |= {
            "two-gpus-ray": (240, bench("ray_scaling", "1", "2", "--segment", "60", *to("ray_scaling", "--out"))),
            "two-gpus-ray-full": (
                420,
                bench("ray_scaling", "1", "2", "--full", "--frames", "1000", "--segment", "60",
                      *to("ray_scaling_full", "--out")),
            ),
            "two-gpus-training": (
                300,
                bench("training_scaling", "1", "2", "--steps", "300", "--workers", "12", "--data-device", "cpu",
                      *to("training_scaling", "--out")),
            ),
        }  # fmt: skip
    return listed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of names; in that order")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of all runs together")
    parser.add_argument("--list", action="store_true", help="names and limits, nothing else")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out.resolve()
    listed = runs(out)
    wanted = list(dict.fromkeys(name for start in args.only for name in listed if name.startswith(start)))
    if not wanted:
        parser.error(f"no run begins with {' or '.join(args.only)}; there are {', '.join(listed)}")
    if args.list:
        print("\n".join(f"{name:20} {listed[name][0]:4} s  {' '.join(listed[name][1])}" for name in wanted))
        return
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    began, summary = time.monotonic(), dict[str, dict[str, object]]()
    for name in wanted:
        limit, command = listed[name]
        left = args.seconds - (time.monotonic() - began)
        if left < limit / 2:
            print(f"{name}: left out, {left:.0f} s remain", flush=True)
            continue
        own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if name.startswith("memcheck") else {}
        at = time.monotonic()
        with (out / f"{name}.txt").open("w", encoding="utf-8") as said:
            try:
                code: int | str = subprocess.run(
                    command, stdout=said, stderr=subprocess.STDOUT, timeout=min(limit, left), env=env | own, cwd=ROOT
                ).returncode
            except subprocess.TimeoutExpired:
                code = "took too long"
            except OSError as e:
                code = str(e)
        summary[name] = {"exit": code, "seconds": round(time.monotonic() - at, 1), "command": command[1:]}
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        lines = (out / f"{name}.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        print(f"{name}: {code}, {summary[name]['seconds']} s; {lines[-1][:160] if lines else ''}", flush=True)


if __name__ == "__main__":
    main()

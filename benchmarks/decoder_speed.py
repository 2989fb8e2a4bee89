"""The Wan decoder on a CUDA device: errors, times, a profile, candidates for its convolutions, and the pipeline around it.

    python benchmarks/decoder_speed.py                          # 33 frames of 720x1280, bf16, random weights: about two minutes
    python benchmarks/decoder_speed.py --parts errors,decode    # some of it

Writes JSON (``--json``) and prints a table last. Every part stands alone: what fails is said, and the next one runs.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from datetime import date
from pathlib import Path

import decoder_kernels as kernels
import decoder_whole as whole
import torch
from decoder_table import FIGURES, ROWS, note

PARTS = {
    "errors": whole.errors, "decode": whole.decoding, "profile": whole.profiled, "kernel": kernels.stream_kernel,
    "convs": kernels.convolutions, "attention": kernels.attention, "pipeline": whole.pipeline,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / f"decoder_{date.today()}.json")
    args = parser.parse_args()
    FIGURES.update(device=torch.cuda.get_device_name(), torch=torch.__version__)
    for name in args.parts.split(","):
        began = time.perf_counter()
        print(f"{name}:", flush=True)
        try:
            with torch.inference_mode():
                PARTS[name]()
        except Exception:
            note(f"{name} FAILED", None, traceback.format_exc(limit=-3).replace("\n", " | ")[-600:])
        torch.cuda.empty_cache()
        print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)
        args.json.parent.mkdir(exist_ok=True)
        args.json.write_text(json.dumps(FIGURES, indent=1), encoding="utf-8")
    print(f"\n{FIGURES['device']}, torch {torch.__version__}")
    for row in ROWS:
        print(f"{row[0]:<60} {row[1]}")


if __name__ == "__main__":
    main()

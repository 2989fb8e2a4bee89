"""Peak memory of ``oasis upscale`` against the clip's length: python benchmarks/memory.py [FRAMES ...]

Runs the command as a whole process on generated clips of 96x64 (x4, embedded model, CPU) and writes
``results/memory.json``. POSIX only: the peak of a child process is read by ``resource``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from clips import moving_noise

WIDTH, HEIGHT = 96, 64


def peak_mib(frames: int) -> float:
    """Peak resident memory of one ``oasis upscale``, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        clip, out = Path(folder) / "in.mp4", Path(folder) / "out.mp4"
        moving_noise(clip, frames, WIDTH, HEIGHT)
        code = (
            "import resource, sys; from oasis_core.cli import main; assert main(sys.argv[1:]) == 0;"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        argv = [sys.executable, "-c", code, "upscale", str(clip), str(out), "--device", "cpu"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / (2**20 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("frames", type=int, nargs="*", default=[50, 500])
    args = parser.parse_args()
    assert resource is not None
    peaks = {frames: round(peak_mib(frames), 1) for frames in args.frames}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "command": "python benchmarks/memory.py " + " ".join(map(str, args.frames)),
        "machine": f"{platform.system()} {platform.machine()}, CPU",
        "what": f"peak resident MiB of `oasis upscale`, {WIDTH}x{HEIGHT} -> x4, by number of frames",
        "peak_mib": peaks,
    }
    path = Path(__file__).parent / "results" / "memory.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

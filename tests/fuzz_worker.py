"""A process of its own that mutates files and reads them: ``python fuzz_worker.py TARGET SEEDS FIRST STOP [KEEP]``.

Mutation number i of a target is the same in every run. Before each one its number is printed, so that who started this process
knows where it died; what was wrong is a line ``WRONG number text``. A read that takes too long ends the process with the stack.
Only what ``EXPECTED`` says may be raised, in one line; peak memory may grow by ``MEMORY`` at most.
"""

from __future__ import annotations

import faulthandler
import json
import random
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from oasis_core.checkpoints import load_checkpoint
from oasis_core.jobs.folder import MANIFEST, read_manifest
from oasis_core.routing import RoutingSpec
from oasis_core.video_io import Deinterlace, VideoReader

EXPECTED = (ValueError, OSError)
SECONDS = 20
"""A read may take that long."""
MEMORY = 1 << 30
"""Bytes that peak memory may grow by in all; the files are smaller than 100 kB."""
FRAMES = 40
"""Frames read of a video; the files have fewer."""
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 10**9, 2**63, 10**400, -(10**9), 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x",
    "window", "../../x", "\u2028\n", "9" * 5000, [], {}, [[]], [None], {"a": 1}, [1] * 1000,
)  # fmt: skip


def mutate_bytes(data: bytes, r: random.Random) -> bytes:
    """One to eight changes, half of them near an end, where headers lie."""
    out = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 4, 8))):
        if not out:
            break
        near = min(len(out), 2048)
        at = r.choice((r.randrange(len(out)), r.randrange(near), len(out) - 1 - r.randrange(near)))
        length = min(r.choice((1, 2, 4, 16, 256, 4096)), len(out) - at)
        kind = r.randrange(9)
        if kind == 0:
            out[at] ^= 1 << r.randrange(8)
        elif kind == 1:
            out[at : at + length] = r.randbytes(length)
        elif kind == 2:
            size = r.choice((1, 2, 4, 8))
            order = r.choice(("big", "little"))
            out[at : at + size] = (r.choice(NUMBERS) % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length]
        elif kind == 5:
            out[at:at] = r.randbytes(length)
        elif kind == 6:
            out[at : at + length] = bytes(length)
        elif kind == 7:
            other = r.randrange(len(out))
            out[at : at + length] = out[other : other + length]
        else:
            del out[at:]
    return bytes(out)


def mutate_json(value: Any, r: random.Random) -> Any:
    """One value somewhere in it becomes another, goes, or appears twice."""
    if isinstance(value, (dict, list)) and value and r.random() < 0.85:
        out = value.copy()
        key = r.choice(list(out)) if isinstance(out, dict) else r.randrange(len(out))
        kind = r.randrange(12)
        if kind == 0:
            del out[key]
        elif kind == 1 and isinstance(out, dict):
            out[r.choice(("x", "", str(key) + "_"))] = out[key]
        elif kind == 1:
            out.insert(key, out[key])
        else:
            out[key] = mutate_json(out[key], r)
        return out
    if isinstance(value, str) and value[:1] in "{[" and r.random() < 0.9:  # JSON in JSON: checkpoints' headers
        try:
            return json.dumps(mutate_json(json.loads(value), r))
        except ValueError:  # an earlier change has made it no JSON
            return r.choice(VALUES)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and r.random() < 0.5:
        return r.choice((value + 1, value - 1, -value, value * 1000, 0))
    nested: Any = []
    for _ in range(r.choice((2, 50, 3000)) if r.random() < 0.05 else 0):
        nested = [nested]
    return nested or r.choice(VALUES)


def mutate_text(data: bytes, r: random.Random) -> bytes:
    """JSON by its structure or by its bytes."""
    if r.random() < 0.4:
        return mutate_bytes(data, r)
    value = json.loads(data)
    for _ in range(r.choice((1, 1, 1, 2, 5))):
        value = mutate_json(value, r)
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 100_000


def mutate_checkpoint(data: bytes, r: random.Random) -> bytes:
    """safetensors: its bytes, or its JSON header with the length before it made right."""
    if r.random() < 0.4:
        return mutate_bytes(data, r)
    (length,) = struct.unpack("<Q", data[:8])
    header = mutate_text(data[8 : 8 + length], r)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def read_video(path: Path, r: random.Random) -> None:
    reader = VideoReader(path, deinterlace=r.choice((None, None, Deinterlace.FRAME, Deinterlace.FIELD)))
    frames = [(f.pts, f.checksum, tuple(f.rgb.shape)) for f in islice(reader.frames(), FRAMES)]
    assert all(a[0] < b[0] for a, b in pairwise(frames)), "time stamps do not ascend"
    assert len({shape for _, _, shape in frames}) <= 1, "frames of several sizes"
    assert "\n" not in (reader.problem or ""), "problem of several lines"


def read_checkpoint(path: Path, r: random.Random) -> None:
    load_checkpoint(path)


def read_routing(path: Path, r: random.Random) -> None:
    RoutingSpec.from_file(path)


def read_job(path: Path, r: random.Random) -> None:
    path.replace(path.parent / MANIFEST)
    read_manifest(path.parent)


TARGETS: dict[str, tuple[Callable[[bytes, random.Random], bytes], Callable[[Path, random.Random], None]]] = {
    "video": (mutate_bytes, read_video),
    "checkpoint": (mutate_checkpoint, read_checkpoint),
    "routing": (mutate_text, read_routing),
    "manifest": (mutate_text, read_job),
}


def peak() -> int:
    """Bytes of resident memory at most so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(target: str, seeds: Path, first: int, stop: int, keep: Path | None) -> None:
    mutate, read = TARGETS[target]
    files = sorted(f for f in seeds.iterdir() if f.name.startswith(target))
    with tempfile.TemporaryDirectory() as folder:
        read_seeds = random.Random(0)
        for file in files:
            (copy := Path(folder) / file.name).write_bytes(file.read_bytes())
            read(copy, read_seeds)  # the seeds themselves are fine
        most = peak()
        for number in range(first, stop):
            print(number, flush=True)
            r = random.Random(f"{target} {number}")
            seed = r.choice(files)
            path = Path(folder) / seed.name
            path.write_bytes(mutate(seed.read_bytes(), r))
            if keep is not None:
                (keep / f"{target}_{number}{seed.suffix}").write_bytes(path.read_bytes())
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            wrong = ""
            try:
                read(path, r)
            except EXPECTED as e:
                if len(str(e).splitlines()) != 1 or len(str(e)) > 2000:
                    wrong = f"message of {len(str(e))} characters, {len(str(e).splitlines())} lines: {str(e)[:200]!r}"
            except Exception:
                wrong = traceback.format_exc()
            faulthandler.cancel_dump_traceback_later()
            if peak() > most + MEMORY:
                wrong += f" memory grew by {(peak() - most) >> 20} MiB"
                most = peak()
            if wrong:
                print(f"WRONG {number} {seed.name} {json.dumps(wrong)}", flush=True)


if __name__ == "__main__":
    main(
        sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]) if sys.argv[5:] else None
    )

"""``oasis calibrate``: find each head's pattern from clips."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ..checkpoints import load_checkpoint, resolve
from ..outputs import check_folder
from ..pipeline import Upscaler, UpscaleSettings
from ..routing.calibrated import DEFAULT_BUDGET, calibrate, told
from ..routing.calibration import CANDIDATES, QUERIES, check_dense
from ..routing.spec import parse_patterns, pattern_text
from ..video_io import VideoReader
from .device import choose_device, choose_dtype
from .shown import shown


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("calibrate", help="find each head's attention pattern from clips (dense checkpoints)")
    parser.add_argument("model", help="dense checkpoint: file, or the name of an embedded model")
    parser.add_argument("clips", type=Path, nargs="+", metavar="CLIP", help="low-quality videos or folders of images")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON", help="routing file to write")
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument(
        "--budget", type=float, help=f"attention arithmetic against dense, 0 to 1 (default {DEFAULT_BUDGET})"
    )
    rule.add_argument("--threshold", type=float, help="instead: most KL(local || global) of a head, in nats")
    names = ",".join(pattern_text(p) for p in CANDIDATES)
    parser.add_argument(
        "--patterns", default=names,
        help=f"candidates beside global, such as 3x7x7, 3xallxall, allx3x3 (frames x rows x columns; default {names})",
    )  # fmt: skip
    parser.add_argument(
        "--queries", type=int, default=QUERIES, help=f"sampled per clip and layer, 0: all (default {QUERIES})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default 0)")
    parser.add_argument("--scale", type=float, default=4.0, help="factor, 1 to 4 (default 4)")
    parser.add_argument("--chunk", type=int, default=UpscaleSettings.chunk_frames, help="first frames of each clip")
    parser.add_argument("--tile", type=int, help="tile side in output pixels; 0: whole frame (default: by size)")
    parser.add_argument("--fidelity", type=float, help="0 to 1, as for upscale")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--dtype", default="auto", help="auto, fp32, bf16 or fp16")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the routing; print shares, cost and the most uncertain divergence."""
    check_folder(args.output)
    rule, value = ("budget", DEFAULT_BUDGET) if args.threshold is None else ("threshold", args.threshold)
    value = value if args.budget is None else args.budget
    patterns = parse_patterns(args.patterns)
    readers = [VideoReader(path) for path in args.clips]
    for reader in readers:
        reader.check_progressive()
    device = choose_device(args.device)
    checkpoint = load_checkpoint(resolve(args.model), device, choose_dtype(args.dtype, device))
    check_dense(checkpoint.routing, checkpoint.config.name)
    settings = UpscaleSettings(scale=args.scale, chunk_frames=args.chunk, tile=args.tile, fidelity=args.fidelity)
    upscaler = Upscaler(checkpoint.model, checkpoint.routing, settings, decodes=False)
    with shown(len(readers), "clip") as progress:

        def clips() -> Iterator[tuple[str, Iterator[Tensor]]]:
            for done, reader in enumerate(readers):
                progress.advance(done, len(readers))
                yield reader.path.name, _frames(reader)
            progress.advance(len(readers), len(readers))

        found = calibrate(
            upscaler, checkpoint.config.name, clips(), rule, value,
            patterns=patterns, queries=args.queries, seed=args.seed,
        )  # fmt: skip
    part = args.output.with_name(args.output.name + ".part")
    part.write_text(found.to_json(), encoding="utf-8")
    os.replace(part, args.output)
    print(f"{args.output}: {told(found)}")
    return 0


def _frames(reader: VideoReader) -> Iterator[Tensor]:
    for frame in reader:
        yield frame.rgb

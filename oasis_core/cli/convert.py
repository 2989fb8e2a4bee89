"""``oasis convert``: a Wan 2.1 transformer made into an OASIS model to be trained."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoints import save_checkpoint
from ..checkpoints.convert import convert
from ..routing.spec import RoutingSpec
from .device import DTYPES


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("convert", help="make an untrained OASIS model of a Wan 2.1 text-to-video transformer")
    parser.add_argument("base", type=Path, help="Wan2.1-T2V-1.3B: .safetensors, .pth, an index .json, or a folder")
    parser.add_argument("output", type=Path, help="the OASIS checkpoint to write (.safetensors)")
    parser.add_argument("--name", default="oasis-1.3b", help="stored in the file (default oasis-1.3b)")
    parser.add_argument("--context", type=int, default=512, help="tokens of the learned context (default 512)")
    parser.add_argument("--sigma", type=float, default=1.0, help="length of the one step (default 1)")
    parser.add_argument("--timestep", type=float, default=1000.0, help="the one timestep, 0 to 1000 (default 1000)")
    parser.add_argument("--routing", type=Path, help="head routing as JSON (default: all heads global)")
    parser.add_argument("--dtype", default="bf16", help=f"stored number format: {', '.join(DTYPES)} (default bf16)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the file; prints one line."""
    if args.dtype not in DTYPES:
        raise ValueError(f"dtype is {args.dtype!r}; allowed: {', '.join(DTYPES)}")
    if args.context < 1:
        raise ValueError(f"context is {args.context} tokens; it must be at least 1")
    if args.output.suffix != ".safetensors":
        raise ValueError(f"output is {args.output}; it must end in .safetensors")
    if args.output.exists():
        raise ValueError(f"{args.output} exists already; give another name")
    routing = None if args.routing is None else RoutingSpec.from_file(args.routing)
    made = convert(
        args.base, name=args.name, context_length=args.context, sigma=args.sigma, timestep=args.timestep,
        routing=routing, dtype=DTYPES[args.dtype],
    )  # fmt: skip
    save_checkpoint(args.output, made.model, made.metadata)
    print(f"{args.output}: {made.config.name}, untrained; train it before it upscales")
    return 0

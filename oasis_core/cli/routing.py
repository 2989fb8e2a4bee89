"""``oasis routing``: a routing as a picture, and what a head looks at."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from ..checkpoints import load_checkpoint, resolve
from ..checkpoints.read import read_metadata
from ..outputs import check_folder
from ..pipeline import Upscaler, UpscaleSettings
from ..routing.attention_map import attention_map, attention_picture
from ..routing.picture import GRID, NamedRouting, named_routing, routing_picture, routing_text
from ..routing.spec import RoutingSpec
from ..video_io import VideoReader
from .device import choose_device, choose_dtype

PNG, JSON = ".png", ".json"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("routing", help="show a head routing, or what a head looks at")
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="layers x heads: patterns, KL, shares, cost; two side by side")
    show.add_argument("routing", help="routing file (.json), checkpoint, or name of an embedded model")
    show.add_argument("other", nargs="?", help="another one to compare with")
    show.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="write there: a picture (.png), or the routing itself as JSON (.json) to edit and give to --routing",
    )  # fmt: skip
    show.add_argument(
        "--grid",
        help=f"tokens TxHxW that the cost is told for (default: the calibration's, else {'x'.join(map(str, GRID))})",
    )
    show.set_defaults(run=run_show)
    attention = actions.add_parser("attention", help="what a head looks at from one token, drawn on the frames")
    attention.add_argument("model", help="checkpoint file, or the name of an embedded model")
    attention.add_argument("clip", type=Path, help="low-quality video or folder of images; its first chunk is taken")
    attention.add_argument("-o", "--output", type=Path, metavar="PNG", required=True, help="picture to write")
    attention.add_argument("--layer", type=int, default=0, help="from 0 (default 0)")
    attention.add_argument("--head", type=int, default=0, help="from 0 (default 0)")
    for name, axis in (("--time", "the chunk's time"), ("--y", "the height"), ("--x", "the width")):
        attention.add_argument(
            name, type=float, default=0.5, help=f"place of the token in {axis}, 0 to 1 (default 0.5)"
        )
    attention.add_argument("--routing", type=Path, help="head routing as JSON, instead of the checkpoint's")
    attention.add_argument("--scale", type=float, default=4.0, help="factor, 1 to 4 (default 4)")
    attention.add_argument(
        "--chunk", type=int, default=UpscaleSettings.chunk_frames, help="frames at once (default 16)"
    )
    attention.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    attention.add_argument("--dtype", default="auto", help="auto, fp32, bf16 or fp16")
    attention.set_defaults(run=run_attention)


def run_show(args: argparse.Namespace) -> int:
    """Print the routing, and write the picture or the routing's file where one is asked for."""
    as_json = args.output is not None and args.output.suffix.lower() == JSON
    _check_target(args.output, (PNG, JSON))
    if as_json and args.other is not None:
        raise ValueError(f"{args.output} would hold one routing and two are given; leave one out, or give a .png")
    if as_json and args.output.exists():
        raise FileExistsError(f"{args.output} exists already; give another name")
    shown = [read_named(name) for name in (args.routing, args.other) if name is not None]
    if args.grid is not None:
        shown = [replace(s, sizes=parse_grid(args.grid)) for s in shown]
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(routing_text(shown, color))
    if as_json:
        args.output.write_text(layer_by_layer(shown[0].routing), encoding="utf-8")
    elif args.output is not None:
        routing_picture(shown).save(args.output)
    return 0


def run_attention(args: argparse.Namespace) -> int:
    """Write the picture; prints one line."""
    _check_target(args.output, (PNG,))
    reader = VideoReader(args.clip)
    reader.check_progressive()
    device = choose_device(args.device)
    checkpoint = load_checkpoint(resolve(args.model), device, choose_dtype(args.dtype, device))
    routing = checkpoint.routing if args.routing is None else RoutingSpec.from_file(args.routing)
    settings = UpscaleSettings(scale=args.scale, chunk_frames=args.chunk)
    upscaler = Upscaler(checkpoint.model, routing, settings, decodes=False)
    frames = (frame.rgb for frame in reader)
    found = attention_map(upscaler, frames, args.layer, args.head, at=args.time, y=args.y, x=args.x)
    attention_picture(found).save(args.output)
    t, h, w = found.weights.shape
    own = float(found.weights[found.token[0]].sum())
    print(
        f"{args.output}: token {found.token} of {t}x{h}x{w}, {found.pattern}; {own:.1%} of its attention in its own frame"
    )
    return 0


def read_named(name: str) -> NamedRouting:
    """A routing as a user names it. Raises FileNotFoundError or ValueError, one line."""
    path = Path(name)
    if path.suffix.lower() != ".json":
        return NamedRouting(path.stem, read_metadata(resolve(name)).routing)
    RoutingSpec.from_file(path)
    try:
        return named_routing(path.name, path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"routing file {path}: {e}") from None


def parse_grid(text: str) -> tuple[int, int, int]:
    """Sides of ``16x45x80``. Raises ValueError for anything else."""
    words = text.lower().split("x")
    if len(words) != 3 or not all(w.isascii() and w.isdigit() and 0 < len(w) < 6 and int(w) for w in words):
        raise ValueError(f"token grid is {text[:40]!r}; give frames x rows x columns, such as 16x45x80")
    return int(words[0]), int(words[1]), int(words[2])


def layer_by_layer(routing: RoutingSpec) -> str:
    """A routing's JSON with a line for each layer, as ``RoutingSpec.from_json`` reads it."""
    return routing.to_json().replace("], [", "],\n  [").replace("[[", "[\n  [").replace("]]", "]\n ]") + "\n"


def _check_target(path: Path | None, endings: tuple[str, ...]) -> None:
    if path is None:
        return
    if path.suffix.lower() not in endings:
        raise ValueError(f"output is {path.name!r}; give a name that ends in {' or '.join(endings)}")
    check_folder(path)

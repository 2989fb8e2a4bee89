"""``oasis train``: train a model from a TOML config, or go on where it stopped."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from .device import choose_device


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("train", help="train a model from a TOML config, or go on where it stopped")
    parser.add_argument("config", type=Path, help="such as configs/oasis-tiny.toml")
    parser.add_argument("--data", help="training data folder (overrides the config's)")
    parser.add_argument("--out", help="output folder (overrides the config's)")
    parser.add_argument("--seconds", type=float, help="stop, with a saved state, after this many seconds")
    parser.add_argument(
        "--anneal", type=float, default=0.0, help="last share of --seconds in which the learning rate falls to nothing"
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that make the data; 0: this one (GPU: 4 to 8)"
    )
    parser.add_argument(
        "--data-device", help="where they make it (default: the training's device); cpu takes 12 cores a GPU, and pays"
    )
    parser.add_argument(
        "--fuse", action="store_true", help="compile the transformer's point-wise parts (long CUDA runs)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; prints where the weights are."""
    from ..training.config import load_config
    from ..training.loop import train

    config = load_config(args.config)
    overrides = {name: getattr(args, name) for name in ("data", "out") if getattr(args, name) is not None}
    config = dataclasses.replace(config, **overrides)
    data_device = choose_device(args.data_device) if args.data_device else None
    path = train(config, choose_device(args.device), args.seconds, args.workers, args.fuse, data_device, args.anneal)
    print(f"weights: {path}")
    return 0

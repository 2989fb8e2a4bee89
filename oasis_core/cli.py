"""The ``oasis`` command."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

import torch


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input (one line on standard error)."""
    parser = argparse.ArgumentParser(prog="oasis", description="OASIS video super-resolution")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        args.run(args)
    except (ValueError, OSError) as e:
        print(f"oasis: {e}", file=sys.stderr)
        return 2
    return 0


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("train", help="train a model from a TOML config, or go on where it stopped")
    parser.add_argument("config", type=Path, help="such as configs/oasis-tiny.toml")
    parser.add_argument("--data", help="training data folder (overrides the config's)")
    parser.add_argument("--out", help="output folder (overrides the config's)")
    parser.add_argument("--seconds", type=float, help="stop, with a saved state, after this many seconds")
    parser.add_argument("--workers", type=int, default=0, help="processes that make the data (0: this one; 4 to 8 on a GPU)")
    parser.add_argument("--fuse", action="store_true", help="compile the transformer's point-wise parts (long runs on CUDA)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1, mps or cpu")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    from .training.config import load_config
    from .training.loop import train

    config = load_config(args.config)
    overrides = {name: getattr(args, name) for name in ("data", "out") if getattr(args, name) is not None}
    path = train(dataclasses.replace(config, **overrides), torch.device(args.device), args.seconds, args.workers, args.fuse)
    print(f"weights: {path}")


if __name__ == "__main__":
    sys.exit(main())

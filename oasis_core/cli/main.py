"""Which commands there are, and how their errors reach the user: one line, exit code 2."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import NoReturn

import av
import torch

from .. import __version__
from . import calibrate, convert, demo, evaluate, info, routing, train, upscale

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells expect it."""


class _Parser(argparse.ArgumentParser):
    """Tells of a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """Of all commands and their options."""
    whole = _Parser(prog="oasis", description="OASIS: one-step video super-resolution")
    whole.add_argument("--version", action="version", version=f"oasis {__version__}, torch {torch.__version__}")
    commands = whole.add_subparsers(dest="command", required=True, parser_class=_Parser)
    for command in (upscale, demo, info, train, evaluate, calibrate, routing, convert):
        command.add(commands)
    return whole


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done; 2 bad input, told in one line on standard error; 130 interrupted.
    """
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return int(args.run(args))
    except torch.OutOfMemoryError:
        print("oasis: out of GPU memory; lower --chunk (frames at once) or set a smaller --tile", file=sys.stderr)
    except (ValueError, OSError, MemoryError, av.FFmpegError, ModuleNotFoundError) as e:
        print(f"oasis: {' '.join(str(e).split())}", file=sys.stderr)
    except KeyboardInterrupt as e:
        print(f"oasis: interrupted; {str(e) or 'nothing was written'}", file=sys.stderr)
        return INTERRUPTED
    return 2

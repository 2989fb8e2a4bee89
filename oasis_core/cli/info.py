"""``oasis info``: what a checkpoint is."""

from __future__ import annotations

import argparse

from ..checkpoints import EMBEDDED, Checkpoint, load_checkpoint, resolve
from ..model import PixelDecoderConfig
from ..model.decoders import MissingDecoder


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("info", help="tell what a checkpoint is")
    parser.add_argument(
        "model", nargs="?", default=EMBEDDED, help=f"checkpoint file or embedded model (default {EMBEDDED})"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print name, sizes, routing, licence and origin."""
    path = resolve(args.model)
    checkpoint = load_checkpoint(path, dtype=None)
    config, routing = checkpoint.config, checkpoint.routing
    weights = list(checkpoint.model.parameters())
    formats = ", ".join(sorted({str(w.dtype).removeprefix("torch.") for w in weights}))
    for name, value in (
        ("file", path),
        ("name", config.name),
        ("parameters", f"{sum(w.numel() for w in weights) / 1e6:.1f} million, {formats}"),
        ("blocks", f"{config.depth} of {config.dim}, {config.heads} heads"),
        ("cell, patch", f"{config.unshuffle}, {config.patch}: sizes are padded to {config.pixel_multiple}"),
        ("routing", f"{routing.shares()}; window {routing.window}"),
        ("decoder", _decoder(checkpoint)),
        ("trained", "yes" if checkpoint.metadata.trained else "no: converted, it cannot upscale until it is trained"),
        ("licence", checkpoint.metadata.licence),
        ("notes", checkpoint.metadata.notes or "none"),
    ):
        print(f"{name + ':':13}{value}")
    return 0


def _decoder(checkpoint: Checkpoint) -> str:
    if isinstance(checkpoint.config.decoder, PixelDecoderConfig):
        return "its own, for single frames"
    if isinstance(checkpoint.model.decoder, MissingDecoder):
        return "Wan 2.1's, in a file of its own (--decoder)"
    return "Wan 2.1's, in this file"

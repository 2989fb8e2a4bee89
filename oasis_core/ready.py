"""A checkpoint made ready for jobs: its decoder, its routing, what computes its attention. Commands and workers do the same."""

from __future__ import annotations

from pathlib import Path

import torch

from .attention.backends import backend_for
from .checkpoints import Checkpoint, load_checkpoint
from .checkpoints.decoder import load_decoder
from .jobs.fingerprint import hash_model
from .model.fuse import fuse_model
from .model.graphs import Graphs
from .pipeline import Upscaler, UpscaleSettings
from .routing.auto import NAME as AUTO
from .routing.auto import AutoRouting, is_auto
from .routing.calibration import check_dense
from .routing.spec import RoutingSpec


def load_with_decoder(
    model: Path, decoder: Path | None, device: torch.device | str, dtype: torch.dtype, allow_untrained: bool
) -> Checkpoint:
    """A checkpoint, and for a full-size model its decoder's file.

    Raises:
        FileNotFoundError, ValueError: no such files, or ones that do not go together; a model that was never trained, unless
            that is allowed; one line.
    """
    checkpoint = load_checkpoint(model, device, dtype)
    if not allow_untrained:
        checkpoint.check_trained()
    if decoder is not None:
        loaded = load_decoder(decoder, device, dtype)
        loaded.fold()
        checkpoint.model.attach_decoder(loaded)
    return checkpoint


def routing_of(text: str | None, checkpoint: Checkpoint) -> RoutingSpec | AutoRouting:
    """The routing that is asked for: None: the checkpoint's; ``auto...``, or JSON of either kind.

    Raises:
        ValueError: none of these, or a routing to be decided for a model that is not dense; one line.
    """
    if text is None:
        return checkpoint.routing
    if text.partition(":")[0] == AUTO:
        check_dense(checkpoint.routing, checkpoint.config.name)
        return AutoRouting.parse(text, checkpoint.routing.window)
    if is_auto(text):
        check_dense(checkpoint.routing, checkpoint.config.name)
        return AutoRouting.from_json(text)
    return RoutingSpec.from_json(text)


def ready(
    checkpoint: Checkpoint, routing: RoutingSpec | AutoRouting, settings: UpscaleSettings, attention: str, compile: bool,
    fold: bool = True, fp8: bool = False,
) -> Upscaler:  # fmt: skip
    """The checkpoint's model, to be run where it is. It is changed in place.

    Args:
        attention: name of a backend. compile: first, which takes a minute.
        fold: what is constant for this routing and fidelity becomes plain weights (``model.fold``); on CUDA the
            transformer then runs as graphs where it is small.
        fp8: the transformer's matrices are.

    Raises:
        ValueError: what the device cannot do, fp8 for a routing that is decided as the clip runs, or as ``Upscaler`` does.
    """
    model = checkpoint.model
    weight = model.project.weight
    model.dit.attention = backend_for(attention, weight.device, weight.dtype, checkpoint.config.head_dim)
    upscaler = Upscaler(model, routing, settings)
    if fp8 and not isinstance(routing, RoutingSpec):
        raise ValueError(
            "dtype fp8 needs a routing that is known beforehand; choose bf16, or another routing than auto"
        )
    if (fold or fp8) and isinstance(routing, RoutingSpec):
        model.loaded_as = hash_model(model, fp8)
        model.dit.fold(routing, upscaler.fidelity, fp8)
        model.dit.graphs = Graphs() if model.project.weight.is_cuda else None
    if compile:
        fuse_model(model, dynamic=None)
    return upscaler

"""A model's folded copy (``model.fold``), beside the model that other routings and fidelities are asked of."""

from __future__ import annotations

from copy import deepcopy

import comfy.model_management as mm
import comfy.model_patcher
import torch

from ..oasis_core.jobs.fingerprint import hash_model
from ..oasis_core.model import OasisModel
from ..oasis_core.model.fuse import fuse_model
from ..oasis_core.routing.spec import RoutingSpec

COPIES = 2
"""Times a model's size that must be free where ComfyUI keeps it, for a folded copy: the copy, and as much for all else."""


def managed(model: OasisModel) -> comfy.model_patcher.ModelPatcher:
    """The model under ComfyUI's management."""
    # Looked up when called: ComfyUI replaces it at start where it manages memory dynamically.
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return kind(model, mm.get_torch_device(), mm.unet_offload_device())


class FoldedCopy:
    """The last copy that was folded is kept, for when the same is asked for again."""

    def __init__(self) -> None:
        self._made_for: tuple[RoutingSpec, float] | None = None
        self._patcher: comfy.model_patcher.ModelPatcher | None = None

    def has_room(self, patcher: comfy.model_patcher.ModelPatcher) -> bool:
        """Whether there is memory for a copy of the model beside it."""
        if self._patcher is not None:
            return True
        return mm.get_free_memory(patcher.offload_device) >= COPIES * mm.module_size(patcher.model)

    def of(
        self, patcher: comfy.model_patcher.ModelPatcher, routing: RoutingSpec, fidelity: float, fp8: bool, compile: bool
    ) -> comfy.model_patcher.ModelPatcher:
        """The copy of ``patcher``'s model for that routing and fidelity; the others say how it was loaded."""
        if self._patcher is None or self._made_for != (routing, fidelity):
            self._patcher = None  # its memory is free before the next one is made
            copy = _copied(patcher.model, patcher.offload_device)
            copy.loaded_as = hash_model(patcher.model, fp8)
            copy.dit.fold(routing, fidelity, fp8)
            if compile:
                fuse_model(copy, dynamic=None)
            self._patcher, self._made_for = managed(copy), (routing, fidelity)
        return self._patcher


def _copied(model: OasisModel, place: torch.device) -> OasisModel:
    """Without what ComfyUI and the compiler put beside the weights."""
    with torch.device("meta"):
        copy = OasisModel(model.config)
    kept = {id(model.dit.attention): model.dit.attention}
    for name, part in model.named_children():
        copied = deepcopy(part, kept).to(place)
        copied.__dict__.pop("forward", None)  # compiled, of the model itself
        setattr(copy, name, copied)
    return copy.eval()

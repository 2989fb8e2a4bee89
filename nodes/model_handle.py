"""What travels on an OASIS_MODEL wire, and its life under ComfyUI's model management."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import torch
from comfy_api.latest import io

from ..oasis_core.attention.backends import backend_for
from ..oasis_core.checkpoints import Checkpoint
from ..oasis_core.jobs.fit import fit
from ..oasis_core.memory import working_memory
from ..oasis_core.model import OasisModel
from ..oasis_core.model.fuse import fuse_model
from ..oasis_core.pipeline import Upscaler
from ..oasis_core.routing.auto import AutoRouting
from ..oasis_core.routing.spec import RoutingSpec

OasisModelType = io.Custom("OASIS_MODEL")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES = ("auto", *DTYPES)
"""auto: ComfyUI's choice for its device."""
SUPPORTED = [torch.bfloat16, torch.float16, torch.float32]
"""What the model computes in, best first: ComfyUI picks the first that the device does well."""


@dataclass(frozen=True)
class ModelHandle:
    """A model that ComfyUI moves between devices, and the routing to run it with."""

    patcher: comfy.model_patcher.ModelPatcher
    routing: RoutingSpec | AutoRouting
    checkpoint: Checkpoint
    """As loaded: its own routing is the one from the file."""
    file: Path | None = None
    """Where all of it was loaded from; with it another process can load the same. None: its decoder came from a VAE."""
    attention: str = "auto"
    compile: bool = False

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        dtype: str,
        attention: str = "auto",
        compile: bool = False,
        file: Path | None = None,
    ) -> ModelHandle:
        """Cast the model and hand it to model management.

        Raises:
            ValueError: a dtype that is not one of ``DTYPE_NAMES`` (older ComfyUI lets any text through), or an attention
                backend that cannot be used here.
        """
        if dtype not in DTYPE_NAMES:
            raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPE_NAMES)}")
        device, model = mm.get_torch_device(), checkpoint.model
        model.to(DTYPES.get(dtype) or _auto_dtype(model, device))
        model.dit.attention = backend_for(attention, device, model.project.weight.dtype, model.config.head_dim)
        if compile:
            fuse_model(model, dynamic=None)
        # Looked up when called: ComfyUI replaces it at start where it manages memory dynamically.
        patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        patched = patcher(model, device, mm.unet_offload_device())
        return cls(patched, checkpoint.routing, checkpoint, file, attention, compile)

    def load(self, upscaler: Upscaler, frames: int, height: int, width: int) -> None:
        """Bring the model to its device, with room for a job on a clip of that size.

        That is for the best plan that the whole device could hold; the job itself plans with what is free when it begins.
        """
        device = self.patcher.load_device
        whole = mm.get_total_memory(device) - mm.module_size(self.patcher.model) if device.type == "cuda" else None
        memory = working_memory(fit(upscaler, frames, height, width, whole), frames, height, width)
        mm.load_models_gpu([self.patcher], memory_required=memory, force_full_load=True)
        # Under --novram the patcher leaves layers that are not ComfyUI's own where they were; unloading undoes this.
        self.patcher.model.to(self.patcher.load_device)


def _auto_dtype(model: OasisModel, device: torch.device) -> torch.dtype:
    """ComfyUI's rule, its command line switches included."""
    parameters = sum(p.numel() for p in model.parameters())
    stored = mm.unet_dtype(device, parameters, SUPPORTED)
    return mm.unet_manual_cast(stored, device, SUPPORTED) or stored

"""What travels on an OASIS_MODEL wire, and its life under ComfyUI's model management."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import torch
from comfy.cli_args import args
from comfy_api.latest import io

from ..oasis_core.attention.backends import backend_for
from ..oasis_core.checkpoints import Checkpoint
from ..oasis_core.device import FP8, choose_dtype, missing_fp8
from ..oasis_core.jobs.fit import fit
from ..oasis_core.memory import working_memory
from ..oasis_core.model import OasisModel
from ..oasis_core.model.fuse import fuse_model
from ..oasis_core.pipeline import Upscaler, UpscaleSettings
from ..oasis_core.routing.auto import AutoRouting
from ..oasis_core.routing.spec import RoutingSpec
from .folded_copy import FoldedCopy, managed

OasisModelType = io.Custom("OASIS_MODEL")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES = ("auto", *DTYPES, FP8)
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
    fp8: bool = False
    """The transformer's matrices run in fp8, in the copy that is folded."""
    copied: FoldedCopy = field(default_factory=FoldedCopy)
    """One for all handles of these weights."""

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
        if dtype == FP8 and (why := missing_fp8(device)):
            raise ValueError(f"dtype fp8 cannot be used: {why}")
        model.to(torch.bfloat16 if dtype == FP8 else DTYPES.get(dtype) or _auto_dtype(model, device))
        model.dit.attention = backend_for(attention, device, model.project.weight.dtype, model.config.head_dim)
        if compile:
            fuse_model(model, dynamic=None)
        return cls(managed(model), checkpoint.routing, checkpoint, file, attention, compile, dtype == FP8)

    def ready(self, settings: UpscaleSettings) -> tuple[ModelHandle, Upscaler]:
        """What runs a job, and its model: a copy folded for this routing and fidelity (``model.fold``), where it can be.

        The model itself stays as it is, for other routings and fidelities.

        Raises:
            ValueError: fp8 for a routing that is decided as the clip runs, or as ``Upscaler`` does.
        """
        upscaler = Upscaler(self.patcher.model, self.routing, settings)
        if self.fp8 and not isinstance(self.routing, RoutingSpec):
            raise ValueError(
                "dtype fp8 needs a routing that is known beforehand; choose bf16, or another routing than auto"
            )
        if not isinstance(self.routing, RoutingSpec) or not (self.fp8 or self.copied.has_room(self.patcher)):
            return self, upscaler
        patcher = self.copied.of(self.patcher, self.routing, upscaler.fidelity, self.fp8, self.compile)
        return replace(self, patcher=patcher), Upscaler(patcher.model, self.routing, settings)

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
    """ComfyUI's rule, its command line switches included; on CPUs, which it leaves at fp32, the core's where no switch says."""
    parameters = sum(p.numel() for p in model.parameters())
    stored = mm.unet_dtype(device, parameters, SUPPORTED)
    if device.type == "cpu" and stored == torch.float32 and not (args.fp32_unet or args.force_fp32):
        return choose_dtype("auto", device)
    return mm.unet_manual_cast(stored, device, SUPPORTED) or stored

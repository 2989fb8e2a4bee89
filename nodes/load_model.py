"""OasisLoadModel: a checkpoint, ready for ComfyUI's model management."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..oasis_core.attention.backends import NAMES as ATTENTION_NAMES
from ..oasis_core.checkpoints import load_checkpoint
from ..oasis_core.checkpoints.decoder import decoder_of
from .model_files import missing_model, model_names, model_path, stamp
from .model_handle import DTYPE_NAMES, ModelHandle, OasisModelType


class OasisLoadModel(io.ComfyNode):
    """Model file in, OASIS_MODEL out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OasisLoadModel",
            display_name="OASIS Load Model",
            category="OASIS",
            description="Loads an OASIS video upscaling model. oasis-tiny comes with this pack: nothing to download.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_names(),
                    tooltip="oasis-tiny is built in. More models: .safetensors files in models/oasis (or "
                    "models/diffusion_models). Change it when you have downloaded or trained another OASIS model.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPE_NAMES),
                    default="auto",
                    tooltip="Number format of the computation. auto takes what suits your device. fp32 is the most "
                    "exact and needs twice the memory of bf16 and fp16; change it only to compare, or if a result is "
                    "black. fp8 (NVIDIA from RTX 40 on) makes full-size models a little faster and less exact.",
                ),
                io.Combo.Input(
                    "attention",
                    options=list(ATTENTION_NAMES),
                    default="auto",
                    optional=True,
                    tooltip="What computes the attention. auto: the fastest that is installed. cudnn, flash-attn (package "
                    "flash-attn-4) and triton need an NVIDIA GPU. Change it only to compare speed: the picture is the same "
                    "but for rounding.",
                ),
                io.Boolean.Input(
                    "compile",
                    default=False,
                    optional=True,
                    tooltip="Compile the model when it first runs: about a minute, then faster. Worth it for long videos "
                    "and many runs. Needs a C++ compiler, on NVIDIA GPUs Triton (Windows: triton-windows).",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="From Load VAE: wan_2.1_vae, or taew2_1 (faster, less exact). Full-size models need it; "
                    "oasis-tiny has a decoder of its own and takes none.",
                ),
            ],
            outputs=[OasisModelType.Output(display_name="model", tooltip="For OASIS Upscale or OASIS Head Routing.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None) -> bool | str:
        return model_name is None or missing_model(model_name) or True  # None: it comes by a wire

    @classmethod
    def fingerprint_inputs(
        cls, model_name: str, dtype: str, attention: str = "auto", compile: bool = False, vae: Any = None
    ) -> str:
        return stamp(model_path(model_name))

    @classmethod
    def execute(
        cls, model_name: str, dtype: str, attention: str = "auto", compile: bool = False, vae: Any = None
    ) -> io.NodeOutput:
        path = model_path(model_name)
        checkpoint = load_checkpoint(path, dtype=None)
        checkpoint.check_trained()
        if vae is not None:
            light = getattr(vae.first_stage_model, "latent_format", None) is None
            decoder = decoder_of(vae.get_sd(), light=light)
            decoder.fold()
            checkpoint.model.attach_decoder(decoder)
        return io.NodeOutput(ModelHandle.of(checkpoint, dtype, attention, compile, path if vae is None else None))

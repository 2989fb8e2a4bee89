"""OasisUpscale: frames in, larger frames out."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
from comfy_api.latest import io
from torch import Tensor

from ..oasis_core.jobs.clip import upscale_clip
from ..oasis_core.jobs.estimate import clip_facts
from .bar import Bar
from .model_handle import ModelHandle, OasisModelType
from .settings import setting_inputs, settings_of


class OasisUpscale(io.ComfyNode):
    """IMAGE in, IMAGE out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OasisUpscale",
            display_name="OASIS Upscale",
            category="OASIS",
            description="Upscales the frames of a video (or a still image) 1 to 4 times in one diffusion step.",
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="Frames of one clip, in order, 16x16 pixels or more. A single image works too. A "
                    "transparent image keeps its alpha channel.",
                ),
                OasisModelType.Input("model", tooltip="From OASIS Load Model."),
                *setting_inputs(),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="As many frames as came in, upscaled.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images: Tensor, model: ModelHandle, **settings: Any) -> io.NodeOutput:
        model, upscaler = model.ready(settings_of(**settings))
        facts = clip_facts(upscaler, *images.shape[:3])
        model.load(upscaler, *images.shape[:3])
        with Bar(len(images), facts, cls.hidden.unique_id) as bar:
            result = upscale_clip(upscaler, images, bar.advance, bar.poll, bar.show)
            bar.end(facts, result[-1, ..., :3])
        return io.NodeOutput(result.to(mm.intermediate_device()))

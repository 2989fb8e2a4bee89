"""OasisColorCorrect: the colours of one clip on another."""

from __future__ import annotations

import comfy.model_management as mm
import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..oasis_core.color import ColorMethod, correct_color
from ..oasis_core.geometry import resize
from ..oasis_core.pipeline import UpscaleSettings


class OasisColorCorrect(io.ComfyNode):
    """IMAGE and reference IMAGE in, IMAGE out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OasisColorCorrect",
            display_name="OASIS Color Correct",
            category="OASIS",
            description="Gives frames the colours of reference frames. OASIS Upscale does this by itself; use it "
            "after other nodes that shift colours.",
            inputs=[
                io.Image.Input("images", tooltip="Frames to correct, any size. Their size and alpha channel are kept."),
                io.Image.Input(
                    "reference",
                    tooltip="Frames with the right colours, any size (resized to fit): as many as images, or one for "
                    "all.",
                ),
                io.Combo.Input(
                    "method",
                    options=[method.value for method in ColorMethod],
                    default=UpscaleSettings.color.value,
                    tooltip="wavelet: colours and brightness locally, for the same picture in other quality. adain "
                    "and lab: over the whole frame, also for another picture; lab leaves brightness. none: unchanged.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The corrected frames.")],
        )

    @classmethod
    def execute(cls, images: Tensor, reference: Tensor, method: str) -> io.NodeOutput:
        if len(reference) not in (1, len(images)):
            raise ValueError(
                f"reference has {len(reference)} frames; it must have 1 or as many as images ({len(images)})"
            )
        device, (height, width) = mm.get_torch_device(), images.shape[1:3]
        out = torch.empty(images.shape, dtype=torch.float32, device=mm.intermediate_device())
        out[..., 3:] = images[..., 3:]
        bar = ProgressBar(len(images))
        for i in range(len(images)):
            mm.throw_exception_if_processing_interrupted()
            target = resize(reference[i % len(reference)][None, ..., :3].to(device), height, width)
            out[i, ..., :3] = correct_color(images[i : i + 1, ..., :3].to(device), target, ColorMethod.of(method))[0]
            bar.update(1)
        return io.NodeOutput(out)

"""OasisRoutingMap: a model's routing as a picture, or what one of its heads looks at."""

from __future__ import annotations

import comfy.model_management as mm
import numpy as np
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..oasis_core.pipeline import Upscaler, UpscaleSettings
from ..oasis_core.routing.attention_map import attention_map, attention_picture
from ..oasis_core.routing.auto import AutoRouting
from ..oasis_core.routing.picture import NamedRouting, named_routing, routing_picture
from .model_handle import ModelHandle, OasisModelType

ROUTING, ATTENTION = "routing", "attention"


class OasisRoutingMap(io.ComfyNode):
    """OASIS_MODEL in, IMAGE out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def place(name: str, axis: str) -> io.Float.Input:
            tooltip = f"Place of the token in {axis}, 0 to 1. Used by: attention."
            return io.Float.Input(name, default=0.5, min=0.0, max=1.0, step=0.01, tooltip=tooltip)

        def number(name: str) -> io.Int.Input:
            tooltip = f"Which {name}, counted from 0. Used by: attention."
            return io.Int.Input(name, default=0, min=0, max=1000, tooltip=tooltip)

        return io.Schema(
            node_id="OasisRoutingMap",
            display_name="OASIS Routing Map",
            category="OASIS",
            description="Draws which attention pattern each head of each layer uses and what that costs, two models side by "
            "side, or what one head looks at, on the frames.",
            inputs=[
                OasisModelType.Input("model", tooltip="From OASIS Load Model, Head Routing or Calibrate Routing."),
                io.Combo.Input(
                    "view",
                    options=[ROUTING, ATTENTION],
                    default=ROUTING,
                    tooltip="routing: layers x heads, each pattern in its colour. attention: what one head sees from one "
                    "token; it needs images.",
                ),
                number("layer"),
                number("head"),
                place("time", "the chunk's time"),
                place("y", "the height, from the top"),
                place("x", "the width, from the left"),
                OasisModelType.Input(
                    "other",
                    optional=True,
                    tooltip="A second model, drawn beside: heads that differ are framed. Used by: routing.",
                ),
                io.String.Input(
                    "json",
                    default="",
                    optional=True,
                    force_input=True,
                    tooltip="From OASIS Calibrate Routing: its divergences shade the heads. Used by: routing.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="Low-quality frames; the first chunk is used. Used by: attention."
                ),
                io.Float.Input(
                    "scale",
                    default=4.0,
                    min=1.0,
                    max=4.0,
                    step=0.05,
                    optional=True,
                    tooltip="Times the frames' width and height, 1 to 4, as in OASIS Upscale. Used by: attention.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The picture.")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model: ModelHandle, view: str, layer: int, head: int, time: float, y: float, x: float,
        other: ModelHandle | None = None, json: str = "", images: Tensor | None = None, scale: float = 4.0,
    ) -> io.NodeOutput:  # fmt: skip
        if view not in (ROUTING, ATTENTION):  # older ComfyUI lets any text through
            raise ValueError(f"view is {view!r}; allowed: {ROUTING}, {ATTENTION}")
        if view == ROUTING:
            picture = routing_picture([_named(m, json) for m in (model, other) if m is not None])
        else:
            if images is None:
                raise ValueError("view attention needs images: connect the clip's low-quality frames")
            upscaler = Upscaler(model.patcher.model, model.routing, UpscaleSettings(scale=scale), decodes=False)
            model.load(upscaler, *images.shape[:3])
            poll = mm.throw_exception_if_processing_interrupted
            found = attention_map(upscaler, images, layer, head, at=time, y=y, x=x, poll=poll)
            picture = attention_picture(found)
        image = torch.from_numpy(np.array(picture)).float()[None] / 255
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


def _named(model: ModelHandle, json: str) -> NamedRouting:
    """The divergences shade the routing that they are of, and any other of the same model's size."""
    name, routing = model.checkpoint.config.name, model.routing
    if isinstance(routing, AutoRouting):
        raise ValueError("this model's routing is decided while a clip runs: there is none to draw")
    if not json.strip():
        return NamedRouting(name, routing)
    calibrated = named_routing(name, json)
    calibrated.routing.check_fits(routing.depth, routing.heads)
    return NamedRouting(name, routing, calibrated.kl, calibrated.sizes)

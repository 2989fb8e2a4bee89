"""OasisHeadRouting: another routing for a loaded model."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..oasis_core.routing.layer_pattern import by_layers
from ..oasis_core.routing.rules import apply_rules
from ..oasis_core.routing.spec import HeadPattern, RoutingSpec
from .model_files import routing_path, stamp
from .model_handle import ModelHandle, OasisModelType

FROM_CHECKPOINT, BY_RATIO, BY_LAYERS, JSON = "from checkpoint", "by ratio", "by layer pattern", "JSON"
UNIFORM = {f"all {pattern.value}": pattern for pattern in HeadPattern}
MODES = (FROM_CHECKPOINT, *UNIFORM, BY_RATIO, BY_LAYERS, JSON)


class OasisHeadRouting(io.ComfyNode):
    """OASIS_MODEL in, the same model with another routing out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OasisHeadRouting",
            display_name="OASIS Head Routing",
            category="OASIS",
            description="Chooses what each attention head looks at: all frames (global), its own frame (intra-frame) "
            "or a small neighbourhood (window). For studying the method; the model's own routing is the best default.",
            inputs=[
                OasisModelType.Input("model", tooltip="From OASIS Load Model."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=FROM_CHECKPOINT,
                    tooltip="from checkpoint: the routing the model was trained with. all ...: every head alike. by "
                    "ratio: the shares below. by layer pattern: layers below. JSON: the text or file below. Change it to "
                    "trade speed against quality.",
                ),
                io.Float.Input(
                    "global_share",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of each layer's heads, 0 to 1, that look at all frames of a chunk. Used by: by "
                    "ratio. More is slower and steadier over time.",
                ),
                io.Float.Input(
                    "intra_frame_share",
                    default=0.35,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of each layer's heads, 0 to 1, that look at their own frame. Used by: by ratio. "
                    "With global_share at most 1; the heads that remain look at a window, which is the cheapest.",
                ),
                io.String.Input(
                    "json",
                    default="",
                    multiline=True,
                    tooltip="Used by: JSON. A routing as OASIS writes it, pasted here (it then travels with the "
                    "workflow), or the name of a .json file in models/oasis. Change it to try a routing you "
                    "calibrated.",
                ),
                io.String.Input(
                    "rules",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Changes on top of the mode, such as 0-5: window; 6: 0-3 global (layers 0 to 5 all window, of "
                    "layer 6 the heads 0 to 3 global). Layers and heads count from 0; all: every one. Empty: none.",
                ),
                io.String.Input(
                    "layers",
                    default="window*2, global",
                    optional=True,
                    tooltip="Used by: by layer pattern. One pattern for each layer (global, intra-frame, window or an extent in "
                    "frames x token rows x token columns such as 3x7x7), *2 for two such layers, begun again until the last "
                    "layer: window*2, global is every third layer global.",
                ),
            ],
            outputs=[OasisModelType.Output(display_name="model", tooltip="The same weights with this routing.")],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        mode: str = "",
        global_share: float = 0.0,
        intra_frame_share: float = 0.0,
        json: str | None = None,
        model: ModelHandle | None = None,
        rules: str = "",
        layers: str = "",
    ) -> str:
        is_file = mode == JSON and json and not _is_inline(json)
        return stamp(routing_path(json.strip())) if is_file else ""

    @classmethod
    def execute(
        cls,
        model: ModelHandle,
        mode: str,
        global_share: float,
        intra_frame_share: float,
        json: str,
        rules: str = "",
        layers: str = "",
    ) -> io.NodeOutput:
        if mode not in MODES:  # older ComfyUI lets any text through
            raise ValueError(f"routing mode is {mode!r}; allowed: {', '.join(MODES)}")
        config, own = model.checkpoint.config, model.checkpoint.routing
        if mode == FROM_CHECKPOINT:
            routing = own
        elif mode in UNIFORM:
            routing = RoutingSpec.uniform(config.depth, config.heads, UNIFORM[mode], own.window)
        elif mode == BY_RATIO:
            routing = RoutingSpec.by_ratio(config.depth, config.heads, global_share, intra_frame_share, own.window)
        elif mode == BY_LAYERS:
            routing = by_layers(config.depth, config.heads, layers, own.window)
        elif _is_inline(json):
            routing = RoutingSpec.from_json(json)
        else:
            routing = RoutingSpec.from_file(routing_path(json.strip()))
        routing.check_fits(config.depth, config.heads)
        return io.NodeOutput(replace(model, routing=apply_rules(routing, rules)))


def _is_inline(text: str) -> bool:
    return text.lstrip().startswith("{")

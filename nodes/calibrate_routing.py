"""OasisCalibrateRouting: each head's pattern, found from a clip."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io
from torch import Tensor

from ..oasis_core.pipeline import Upscaler, UpscaleSettings
from ..oasis_core.routing.calibrated import DEFAULT_BUDGET, RULES, calibrate, told
from ..oasis_core.routing.calibration import QUERIES, check_dense
from ..oasis_core.routing.spec import parse_patterns
from .bar import Bar
from .model_handle import ModelHandle, OasisModelType


class OasisCalibrateRouting(io.ComfyNode):
    """IMAGE and OASIS_MODEL in, the same model with the routing that was found out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OasisCalibrateRouting",
            display_name="OASIS Calibrate Routing",
            category="OASIS",
            description="Finds from a clip how far each attention head of a densely trained model must see, and gives each "
            "the cheapest pattern that holds. For studying the method; a model with a routing of its own is refused.",
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="Low-quality frames of one clip, in order. The first chunk of its first shot is used.",
                ),
                OasisModelType.Input(
                    "model", tooltip="From OASIS Load Model: a checkpoint whose heads are all global."
                ),
                io.Combo.Input(
                    "rule",
                    options=list(RULES),
                    default="budget",
                    tooltip="budget: the least loss within the attention cost below, solved exactly. threshold: each head "
                    "gets the cheapest pattern that loses no more than the nats below.",
                ),
                io.Float.Input(
                    "budget",
                    default=DEFAULT_BUDGET,
                    min=0.001,
                    max=1.0,
                    step=0.01,
                    tooltip="Attention arithmetic as a share of all heads global, 0.001 to 1. Used by: budget. Lower it for "
                    "speed, raise it where quality drops.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Most that a head may lose, 0 to 100 nats (KL of its local against its global attention); 0.5: "
                    "the pattern holds 61 % of the attention. Used by: threshold.",
                ),
                io.String.Input(
                    "patterns",
                    default="intra-frame, window",
                    tooltip="Candidates beside global, by commas: intra-frame, window, or extents in frames x token rows x "
                    "token columns such as 3x7x7, 3xallxall, allx3x3. Change it to look beyond the paper's three.",
                ),
                io.Float.Input(
                    "scale",
                    default=4.0,
                    min=1.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Times the input's width and height, 1 to 4: what the clip would be upscaled by.",
                ),
                io.Int.Input(
                    "chunk_frames",
                    default=UpscaleSettings.chunk_frames,
                    min=1,
                    max=1024,
                    tooltip="Frames that the model sees at once, 1 to 1024, as in OASIS Upscale. Lower it when memory runs "
                    "out.",
                ),
                io.Int.Input(
                    "queries",
                    default=QUERIES,
                    min=0,
                    max=100000,
                    tooltip="Tokens sampled in each layer, 0 to 100000; 0: all. More is surer and slower; the text output "
                    "says how sure.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=False,  # the page would draw another one after each run
                    tooltip="Of the sampling, 0 to 4294967295: the same seed, the same result.",
                ),
            ],
            outputs=[
                OasisModelType.Output(
                    display_name="model", tooltip="The same weights with the routing that was found."
                ),
                io.String.Output(
                    display_name="json",
                    tooltip="Routing and divergences as text, for OASIS Routing Map or OASIS Head Routing.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, images: Tensor, model: ModelHandle, rule: str, budget: float, threshold: float, patterns: str,
        scale: float, chunk_frames: int, queries: int, seed: int,
    ) -> io.NodeOutput:  # fmt: skip
        own, config = model.checkpoint.routing, model.checkpoint.config
        check_dense(own, config.name)
        settings = UpscaleSettings(scale=scale, chunk_frames=chunk_frames)
        upscaler = Upscaler(model.patcher.model, own, settings, decodes=False)
        candidates = parse_patterns(patterns)
        model.load(upscaler, *images.shape[:3])
        bar, blocks = Bar(config.depth, "", cls.hidden.unique_id), iter(range(config.depth))

        def poll() -> None:
            bar.poll()
            bar.advance(next(blocks), config.depth)

        value = threshold if rule == "threshold" else budget
        found = calibrate(
            upscaler, config.name, [("images", images)], rule, value,
            patterns=candidates, queries=queries, seed=seed, poll=poll,
        )  # fmt: skip
        bar.end(told(found))
        return io.NodeOutput(replace(model, routing=found.routing), found.to_json())

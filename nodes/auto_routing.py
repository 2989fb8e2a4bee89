"""OasisAutoRouting: the routing is decided while the clip runs."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..oasis_core.routing.auto import QUERIES, AutoRouting
from ..oasis_core.routing.calibrated import DEFAULT_BUDGET, RULES
from ..oasis_core.routing.calibration import check_dense
from ..oasis_core.routing.spec import parse_patterns
from .model_handle import ModelHandle, OasisModelType


class OasisAutoRouting(io.ComfyNode):
    """OASIS_MODEL in, the same model with a routing that is decided for each shot out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OasisAutoRouting",
            display_name="OASIS Auto Routing",
            category="OASIS",
            description="Decides on the first chunk of each shot which attention pattern each head of a densely trained "
            "model gets. For studying the method; a model with a routing of its own is refused.",
            inputs=[
                OasisModelType.Input(
                    "model", tooltip="From OASIS Load Model: a checkpoint whose heads are all global."
                ),
                io.Combo.Input(
                    "rule",
                    options=list(RULES),
                    default="threshold",
                    tooltip="threshold: each head gets the cheapest pattern that loses no more than the nats below. budget: "
                    "each layer the least loss within the attention cost below, solved exactly.",
                ),
                io.Float.Input(
                    "threshold",
                    default=AutoRouting.value,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Most that a head may lose, 0 to 100 nats; 0.5: the pattern holds 61 % of the attention. Used by: "
                    "threshold. Raise it for speed.",
                ),
                io.Float.Input(
                    "budget",
                    default=DEFAULT_BUDGET,
                    min=0.001,
                    max=1.0,
                    step=0.01,
                    tooltip="Attention arithmetic as a share of all heads global, 0.001 to 1. Used by: budget. Lower it for "
                    "speed.",
                ),
                io.String.Input(
                    "patterns",
                    default="intra-frame, window",
                    tooltip="Candidates beside global, by commas, as in OASIS Calibrate Routing.",
                ),
                io.Int.Input(
                    "queries",
                    default=QUERIES,
                    min=1,
                    max=4096,
                    tooltip="Tokens sampled in each layer, 1 to 4096. More is surer and slower.",
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
            outputs=[OasisModelType.Output(display_name="model", tooltip="For OASIS Upscale and OASIS Upscale Video.")],
        )

    @classmethod
    def execute(
        cls, model: ModelHandle, rule: str, threshold: float, budget: float, patterns: str, queries: int, seed: int
    ) -> io.NodeOutput:
        own = model.checkpoint.routing
        check_dense(own, model.checkpoint.config.name)
        value = threshold if rule == "threshold" else budget
        auto = AutoRouting(rule, value, own.window, parse_patterns(patterns), queries, seed)
        return io.NodeOutput(replace(model, routing=auto))

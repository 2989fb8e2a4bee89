"""OasisCompare: two versions of a clip in one picture."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..oasis_core.compare import CompareMode, compare_frames


class OasisCompare(io.ComfyNode):
    """IMAGE and IMAGE in, one picture out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OasisCompare",
            display_name="OASIS Compare",
            category="OASIS",
            description="Shows one frame before and after in one picture: wiped, side by side, or their difference.",
            inputs=[
                io.Image.Input("before", tooltip="Frames as they came in; resized to the size of after."),
                io.Image.Input("after", tooltip="The upscaled frames: as many as before, or either may be one."),
                io.Int.Input(
                    "frame",
                    default=0,
                    min=-1,
                    max=1_000_000,
                    tooltip="Which frame, counted from 0. -1: the one in the middle.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[mode.value for mode in CompareMode],
                    default=CompareMode.WIPE.value,
                    tooltip="wipe: left of the line before, right of it after. side by side: both whole. difference: "
                    "where they differ, brighter is more.",
                ),
                io.Float.Input(
                    "position",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Place of the wipe's line, 0 (left, all after) to 1 (right, all before). Used by: wipe.",
                ),
                io.Float.Input(
                    "gain",
                    default=4.0,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="The difference is shown this many times as bright, 0.1 to 100. Used by: difference.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The picture.")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, before: Tensor, after: Tensor, frame: int, mode: str, position: float, gain: float
    ) -> io.NodeOutput:
        length = max(len(before), len(after))
        if any(len(x) not in (1, length) for x in (before, after)):
            raise ValueError(f"before has {len(before)} frames and after {len(after)}; give as many, or one of either")
        if frame >= length:
            raise ValueError(f"frame is {frame}; it must be from 0 to {length - 1}, or -1 for the middle")
        number = length // 2 if frame < 0 else frame
        pair = (x[number % len(x)] for x in (before, after))
        picture = compare_frames(*pair, CompareMode.of(mode), position, gain)[None]
        return io.NodeOutput(picture, ui=ui.PreviewImage(picture, cls=cls))

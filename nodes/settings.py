"""The settings that both upscaling nodes have."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..oasis_core.color import ColorMethod
from ..oasis_core.geometry import MAX_SCALE, MIN_SCALE
from ..oasis_core.pipeline import DEFAULT_FIDELITY, UpscaleSettings

MAX_SIDE = 16384
"""ComfyUI's own limit of image sides."""


def setting_inputs() -> list[Any]:
    """In the order of their widgets; new ones go to the end of a node, so that saved workflows keep their values."""
    return [
        io.Float.Input(
            "scale",
            default=4.0,
            min=float(MIN_SCALE),
            max=float(MAX_SCALE),
            step=0.05,
            tooltip="Times the input's width and height, 1 to 4. Change it when you need a smaller result; at "
            "1 the frames are only restored. Not used where a width or height is given.",
        ),
        io.Int.Input(
            "width",
            default=0,
            min=0,
            max=MAX_SIDE,
            tooltip="Target width in pixels, 1 to 4 times the input's; 0: by scale, or by height in "
            "proportion. Change it when you need an exact size such as 1920.",
        ),
        io.Int.Input(
            "height",
            default=0,
            min=0,
            max=MAX_SIDE,
            tooltip="Target height in pixels, 1 to 4 times the input's; 0: by scale, or by width in "
            "proportion. Change it when you need an exact size such as 1080.",
        ),
        io.Combo.Input(
            "color",
            options=[method.value for method in ColorMethod],
            default=UpscaleSettings.color.value,
            tooltip="How the input's colours are kept. wavelet: locally, best for most clips. adain and lab: "
            "over the whole frame. none: the model's own colours. Change it when colours drift or blotches "
            "show.",
        ),
        io.Int.Input(
            "chunk_frames",
            default=UpscaleSettings.chunk_frames,
            min=1,
            max=1024,
            tooltip="Frames the model sees at once, 1 to 1024. More is steadier over time and needs more "
            "memory: lower it when memory runs out.",
        ),
        io.Int.Input(
            "tile",
            default=0,
            min=0,
            max=MAX_SIDE,
            step=32,
            tooltip="Side in output pixels of the tiles that large frames are worked in. 0: automatic (whole "
            "frames up to 2560x1440, up to 4096x2176 on NVIDIA GPUs with room for them). Try 768 when memory runs "
            "out; a value above the frame's sides keeps it whole.",
        ),
        io.Float.Input(
            "fidelity",
            default=DEFAULT_FIDELITY,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="0: all the detail that the model invents. 1: only what the input shows, softer. Raise it "
            "when faces or text look drawn; lower it for crisper texture. For models trained with this "
            "control, such as oasis-tiny.",
        ),
    ]


def settings_of(
    scale: float,
    width: int,
    height: int,
    color: str,
    chunk_frames: int,
    tile: int,
    fidelity: float = DEFAULT_FIDELITY,
) -> UpscaleSettings:
    """What the widgets ask for. Raises ValueError, one line."""
    return UpscaleSettings(
        scale=None if width or height else scale,
        width=width or None,
        height=height or None,
        fidelity=None if fidelity == DEFAULT_FIDELITY else fidelity,
        color=ColorMethod.of(color),
        chunk_frames=chunk_frames,
        tile=tile or None,
    )

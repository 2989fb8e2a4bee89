"""The ComfyUI extension: thin adapters around ``oasis_core``, the only place that imports ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .auto_routing import OasisAutoRouting
from .calibrate_routing import OasisCalibrateRouting
from .color_correct import OasisColorCorrect
from .compare import OasisCompare
from .head_routing import OasisHeadRouting
from .load_model import OasisLoadModel
from .model_files import register_folder
from .routing_map import OasisRoutingMap
from .upscale import OasisUpscale
from .upscale_video import OasisUpscaleVideo


class OasisExtension(ComfyExtension):
    """Names the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            OasisLoadModel, OasisHeadRouting, OasisUpscale, OasisUpscaleVideo, OasisColorCorrect, OasisCompare,
            OasisCalibrateRouting, OasisRoutingMap, OasisAutoRouting,
        ]  # fmt: skip


async def comfy_entrypoint() -> OasisExtension:
    """What ComfyUI calls to get the pack."""
    register_folder()
    return OasisExtension()

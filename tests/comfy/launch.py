"""Run ComfyUI's ``main.py`` with this interpreter: ``python launch.py COMFYUI_FOLDER [ComfyUI's options]``.

torchvision from PyPI is a CUDA build; beside a CPU torch its import stops at ``operator torchvision::nms does not
exist``. Nothing that the tests run calls those operators: where they are missing they are declared, and no more.
"""

import runpy
import sys
from pathlib import Path

import torch

OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def declare_torchvision_operators() -> torch.library.Library | None:
    """Declare what a CUDA torchvision misses beside a CPU torch; None where it imports as it is."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as e:
        if "torchvision::" not in str(e):
            raise
    else:
        return None
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    library = torch.library.Library("torchvision", "DEF")
    for schema in OPERATORS.values():
        library.define(schema)
    return library


if __name__ == "__main__":
    library = declare_torchvision_operators()  # kept: the declarations live as long as it does
    main = Path(sys.argv[1]).resolve() / "main.py"
    sys.argv = [str(main), *sys.argv[2:]]
    sys.path.insert(0, str(main.parent))
    runpy.run_path(str(main), run_name="__main__")

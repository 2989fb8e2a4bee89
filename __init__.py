"""ComfyUI finds the nodes here. Imported anywhere else (pytest's collection, editors) this file does nothing."""

from importlib.util import find_spec

if __package__ and find_spec("comfy_api") is not None:
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"  # help pages: docs/NODE/LANGUAGE.md
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

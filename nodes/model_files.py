"""Where models and routing files lie: the embedded model, ``models/oasis`` and ``models/diffusion_models``."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..oasis_core.checkpoints import EMBEDDED, embedded_path

FOLDER = "oasis"
"""Our model folder, also its key in ``extra_model_paths.yaml``."""
SHARED_FOLDER = "diffusion_models"
"""ComfyUI's folder where people keep large models of every kind."""
SHARED_PREFIX = SHARED_FOLDER + "/"


def register_folder() -> None:
    """Make ``models/oasis`` known to ComfyUI; keeps the folders that ``extra_model_paths.yaml`` adds to it."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    folders, _ = folder_paths.folder_names_and_paths[FOLDER]
    # A new folder starts with an empty set, which would offer every file in it.
    folder_paths.folder_names_and_paths[FOLDER] = (folders, {".safetensors"})


def model_names() -> list[str]:
    """What a user may choose, the embedded model first."""
    shared = [n for n in folder_paths.get_filename_list(SHARED_FOLDER) if n.endswith(".safetensors")]
    return [EMBEDDED, *folder_paths.get_filename_list(FOLDER), *(SHARED_PREFIX + n for n in shared)]


def missing_model(name: str) -> str | None:
    """What to tell a user whose workflow names a model that is not here; None where it is."""
    if name in model_names():
        return None
    return (
        f"model {name!r} is not in models/{FOLDER} or models/{SHARED_FOLDER}; choose {EMBEDDED}, which is built in, or put "
        "the file there and press R"
    )


def model_path(name: str) -> Path:
    """The file behind one of ``model_names``. Raises ValueError or FileNotFoundError."""
    if name == EMBEDDED:
        return embedded_path(EMBEDDED)
    if name.startswith(SHARED_PREFIX):
        return Path(folder_paths.get_full_path_or_raise(SHARED_FOLDER, name.removeprefix(SHARED_PREFIX)))
    return Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def routing_path(name: str) -> Path:
    """A routing file in ``models/oasis``. Raises FileNotFoundError."""
    found = folder_paths.get_full_path(FOLDER, name)
    if found is None:
        raise FileNotFoundError(f"routing file {name!r} is not in models/{FOLDER}; put it there or paste its text")
    return Path(found)


def stamp(path: Path) -> str:
    """Changes when the file does, so that ComfyUI's cache notices."""
    stat = path.stat()
    return f"{stat.st_mtime_ns} {stat.st_size}"

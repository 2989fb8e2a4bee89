"""Where a VIDEO comes from and goes to, as files."""

from __future__ import annotations

import hashlib
import io as memory
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

from ..oasis_core.jobs.folder import unfinished_target
from ..oasis_core.jobs.manifest import Asked
from ..oasis_core.video_io.lossless import write_lossless

SUFFIXES = {"h264": ".mp4", "h265": ".mp4", "av1": ".mp4", "prores": ".mov", "ffv1": ".mkv"}
"""Container of each codec that the node offers."""
SPOOLED = "oasis_input_"
"""How copies of inputs that are no files begin."""


def source_file(video: Any, folder: Path) -> Path:
    """The file behind a VIDEO; one that lies in memory, or is cut out of a longer one, is copied into ``folder`` first.

    The copy's name follows from its content, so that an interrupted job finds it again. A copied clip loses nothing, but
    goes through memory whole.
    """
    window = getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()
    from_file = type(video).__name__ == "VideoFromFile"
    source = video.get_stream_source() if from_file else None
    if from_file and not any(window):
        if isinstance(source, memory.BytesIO):
            data = source.getvalue()
            return _kept(folder, hashlib.sha256(data).hexdigest(), lambda path: path.write_bytes(data) and None)
        return Path(source)
    parts = video.get_components()
    digest = hashlib.sha256(f"{tuple(parts.images.shape)} {parts.frame_rate}".encode())
    for frame in parts.images:
        digest.update(frame.contiguous().cpu().numpy().tobytes())
    sound = None
    if parts.audio is not None:
        sound = parts.audio["waveform"][0], int(parts.audio["sample_rate"])
        digest.update(sound[0].contiguous().cpu().numpy().tobytes())
    rate = Fraction(parts.frame_rate)
    return _kept(folder, digest.hexdigest(), lambda path: write_lossless(path, parts.images, rate, sound))


def drop_copy(path: Path) -> None:
    """Delete a copy that ``source_file`` made."""
    if path.name.startswith(SPOOLED):
        path.unlink(missing_ok=True)


def target_file(prefix: str, codec: str, width: int, height: int, asked: Asked) -> tuple[Path, str, bool]:
    """Where a result goes in the output folder, its subfolder there, and whether an unfinished job waits there."""
    output = folder_paths.get_output_directory()
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
    waiting = unfinished_target(Path(folder), f"{name}_", asked)
    if waiting is not None:
        return waiting, subfolder, True
    return Path(folder) / f"{name}_{counter:05}_{SUFFIXES[codec]}", subfolder, False


def workflow_notes(prompt: Any, extra: Any) -> dict[str, str]:
    """What makes a saved video open as a workflow when it is dropped on the canvas; nothing where the user forbids it."""
    if args.disable_metadata:
        return {}
    notes = {**(extra or {}), **({"prompt": prompt} if prompt is not None else {})}
    return {name: json.dumps(value) for name, value in notes.items()}


def _kept(folder: Path, digest: str, write: Any) -> Path:
    path = folder / f"{SPOOLED}{digest[:16]}.mkv"
    if not path.exists():
        part = path.with_name(f"{path.stem}.part.mkv")
        write(part)
        part.replace(path)
    return path

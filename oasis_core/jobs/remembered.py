"""Plans that worked where larger ones ran out of memory, remembered for the device and size: no job finds them out again.

A small JSON file in the user's cache folder. It may go at any time; where it cannot be read or written, work goes on without.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from pathlib import Path

import torch

from ..pipeline import Upscaler
from .shrink import with_plan

log = logging.getLogger(__name__)

FORMAT = 1
MOST = 200
"""Plans kept; the oldest go first."""
MORE_FREE = 1.1
"""Where this much more memory is free than when the plan was found, another program may have had it: try anew."""
CACHE_VARIABLE = "OASIS_CACHE"
"""Environment variable that names another cache folder."""
MIB = 1 << 20


def cache_folder() -> Path:
    """Where small things are kept that can be made again: the system's usual place, or ``$OASIS_CACHE``."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "oasis"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "oasis"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oasis"


def recall(upscaler: Upscaler, height: int, width: int) -> Upscaler | None:
    """With the plan that worked for such a job (input ``height`` x ``width``) before; None where nothing is remembered."""
    found = _read().get(_key(upscaler, height, width))
    if found is None or (found["tile"] or 0) % upscaler.model.config.pixel_multiple[0]:  # an older version's
        return None
    free, now = found["free"], free_memory_mib(upscaler)
    if free is not None and now is not None and now > free * MORE_FREE:
        return None
    return with_plan(upscaler, found["chunk_frames"], found["tile"], at_once=1)


def remember(asked: Upscaler, worked: Upscaler, height: int, width: int, free: int | None) -> None:
    """Note that ``worked`` did where ``asked`` did not, with ``free`` MiB free at the start."""
    plans = _read()
    key = _key(asked, height, width)
    plans.pop(key, None)
    plans[key] = {"chunk_frames": worked.settings.chunk_frames, "tile": worked.settings.tile, "free": free}
    kept = dict(list(plans.items())[-MOST:])
    path = _file()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"format": FORMAT, "plans": kept}, indent=1), encoding="utf-8")
        os.replace(part, path)
    except OSError as e:
        log.warning("the plan that worked could not be remembered in %s (%s)", path, e)


def free_memory_mib(upscaler: Upscaler) -> int | None:
    """Memory free on the model's device; None where that is not told (all but CUDA)."""
    device = upscaler.model.project.weight.device
    return torch.cuda.mem_get_info(device)[0] // MIB if device.type == "cuda" else None


def _key(upscaler: Upscaler, height: int, width: int) -> str:
    """Device, model, number format, output size and what is asked for: all that the need of memory hangs on."""
    weight, s, geometry = upscaler.model.project.weight, upscaler.settings, upscaler.geometry(height, width)
    device = weight.device.type
    if device == "cuda":
        facts = torch.cuda.get_device_properties(weight.device)
        device = f"{facts.name}, {facts.total_memory // MIB} MiB"
    config = hashlib.sha256(json.dumps(upscaler.model.config.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
    asked = (s.chunk_frames, s.chunk_overlap, s.tile, s.tile_overlap, s.color.value)
    return f"{device}; {config}; {weight.dtype}; {geometry.out_w}x{geometry.out_h}; {asked}"


def _file() -> Path:
    return cache_folder() / "plans.json"


def _read() -> dict[str, dict[str, int | None]]:
    """All plans; none where the file is missing or damaged."""
    path = _file()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        log.warning("%s cannot be read and is ignored (%s)", path, e)
        return {}
    plans = data.get("plans") if isinstance(data, dict) and data.get("format") == FORMAT else None
    if not isinstance(plans, dict) or not all(_makes_sense(plan) for plan in plans.values()):
        log.warning("%s is not a file of plans and is ignored", path)
        return {}
    return plans


def _makes_sense(plan: object) -> bool:
    if not isinstance(plan, dict) or set(plan) != {"chunk_frames", "tile", "free"}:
        return False
    least = {"chunk_frames": 1, "tile": 0, "free": 0}
    numbers = all(v is None or (type(v) is int and v >= least[name]) for name, v in plan.items())
    return numbers and plan["chunk_frames"] is not None

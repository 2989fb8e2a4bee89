"""Where a video's segments are made: in ComfyUI itself, or by Ray in a process of its own."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as mm

from ..oasis_core.device import FP8
from ..oasis_core.engines.orders import WorkerSettings
from ..oasis_core.engines.ray_process import RayRequest, upscale_in_process
from ..oasis_core.engines.told import RaySettings
from ..oasis_core.pipeline import Upscaler
from ..oasis_core.video_io import VideoReader, WriterSettings
from ..oasis_core.video_job import Done, JobSettings, upscale_video
from .bar import Bar
from .model_handle import DTYPES, ModelHandle

THIS, ALL, ADDRESS = "this GPU", "all GPUs", "Ray address"
ENGINES = (THIS, ALL, ADDRESS)


def upscale_by(
    engine: str, address: str, model: ModelHandle, reader: VideoReader, target: Path, upscaler: Upscaler,
    writer: WriterSettings, bar: Bar, job: JobSettings, notes: dict[str, str],
) -> Done:  # fmt: skip
    """The core's ``upscale_video``, or the same on Ray. Raises as they do, ValueError where no engine has that name."""
    if engine == THIS:
        info = reader.info
        model.load(upscaler, info.about or upscaler.settings.chunk_frames, info.height, info.width)
        return upscale_video(reader, target, upscaler, writer, bar.advance, bar.poll, job, bar.show, notes)
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; allowed: {', '.join(ENGINES)}")
    if engine == ADDRESS and not address.strip():
        raise ValueError("engine is Ray address, but ray_address is empty: give auto or HOST:PORT")
    if model.file is None:
        raise ValueError(
            f"engine {engine} loads the model from its file, and this one's decoder comes from a VAE: choose {THIS}, or use the "
            "command line with --engine ray --decoder FILE"
        )
    weight = upscaler.model.project.weight
    dtype = FP8 if model.fp8 else next(name for name, kind in DTYPES.items() if kind == weight.dtype)
    device = "cpu" if mm.get_torch_device().type == "cpu" else "auto"
    loaded = WorkerSettings(
        str(model.file), model.routing.to_json(), upscaler.settings, device, dtype, model.attention, model.compile
    )  # fmt: skip
    ray = RaySettings(address.strip() if engine == ADDRESS else None)
    mm.unload_all_models()  # the workers need the memory
    mm.soft_empty_cache()
    request = RayRequest(reader.path, target, reader.deinterlace, notes, loaded, writer, job, ray)
    return upscale_in_process(request, bar.advance, bar.poll)

"""OasisUpscaleVideo: a video in, a larger video out, in constant memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.input_impl import VideoFromFile
from comfy_api.latest import io, ui

from ..oasis_core.jobs.begin_and_end import what_is_asked
from ..oasis_core.jobs.estimate import clip_facts
from ..oasis_core.jobs.fingerprint import hash_model
from ..oasis_core.video_io import Deinterlace, VideoReader, WriterSettings
from ..oasis_core.video_io.encoders import PRESET, PRESETS
from ..oasis_core.video_job import JobSettings
from .bar import Bar
from .engines import ENGINES, THIS, upscale_by
from .model_handle import ModelHandle, OasisModelType
from .settings import setting_inputs, settings_of
from .video_files import SUFFIXES, drop_copy, source_file, target_file, workflow_notes

REFUSE = "refuse"
"""The choice that says nothing of fields."""
BY_CODEC = -1
"""The value of crf that leaves the quality to the codec."""


class OasisUpscaleVideo(io.ComfyNode):
    """VIDEO in, VIDEO out, saved in the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OasisUpscaleVideo",
            display_name="OASIS Upscale Video",
            category="OASIS",
            description="Upscales a video of any length in constant memory, frames in and frames out, and saves it with "
            "its sound in the output folder. Interrupted, it goes on where it was when the same prompt runs again.",
            inputs=[
                io.Video.Input("video", tooltip="From Load Video. It is read from its file as it is needed."),
                OasisModelType.Input("model", tooltip="From OASIS Load Model."),
                *setting_inputs(),
                io.Combo.Input(
                    "codec",
                    options=list(SUFFIXES),
                    default="h264",
                    tooltip="h264 (MP4) plays everywhere. h265 and av1 (MP4) are smaller. prores (MOV) is for editing. "
                    "ffv1 (MKV) loses nothing and is large.",
                ),
                io.Int.Input(
                    "crf",
                    default=BY_CODEC,
                    min=BY_CODEC,
                    max=63,
                    tooltip="Quality, lower is better and larger: 0 to 51 (av1: to 63). -1: the codec's own (h264: 16). "
                    "prores and ffv1 have none.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/OASIS",
                    tooltip="Folder and beginning of the name, under ComfyUI's output folder.",
                ),
                io.Combo.Input(
                    "deinterlace",
                    options=[REFUSE, *(mode.value for mode in Deinterlace)],
                    default=REFUSE,
                    optional=True,
                    tooltip="For interlaced video (old camcorders, DVDs, broadcasts), which is refused otherwise. frame: one "
                    "frame for two fields. field: one for each, twice as many frames per second. none: as it is.",
                ),
                io.Combo.Input(
                    "engine",
                    options=list(ENGINES),
                    default=THIS,
                    optional=True,
                    tooltip="What does the work. this GPU: ComfyUI itself. all GPUs: every GPU of this machine. Ray address: a "
                    "Ray cluster that runs. The last two need Ray: pip install ray. The frames are the same.",
                ),
                io.String.Input(
                    "ray_address",
                    default="auto",
                    optional=True,
                    tooltip="For engine Ray address: HOST:PORT of the cluster, or auto for one that was started on this "
                    "machine (ray start). Whoever can reach that port can run programs on its machines.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=PRESET,
                    optional=True,
                    tooltip="The encoder's effort, for h264, h265 and av1; prores and ffv1 have none. Faster than medium: a "
                    "little worse or larger, and sooner where the GPU waits for the encoder. Slower: smaller files.",
                ),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The saved video.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        video: Any,
        model: ModelHandle,
        codec: str,
        crf: int,
        filename_prefix: str,
        deinterlace: str = REFUSE,
        engine: str = THIS,
        ray_address: str = "auto",
        preset: str = PRESET,
        **settings: Any,
    ) -> io.NodeOutput:
        writer = WriterSettings(codec, None if crf == BY_CODEC else crf, preset=preset)
        model, upscaler = model.ready(settings_of(**settings))
        source = source_file(video, Path(folder_paths.get_output_directory()))
        reader = VideoReader(source, deinterlace=None if deinterlace == REFUSE else Deinterlace.of(deinterlace))
        reader.check_progressive()
        info = reader.info
        geometry, facts = (
            upscaler.geometry(info.height, info.width),
            clip_facts(upscaler, info.about, info.height, info.width),
        )
        job = JobSettings()
        asked = what_is_asked(reader, upscaler, writer, hash_model(upscaler.model), job.segment_frames)
        target, subfolder, waiting = target_file(filename_prefix, codec, geometry.out_w, geometry.out_h, asked)
        notes = workflow_notes(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        keep = JobSettings(resume=waiting)
        with Bar(info.about, facts, cls.hidden.unique_id) as bar:
            done = upscale_by(engine, ray_address, model, reader, target, upscaler, writer, bar, keep, notes)
            drop_copy(source)
            bar.end(f"{facts}\n{done.pace}" + (f"\n{done.problem}" if done.problem else ""))
        saved = ui.SavedResult(target.name, subfolder, io.FolderType.output)
        return io.NodeOutput(VideoFromFile(str(target)), ui=ui.PreviewVideo([saved]))

"""``oasis upscale``: a video in, a larger and cleaner video out, in constant memory; or a still image."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

from ..attention.backends import NAMES as ATTENTION_NAMES
from ..checkpoints import EMBEDDED
from ..color import ColorMethod
from ..jobs.estimate import Estimate, Paces, estimate
from ..pipeline import Upscaler, UpscaleSettings
from ..video_io import CODECS, Deinterlace, VideoReader, WriterSettings
from ..video_io.encoders import PRESET, PRESETS
from ..video_io.writer import as_fraction
from ..video_job import Done, JobSettings, upscale_video
from . import on_ray, still
from .batch import pairs
from .existing import check_replaced, is_done
from .job import INCOMPLETE, Job, tell
from .loading import load_upscaler
from .shown import shown


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("upscale", help="upscale a video or a still image")
    parser.add_argument(
        "input", type=Path, help="video file, still image, folder of images, or pattern such as frame_%%05d.png"
    )
    parser.add_argument(
        "output", type=Path, help="video file; of a still image .png, .jpg or .webp; with --codec png a new folder"
    )
    parser.add_argument("--scale", type=float, help="factor, 1 to 4 (default 4)")
    parser.add_argument("--size", help="exact size instead of --scale: 1920x1080, or 1920x or x1080 (aspect kept)")
    parser.add_argument("--model", default=EMBEDDED, help=f"checkpoint file, or an embedded model (default {EMBEDDED})")
    parser.add_argument(
        "--routing",
        help="head routing as JSON, instead of the checkpoint's; auto: decided for each shot (dense checkpoints)",
    )
    parser.add_argument(
        "--decoder", type=Path, help="Wan 2.1 VAE or taew2_1 file, for full-size models: they hold no decoder"
    )
    parser.add_argument(
        "--allow-untrained", action="store_true", help="run a converted model that was never trained: noise comes out"
    )
    methods = ", ".join(m.value for m in ColorMethod)
    parser.add_argument(
        "--color", default=ColorMethod.WAVELET.value, help=f"colour correction: {methods} (default wavelet)"
    )
    parser.add_argument(
        "--fidelity",
        type=float,
        help="0: most detail; 1: most faithful to the input (default 0.5, where the model can)",
    )
    parser.add_argument("--chunk", type=int, default=16, help="frames that the transformer sees at once (default 16)")
    parser.add_argument("--overlap", type=int, help="latent frames that chunks share and cross-fade (default 2)")
    parser.add_argument(
        "--tile",
        type=int,
        help="tile side in output pixels, whole tokens of the model (16 pixels); 0: whole frame (default: by size)",
    )
    parser.add_argument("--no-scene-cuts", action="store_true", help="treat the whole clip as one shot")
    parser.add_argument(
        "--codec", help=f"{', '.join(CODECS)} (default {WriterSettings.codec}; ffv1 and png are lossless)"
    )
    parser.add_argument("--crf", type=int, help="quality, lower is better (default: the codec's)")
    parser.add_argument(
        "--preset",
        help=f"the encoder's effort, of h264, h265 and av1: {PRESETS[0]} to {PRESETS[-1]} (default {PRESET})",
    )
    parser.add_argument("--depth", type=int, help="bits of a colour value: 8, 10 or 16 (default: as the input)")
    parser.add_argument(
        "--deinterlace",
        help="interlaced input: frame (one frame for two fields), field (one for each: twice the rate), "
        "none (it is progressive in truth); default: refuse it",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument(
        "--dtype", default="auto", help="auto, fp32, bf16, fp16 or fp8 (Ada, Hopper: faster, a little less exact)"
    )
    parser.add_argument(
        "--attention", default="auto", help=f"what computes the attention: {', '.join(ATTENTION_NAMES)}"
    )
    parser.add_argument("--compile", action="store_true", help="compile the model first: a minute, then faster")
    parser.add_argument("--fps", help="frames per second of an image sequence (default 24)")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="tell chunk, tile, segments, memory, disk and time, which is measured; do nothing else",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished job in OUTPUT.oasis")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists (default: refuse)")
    parser.add_argument(
        "--segment", type=int, default=120, help="frames after which finished work is kept for --resume (default 120)"
    )
    parser.add_argument(
        "--batch",
        action="store_true",
        help="INPUT is a folder of videos and still images, or a text file that lists some; OUTPUT a folder",
    )
    parser.add_argument("--engine", default="this", help="this: one device (default); ray: many GPUs (docs/ray.md)")
    parser.add_argument("--address", help="of a Ray that runs: auto, HOST:PORT, ray://HOST:PORT (default: our own)")
    parser.add_argument("--workers", type=int, help="with --engine ray (default: one for each GPU)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Upscale one file; prints one line."""
    width, height = (None, None) if args.size is None else parse_size(args.size)
    scale = 4.0 if args.scale is None and args.size is None else args.scale
    color = ColorMethod.of(args.color)
    settings = UpscaleSettings(
        scale=scale, width=width, height=height, fidelity=args.fidelity, color=color,
        chunk_frames=args.chunk, chunk_overlap=args.overlap, tile=args.tile, scene_cuts=not args.no_scene_cuts,
    )  # fmt: skip
    fps = None if args.fps is None else as_fraction(args.fps)
    one_still = not args.batch and still.asks_for_still(args.input, args.output, args.codec)
    codec = still.CODEC if one_still else args.codec or WriterSettings.codec
    writer = WriterSettings(codec, args.crf, args.depth, args.preset)
    keep = JobSettings(args.resume, args.segment)
    fields = None if args.deinterlace is None else Deinterlace.of(args.deinterlace)
    job = Job(
        args.input, args.output, settings, writer, args.model, args.routing, args.device, args.dtype, fps, fields, keep,
        args.attention, args.compile, args.decoder, args.allow_untrained, one_still,
    )  # fmt: skip
    on_ray.check(args.engine, args.address, args.workers)
    if args.batch:
        found = pairs(args.input, args.output, codec, args.resume)
        jobs = [replace(job, source=a, target=b, still=still.is_pair(a, b)) for a, b in found]
    else:
        jobs = [job]
    if args.plan:
        paces: Paces = {}
        for each in jobs:
            told = still.plan(each, paces, args.batch) if each.still else plan(each, paces)
            print(f"{each.source}\n{told}" if args.batch else told)
        return 0
    if args.resume and not args.batch and is_done(args.input, args.output):
        print(f"{args.output} is done already: give --overwrite instead of --resume to make it again")
        return 0
    check_replaced([(each.source, each.target) for each in jobs], args.overwrite, args.resume)
    if args.engine == on_ray.ENGINE and (stills := [each.source.name for each in jobs if each.still]):
        raise ValueError(
            f"{stills[0]} is a still image, which --engine ray does not take: leave it out, or list the videos"
        )
    if args.batch:
        args.output.mkdir(parents=True, exist_ok=True)
    if args.engine == on_ray.ENGINE and jobs:
        return on_ray.run(jobs, args.address, args.workers)
    return max((_run(each, args.batch) for each in jobs), default=0)


def _run(job: Job, batch: bool) -> int:
    """One job, here; in a batch an input that fails does not stop the others."""
    try:
        if job.still:
            return still.run(job)
        done = upscale(job)
    except (ValueError, OSError) as e:
        if not batch:
            raise
        print(f"oasis: {job.source.name}: {' '.join(str(e).split())}", file=sys.stderr)
        return INCOMPLETE
    return tell(job.target, done)


def parse_size(text: str) -> tuple[int | None, int | None]:
    """Width and height of ``1920x1080``, ``1920x`` or ``x1080``. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d*)x(\d*)", text)
    if found is None or not any(found.groups()):
        raise ValueError(f"size is {text!r}; give pixels such as 1920x1080, or 1920x or x1080 to keep the aspect")
    width, height = (int(side) if side else None for side in found.groups())
    return width, height


def upscale(job: Job) -> Done:
    """Do the job. Everything that can be refused is refused before the first frame is worked on.

    Raises:
        ValueError, OSError: bad input, one line.
    """
    reader, upscaler = _prepare(job)
    with shown(reader.info.about) as progress:
        return upscale_video(reader, job.target, upscaler, job.writer, progress.advance, job=job.keep)


def plan(job: Job, paces: Paces) -> Estimate:
    """What the job will need. Raises as ``upscale`` does; nothing is written. ``paces``: as for ``estimate``."""
    reader, upscaler = _prepare(job)
    return estimate(upscaler, reader.info, job.target, job.writer.codec, job.keep.segment_frames, paces)


def _prepare(job: Job) -> tuple[VideoReader, Upscaler]:
    reader = VideoReader(job.source, job.fps, job.deinterlace)
    reader.check_progressive()
    return reader, load_upscaler(job)

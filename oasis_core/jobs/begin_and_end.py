"""How a video job begins and ends, whatever makes its segments."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path

import av

from ..pipeline import Upscaler
from ..video_io import VideoReader, VideoWriter, WriterSettings
from ..video_io.color_tags import HLG, PQ
from ..video_io.writer import check_target
from .fingerprint import hash_input, hash_text
from .folder import JobFolder, job_path, open_job, read_manifest
from .manifest import Asked
from .segment_files import join_images, join_segments

log = logging.getLogger(__name__)


def output_size(reader: VideoReader, upscaler: Upscaler) -> tuple[int, int]:
    """Width and height of the result. Raises ValueError where they cannot be had."""
    geometry = upscaler.geometry(reader.info.height, reader.info.width)
    return geometry.out_w, geometry.out_h


def open_video_job(
    reader: VideoReader, target: Path, size: tuple[int, int], writer: WriterSettings, asked: Asked, resume: bool
) -> JobFolder:
    """Refuse what can be refused, then open the job's folder.

    Raises:
        ValueError, OSError: as ``upscale_video`` does before its first frame.
    """
    if reader.path.exists() and target.exists() and reader.path.samefile(target):
        raise ValueError(f"output is the input itself ({target}); give another file")
    reader.check_progressive()
    _tell_depth(reader, writer)
    before = read_manifest(job_path(target)) if resume else None
    if before is None or not before.joining:  # else the images in it are this job's
        check_target(target, *size, writer)
    folder = open_job(target, asked, resume)
    if kept := folder.manifest.finished:
        log.info("%d finished frames are kept; going on after them", kept)
    return folder


def join(
    folder: JobFolder,
    target: Path,
    size: tuple[int, int],
    reader: VideoReader,
    settings: WriterSettings,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Make the target of the finished segments, with the input's sound and tags, and remove the folder.

    Raises OSError or ValueError as ``VideoWriter`` does; the segments stay.
    """
    if not folder.manifest.joined and settings.codec == "png":
        join_images(folder, target)
    elif not folder.manifest.joined:
        join_segments(folder, VideoWriter(target, *size, reader.info, settings, reader.path, notes))
    folder.remove()


@contextmanager
def told_what_is_kept(folder: JobFolder) -> Iterator[None]:
    """Errors in the block say how to go on; a job without a finished segment leaves nothing behind."""
    try:
        yield
    except (OSError, av.FFmpegError) as e:
        raise OSError(_told(e, folder)) from e
    except ValueError as e:
        raise ValueError(_told(e, folder)) from e
    except KeyboardInterrupt as e:
        raise KeyboardInterrupt(_told(e, folder)) from None
    finally:
        if folder.path.exists() and not folder.manifest.finished:
            folder.remove()


def what_is_asked(
    reader: VideoReader, upscaler: Upscaler, writer: WriterSettings, model: str, segment_frames: int
) -> Asked:
    """Everything that the output depends on, so that a job goes on only with the same; ``model``: its ``hash_model``."""
    settings = asdict(upscaler.settings)
    del settings["restart_frames"], settings["at_once"]  # the segments' length says it; for speed alone
    parts = {"input": hash_input(reader.path), "setting": settings, "output": asdict(writer)}
    asked: Asked = {f"{part}.{name}": _plain(value) for part, values in parts.items() for name, value in values.items()}
    asked["setting.segment_frames"] = segment_frames
    asked["input.rate"] = str(reader.info.rate)
    asked["input.deinterlace"] = None if reader.deinterlace is None else reader.deinterlace.value
    asked["model"] = model
    asked["routing"] = hash_text(upscaler.routing.to_json())
    asked["encoder"] = ".".join(map(str, av.library_versions["libavcodec"]))
    return asked


def check_input(reader: VideoReader, asked: Asked) -> None:
    """Raises OSError where the input is not what it was: an end that was read may be none."""
    try:
        now = {f"input.{name}": value for name, value in hash_input(reader.path).items()}
    except (OSError, ValueError) as e:
        raise OSError(f"the input vanished while it was read ({e})") from None
    if any(asked[name] != value for name, value in now.items()):
        raise OSError(f"the input changed while it was read ({reader.path})")


def _tell_depth(reader: VideoReader, writer: WriterSettings) -> None:
    depth = writer.depth_for(reader.info.bit_depth)
    if depth == 8 and reader.info.color.transfer in (PQ, HLG):
        log.warning("HDR in 8 bits shows bands: leave out --depth, or choose a codec of 10 bits")
    if reader.info.hdr10 is not None and not reader.info.hdr10.parameters(writer.codec):
        log.info(
            "%s does not keep the input's HDR10 metadata (mastering display, light levels): h265 and av1 do",
            writer.codec,
        )
    if depth > 8 and writer.codec == "h264":
        log.info(
            "the input has %d bits, so this is 10-bit H.264: more devices play --codec h265", reader.info.bit_depth
        )


def _plain(value: object) -> str | int | float | bool | None:
    value = value.value if isinstance(value, Enum) else value
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _told(error: BaseException, folder: JobFolder) -> str:
    frames = folder.manifest.finished
    text = " ".join(str(error).split())
    if not frames:
        return text
    kept = f"{frames} finished frames are kept in {folder.path}: go on with --resume"
    return f"{text}; {kept}" if text else kept

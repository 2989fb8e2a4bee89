"""VMAF and VMAF-NEG, by libvmaf in the ffmpeg that the PyPI package ``imageio-ffmpeg`` carries.

VMAF rewards sharpening and contrast beyond the ground truth's; its "no enhancement gain" model, NEG, does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

import av
import imageio_ffmpeg
import numpy as np

MODELS = r"version=vmaf_v0.6.1\\:name=vmaf|version=vmaf_v0.6.1neg\\:name=vmaf_neg"
"""Both models in one run; the backslashes are libvmaf's, whose options are parsed twice."""
TRUTH, OUTPUT, LOG = "truth.mkv", "output.mkv", "log.json"
"""Names inside the working folder. libvmaf's options cannot hold a drive's colon safely, so ffmpeg runs inside the folder
and is given no path at all."""


class Vmaf:
    """``vmaf`` and ``vmaf_neg``, 0 to 100, higher is better: the mean over the frames, in YUV 4:2:0.

    Use in a ``with`` block: frames wait in a temporary folder, losslessly, until ``result``.

    Raises:
        OSError: ffmpeg failed; its own last line.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._writers: tuple[_Lossless, _Lossless] | None = None

    def __enter__(self) -> Vmaf:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()
        self._folder.cleanup()

    def add(self, truth: np.ndarray, output: np.ndarray) -> None:
        """One frame of each, ``(H, W, 3)`` uint8 with even sides."""
        if self._writers is None:
            folder, size = Path(self._folder.name), (truth.shape[1], truth.shape[0])
            self._writers = _Lossless(folder / TRUTH, *size), _Lossless(folder / OUTPUT, *size)
        for writer, frame in zip(self._writers, (truth, output), strict=True):
            writer.add(frame)

    def result(self) -> dict[str, float]:
        self._close()
        done = subprocess.run(command(), cwd=self._folder.name, capture_output=True, text=True, errors="replace")
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["nothing said"]
            raise OSError(f"ffmpeg could not measure VMAF ({said[-1]})")
        log = json.loads((Path(self._folder.name) / LOG).read_text(encoding="utf-8"))
        return {name: float(log["pooled_metrics"][name]["mean"]) for name in ("vmaf", "vmaf_neg")}

    def _close(self) -> None:
        for writer in self._writers or ():
            writer.close()
        self._writers = None


def why_not() -> str | None:
    """Why VMAF cannot be measured here, in part of a line; None: it can."""
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        return "imageio-ffmpeg brings no ffmpeg for this machine and there is no other"
    filters = subprocess.run([program, "-hide_banner", "-filters"], capture_output=True, text=True, errors="replace")
    return None if " libvmaf " in filters.stdout else f"{program} is built without libvmaf"


def command() -> list[str]:
    """The call of ffmpeg, for a working folder that holds both files; the output is the first input."""
    threads = min(8, os.cpu_count() or 1)
    graph = f"libvmaf=model={MODELS}:n_threads={threads}:log_fmt=json:log_path={LOG}"
    quiet = ["-nostdin", "-v", "error"]
    return [imageio_ffmpeg.get_ffmpeg_exe(), *quiet, "-i", OUTPUT, "-i", TRUTH, "-lavfi", graph, "-f", "null", "-"]


class _Lossless:
    """Frames into an FFV1 file, YUV 4:2:0, at 24 frames per second."""

    def __init__(self, path: Path, width: int, height: int) -> None:
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream("ffv1", rate=24)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"

    def add(self, frame: np.ndarray) -> None:
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()

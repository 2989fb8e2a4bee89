"""Frames in memory into a file that loses nothing: what a streamed job reads where its input is no file."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch import Tensor

LIMIT = 2**16
"""Samples of sound in one packet."""


def write_lossless(
    path: Path, frames: Iterable[Tensor], rate: Fraction, sound: tuple[Tensor, int] | None = None
) -> None:
    """Write ``path`` (.mkv): FFV1 of 8 bits a channel, sound as 32-bit floating point.

    Args:
        frames: ``(H, W, 3 or more)`` each, in [0, 1]; a fourth channel is left out.
        rate: frames per second.
        sound: waveform ``(channels, samples)`` in [-1, 1] with its sample rate, in Hz.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    try:
        with av.open(str(path), "w") as container:
            video = container.add_stream("ffv1", rate=rate, options={"level": "3"})
            assert isinstance(video, av.VideoStream)
            audio = None
            if sound is not None:
                audio = container.add_stream("pcm_f32le", rate=sound[1], layout=_layout(len(sound[0])))
                assert isinstance(audio, av.AudioStream)
            for number, frame in enumerate(frames):
                codes = frame[..., :3].float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
                if not number:
                    video.height, video.width, video.pix_fmt = *codes.shape[:2], "bgr0"
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(codes), format="rgb24").reformat(
                    format="bgr0"
                )
                picture.pts, picture.time_base = number, 1 / rate
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
            if sound is not None and audio is not None:
                _add_sound(container, audio, *sound)
    except (av.FFmpegError, OSError) as e:
        path.unlink(missing_ok=True)
        raise OSError(f"cannot write {path} ({e})") from None


def _add_sound(container: av.container.OutputContainer, stream: av.AudioStream, waveform: Tensor, rate: int) -> None:
    samples = waveform.float().clamp(-1, 1).cpu().numpy()
    for start in range(0, samples.shape[1], LIMIT):
        piece = np.ascontiguousarray(samples[:, start : start + LIMIT].T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=_layout(len(samples)))
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _layout(channels: int) -> str:
    known = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
    return known.get(channels, f"{channels}c")

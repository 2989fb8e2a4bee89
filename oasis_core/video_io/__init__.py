"""Video in and out, with PyAV: frame by frame, with time stamps, audio and colour tags."""

from .deinterlace import Deinterlace
from .encoders import CODECS, WriterSettings
from .info import VideoInfo, probe
from .reader import Frame, VideoReader
from .seeking import KnownFrame
from .writer import VideoWriter

__all__ = [
    "CODECS",
    "Deinterlace",
    "Frame",
    "KnownFrame",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "WriterSettings",
    "probe",
]

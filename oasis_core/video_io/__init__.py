"""Video in and out, with PyAV: frame by frame, with time stamps, audio and colour tags."""

from .info import VideoInfo, probe
from .reader import Frame, VideoReader
from .writer import CODECS, VideoWriter, WriterSettings

__all__ = ["CODECS", "Frame", "VideoInfo", "VideoReader", "VideoWriter", "WriterSettings", "probe"]

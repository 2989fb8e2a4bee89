"""Audio from the source into the output: packets copied as they are, or re-encoded where the container cannot hold them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

log = logging.getLogger(__name__)

FALLBACK = {".webm": "libopus"}
"""Encoder for what cannot be copied, by container; AAC elsewhere."""


class AudioTracks:
    """All audio streams of a file, brought over little by little as the video advances; ``start`` seconds become 0."""

    def __init__(self, source: Path, output: av.container.OutputContainer, start: Fraction) -> None:
        self._start = start
        self._input = av.open(str(source))
        self._output = output
        self._targets: dict[int, av.AudioStream] = {}
        self._encoded: set[int] = set()
        ending = Path(output.name).suffix.lower()
        for stream in self._input.streams.audio:
            codec = stream.codec_context.name
            if codec in output.supported_codecs:
                self._targets[stream.index] = output.add_stream_from_template(stream)
                self._targets[stream.index].metadata.update(_names(stream))
                continue
            encoder = FALLBACK.get(ending, "aac")
            log.info("%s cannot hold %s audio: it is re-encoded with %s", ending, codec, encoder)
            self._targets[stream.index] = output.add_stream(encoder, rate=48000)  # type: ignore[assignment]
            self._targets[stream.index].metadata.update(_names(stream))
            self._encoded.add(stream.index)
        self._packets = self._read()
        self._held: av.Packet | None = None

    def _read(self) -> Iterator[av.Packet]:
        try:
            yield from self._input.demux(list(self._input.streams.audio))
        except av.FFmpegError as e:  # the end of a cut-off file: what came before it is kept
            log.warning("audio stops early: %s", e)

    def copy_until(self, seconds: float | None) -> None:
        """Bring over the packets that start before ``seconds``; None: all that is left."""
        while True:
            packet = self._held or next(self._packets, None)
            self._held = None
            if packet is None:
                return
            if packet.pts is None:  # the demuxer's flush packet
                if packet.stream.index in self._encoded:
                    self._encode(packet)
                continue
            offset = round(self._start / packet.time_base)
            if seconds is not None and float((packet.pts - offset) * packet.time_base) > seconds:
                self._held = packet
                return
            packet.pts -= offset
            if packet.dts is not None:
                packet.dts -= offset
            self._bring(packet)

    def _bring(self, packet: av.Packet) -> None:
        if packet.stream.index in self._encoded:
            self._encode(packet)
            return
        packet.stream = self._targets[packet.stream.index]
        self._output.mux(packet)

    def _encode(self, packet: av.Packet) -> None:
        target = self._targets[packet.stream.index]
        try:
            frames = packet.decode()
        except av.FFmpegError as e:
            log.warning("a damaged piece of sound is left out: %s", e)
            return
        for frame in frames:
            self._output.mux(target.encode(frame))  # type: ignore[arg-type]

    def close(self) -> None:
        """Finish the encoders and let go of the source."""
        if self._input is None:
            return
        for index in self._encoded:
            try:
                self._output.mux(self._targets[index].encode(None))
            except (av.FFmpegError, ValueError) as e:
                log.warning("audio track %d could not be finished: %s", index, e)
        self._encoded.clear()
        self._input.close()


def _names(stream: av.AudioStream) -> dict[str, str]:
    """What tells a track from its neighbours."""
    return {key: value for key, value in stream.metadata.items() if key in ("language", "title")}

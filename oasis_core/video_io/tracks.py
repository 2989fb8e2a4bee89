"""What a source holds beside its pictures, into the output: sound, subtitles and chapters.

Packets are copied as they are. Sound that the container cannot hold is re-encoded, subtitles of text are rewritten in the
container's own kind; what can be neither (subtitles that are pictures, in MP4) is left out with a line in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
from av.subtitles.codeccontext import SubtitleCodecContext

log = logging.getLogger(__name__)

SOUND_FALLBACK = {".webm": "libopus"}
"""Encoder for sound that cannot be copied, by container; AAC elsewhere."""
TEXT_FALLBACK = {".mp4": "mov_text", ".mov": "mov_text", ".mkv": "subrip", ".webm": "webvtt"}
"""Encoder for subtitles of text that cannot be copied, by container."""
TEXTS = ("subrip", "srt", "mov_text", "webvtt", "ass", "ssa", "text")
"""FFmpeg's names of subtitles of text."""


class SourceTracks:
    """All sound and subtitles of a file, brought over little by little as the video advances, and its chapters.

    ``start`` seconds of the source become 0.
    """

    def __init__(self, source: Path, output: av.container.OutputContainer, start: Fraction) -> None:
        self._start = start
        self._input = av.open(str(source), container_options={"protocol_whitelist": "file"})
        self._output = output
        self._targets: dict[int, av.AudioStream | av.subtitles.stream.SubtitleStream] = {}
        self._encoded: set[int] = set()
        self._ending = Path(output.name).suffix.lower()
        for sound in self._input.streams.audio:
            self._add_sound(sound)
        for text in self._input.streams.subtitles:
            self._add_subtitles(text)
        for index, target in self._targets.items():
            target.metadata.update(_names(self._input.streams[index]))
        self._bring_chapters()
        self._packets = self._read()
        self._held: av.Packet | None = None
        self._last: dict[int, int] = {}
        """Decoding time of each sound's last copied packet, in samples."""

    def _add_sound(self, stream: av.AudioStream) -> None:
        if stream.codec_context is None:
            log.info("a track of sound of an unknown kind is left out")
            return
        codec = stream.codec_context.name
        if self._holds(stream):
            self._targets[stream.index] = self._output.add_stream_from_template(stream)
            return
        encoder = SOUND_FALLBACK.get(self._ending, "aac")
        log.info("%s cannot hold %s audio: it is re-encoded with %s", self._ending, codec, encoder)
        self._targets[stream.index] = self._output.add_stream(encoder, rate=48000)  # type: ignore[assignment]
        self._encoded.add(stream.index)

    def _add_subtitles(self, stream: av.subtitles.stream.SubtitleStream) -> None:
        codec = "unknown" if stream.codec_context is None else stream.codec_context.name
        if stream.codec_context is not None and self._holds(stream):
            self._targets[stream.index] = self._output.add_stream_from_template(stream)
            return
        encoder = TEXT_FALLBACK.get(self._ending)
        # PyAV before 17 writes no subtitles
        if codec not in TEXTS or encoder is None or not hasattr(SubtitleCodecContext, "encode_subtitle"):
            log.warning("%s cannot hold %s subtitles: they are left out", self._ending, codec)
            return
        log.info("%s cannot hold %s subtitles: they are rewritten as %s", self._ending, codec, encoder)
        stream.codec_context.open(strict=False)  # the header that the encoder needs is the decoder's
        target = self._output.add_stream(encoder)
        assert isinstance(target, av.subtitles.stream.SubtitleStream)
        target.codec_context.subtitle_header = stream.codec_context.subtitle_header
        target.codec_context.time_base = Fraction(1, 1000)
        self._targets[stream.index] = target
        self._encoded.add(stream.index)

    def _holds(self, stream: av.AudioStream | av.subtitles.stream.SubtitleStream) -> bool:
        """Whether the container takes the stream's packets as they are: it is asked, in memory, to begin a file of them.

        Its own list does not do: MOV's names FLAC, and its muxer refuses it.
        """
        try:
            with av.open(BytesIO(), "w", format=self._output.format.name) as trial:
                trial.add_stream_from_template(stream)
                trial.start_encoding()
        except (av.FFmpegError, ValueError):
            return False
        return True

    def _bring_chapters(self) -> None:
        if not hasattr(self._input, "chapters"):  # PyAV before 14.1
            log.info("this PyAV (%s) cannot copy chapters", av.__version__)
            return
        chapters = self._input.chapters()
        for chapter in chapters:
            offset = round(self._start / (chapter["time_base"] or Fraction(1, av.time_base)))
            chapter["start"], chapter["end"] = max(0, chapter["start"] - offset), max(0, chapter["end"] - offset)
        if chapters:
            self._output.set_chapters(chapters)

    def _read(self) -> Iterator[av.Packet]:
        streams = [self._input.streams[index] for index in self._targets]
        if not streams:
            return
        try:
            yield from self._input.demux(streams)
        except av.FFmpegError as e:  # the end of a cut-off file: what came before it is kept
            log.warning("sound and subtitles stop early: %s", e)

    def copy_until(self, seconds: float | None) -> None:
        """Bring over the packets that start before ``seconds``; None: all that is left."""
        while True:
            packet = self._held or next(self._packets, None)
            self._held = None
            if packet is None:
                return
            if packet.pts is None:  # the demuxer's flush packet
                if packet.stream.index in self._encoded and packet.stream.type == "audio":
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
        if packet.stream.index not in self._encoded:
            self._set_apart(packet)
            packet.stream = self._targets[packet.stream.index]
            self._output.mux(packet)
        elif packet.stream.type == "audio":
            self._encode(packet)
        else:
            self._rewrite(packet)

    def _set_apart(self, packet: av.Packet) -> None:
        """Sound's stamps in samples, none as the one before: MP4 takes no two alike, and Matroska, whose unit is a millisecond,
        has many where packets are shorter than that (PCM)."""
        stream = packet.stream
        if stream.type != "audio" or not stream.codec_context.sample_rate or packet.pts is None:
            return
        unit = Fraction(1, stream.codec_context.sample_rate)
        stamps = packet.pts, packet.pts if packet.dts is None else packet.dts
        pts, dts = (round(stamp * packet.time_base / unit) for stamp in stamps)
        later = max(0, self._last.get(stream.index, dts - 1) + 1 - dts)
        packet.duration = round((packet.duration or 0) * packet.time_base / unit)
        packet.pts, packet.dts, packet.time_base = pts + later, dts + later, unit
        self._last[stream.index] = packet.dts

    def _encode(self, packet: av.Packet) -> None:
        target = self._targets[packet.stream.index]
        try:
            frames = packet.decode()
        except av.FFmpegError as e:
            log.warning("a damaged piece of sound is left out: %s", e)
            return
        for frame in frames:
            self._output.mux(target.encode(frame))  # type: ignore[union-attr, arg-type]

    def _rewrite(self, packet: av.Packet) -> None:
        """One subtitle in the other kind, shown as long."""
        target = self._targets[packet.stream.index]
        decoder, encoder = packet.stream.codec_context, target.codec_context
        assert isinstance(decoder, SubtitleCodecContext)
        assert isinstance(encoder, SubtitleCodecContext)
        try:
            texts = decoder.decode2(packet)
            if texts is None or not texts.rects:
                return
            made = encoder.encode_subtitle(texts)
        except (av.FFmpegError, ValueError) as e:
            log.warning("a damaged subtitle is left out: %s", e)
            return
        made.pts, made.dts, made.duration, made.time_base = packet.pts, packet.pts, packet.duration, packet.time_base
        made.stream = target
        self._output.mux(made)

    def close(self) -> None:
        """Finish the encoders and let go of the source."""
        if self._input is None:
            return
        for index in self._encoded:
            if self._input.streams[index].type != "audio":
                continue
            try:
                self._output.mux(self._targets[index].encode(None))  # type: ignore[union-attr, arg-type]
            except (av.FFmpegError, ValueError) as e:
                log.warning("audio track %d could not be finished: %s", index, e)
        self._encoded.clear()
        self._input.close()


def _names(stream: av.stream.Stream) -> dict[str, str]:
    """What tells a track from its neighbours."""
    return {key: value for key, value in stream.metadata.items() if key in ("language", "title")}

"""The method, end to end, streamed (paper figure 2):

    LR frames -> upsample, pad -> unshuffle -> linear -> z_L -> DiT, one step -> z_H -> decode -> colour -> crop -> HR frames

Every shot for itself. Its chunks of frames share a few latent frames, which are cross-faded in latent space; then one
continuous decode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain, groupby, islice
from operator import itemgetter

import torch
from torch import Tensor

from .blend import TemporalCrossFade
from .decode_order import Part, Restored, decoded_each, decoded_in_order, warm_up_frames
from .frame_ends import FrameEnds
from .frame_groups import FrameGroup, by_shot, frame_groups
from .geometry import Geometry, resize
from .heap import reused
from .landing import fresh, kept, laid_out, landed
from .model import OasisModel
from .model.decoders import DecoderState
from .one_step import OneStep
from .patchify import frame_count, latent_length
from .plan import ChunkCursor, Position, Span, plan_calls, plan_tiles, warm_up_start
from .progress import Poll, Progress, Tally
from .routing.auto import AutoRouting, ShotRoutings
from .routing.spec import RoutingSpec
from .scene_cuts import SceneCutDetector
from .settings import CHUNK_OVERLAP, DEFAULT_FIDELITY, UpscaleSettings


class Upscaler:
    """A model with its routing and a job's settings. Runs where the model is, in the model's dtype."""

    def __init__(
        self,
        model: OasisModel,
        routing: RoutingSpec | AutoRouting | ShotRoutings,
        settings: UpscaleSettings,
        decodes: bool = True,
    ) -> None:
        """``routing``: one for all, or how to decide it for each shot (of a dense model; ``ShotRoutings``: and what is
        decided already). ``decodes``: False for who looks at the transformer alone, which needs no decoder (calibration).

        Raises ValueError where the routing is another model's, the model's tokens span several latent frames, it has no
        decoder yet, or it cannot be asked for that fidelity."""
        if isinstance(routing, RoutingSpec):
            routing.check_fits(model.config.depth, model.config.heads)
        if model.config.patch[0] != 1:
            raise ValueError(
                f"model patch is {model.config.patch}; streaming needs one latent frame per token (1, p, p)"
            )
        settings.check_tiles(model.config.pixel_multiple[0])
        self.model, self.settings = model, settings
        self.routing = ShotRoutings(routing) if isinstance(routing, AutoRouting) else routing
        controlled = model.config.faithful_timestep is not None
        self.fidelity = settings.fidelity if settings.fidelity is not None else DEFAULT_FIDELITY * controlled
        self._step = OneStep(model, self.routing, self.fidelity)
        self.chunk = latent_length(settings.chunk_frames, model.config.unshuffle[0])
        """Latent frames in a chunk."""
        self.ends = FrameEnds(model, settings, self.chunk)
        asked = settings.chunk_overlap
        if asked is not None and asked >= self.chunk:
            raise ValueError(
                f"chunk overlap is {asked} latent frames; a chunk of {settings.chunk_frames} frames holds {self.chunk}, "
                f"so it must be from 0 to {self.chunk - 1}"
            )
        self.chunk_overlap = min(CHUNK_OVERLAP, self.chunk - 1) if asked is None else asked
        self.remembers = decodes and model.decoder_state() is not None
        """Whether what the decoder makes of a frame hangs on the frames before it."""

    def restarting(self, frames: int) -> Upscaler:
        """The same, with a decoder that begins anew at least every ``frames`` frames and a chunk, where it has a memory."""
        if not self.remembers:
            return self
        return Upscaler(self.model, self.routing, replace(self.settings, restart_frames=frames))

    @property
    def restart_chunks(self) -> int | None:
        """Chunks after which a stream can begin; None: at the start of a shot alone."""
        if not self.remembers:
            return 1
        stride = (self.chunk - self.chunk_overlap) * self.model.config.unshuffle[0]
        return None if self.settings.restart_frames is None else -(-self.settings.restart_frames // stride)

    def latents(self, geometry: Geometry, on: str | None = None) -> int:
        """Latent frames that are upsampled and decoded at a time. ``on``: the kind of device; None: where the model is."""
        return self.ends.latents(geometry, on)

    def geometry(self, height: int, width: int) -> Geometry:
        """Sizes of this job for frames of ``height`` x ``width``. Raises ValueError where they cannot be had."""
        return self.ends.geometry(height, width)

    def upscale(
        self,
        frames: Tensor,
        on_progress: Progress | None = None,
        poll: Poll | None = None,
        show: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """A whole clip: ``(T, H, W, C)`` in [0, 1], C 3 or 4 -> ``(T, out_h, out_w, C)`` fp32 in [0, 1] on the CPU.

        A fourth channel (alpha) is resampled bicubically and kept. ``show`` is given finished frames ``(H, W, 3)`` as they
        come.

        Raises:
            ValueError: not such frames, or sizes that cannot be had.
        """
        if frames.ndim != 4 or frames.shape[-1] not in (3, 4) or not len(frames):
            raise ValueError(f"frames are {tuple(frames.shape)}; expected (T, H, W, 3 or 4) with at least one frame")
        geometry = self.geometry(*frames.shape[1:3])
        out = fresh(len(frames), geometry.out_h, geometry.out_w, frames.shape[-1])
        done = 0
        with laid_out(out, self.model.project.weight.device) as claim:
            for part in self._borrowed((f[..., :3] for f in frames), len(frames), on_progress, poll):
                claim(done + len(part))
                out[done : done + len(part), ..., :3] = part
                done += len(part)
                if show is not None:
                    show(part[-1])
        for i in range(len(frames) if frames.shape[-1] == 4 else 0):
            alpha = frames[i : i + 1, ..., 3:].clamp(0, 1)
            out[i, ..., 3:] = resize(alpha, geometry.out_h, geometry.out_w)[0]
        return out

    @torch.inference_mode()
    def stream(
        self,
        frames: Iterable[Tensor],
        total: int | None = None,
        on_progress: Progress | None = None,
        poll: Poll | None = None,
    ) -> Iterator[Tensor]:
        """Frame by frame in, finished frames out; memory does not grow with the clip's length.

        Args:
            frames: ``(H, W, 3)`` each, in [0, 1] (values a little outside are clamped), all of one size.
            total: their number where known, for ``on_progress``.

        Yields:
            ``(n, out_h, out_w, 3)`` fp32 in [0, 1] on the CPU; as many frames in all as came in.
        """
        yield from map(kept, self._borrowed(frames, total, on_progress, poll))

    @torch.inference_mode()
    def _borrowed(
        self, frames: Iterable[Tensor], total: int | None, on_progress: Progress | None, poll: Poll | None
    ) -> Iterator[Tensor]:
        """The same; what it yields may hold until the next is asked for."""
        tally = Tally(on_progress, total)
        if isinstance(self.routing, ShotRoutings):
            self.routing.forget()
        for part in landed(self._parts(frames, Position(), poll, tally)):
            yield part.frames
            tally.finished(len(part.frames))

    def first_needed(self, start: Position) -> int:
        """Number of the first frame that ``parts`` must be fed to begin at ``start``."""
        begin = start.shot if self._decides_ahead(start) else self._begin(start)
        return max(0, begin - SceneCutDetector.MEMORY) if self.settings.scene_cuts else begin

    def _begin(self, start: Position) -> int:
        """First frame that is worked on."""
        factor = self.model.config.unshuffle[0]
        memory = warm_up_frames(factor, self.remembers, self.settings.color)
        return warm_up_start(start, self.chunk, self.chunk_overlap, factor, memory)

    @torch.inference_mode()
    def parts(
        self,
        frames: Iterable[Tensor],
        start: Position,
        poll: Poll | None = None,
        tally: Tally | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[Part]:
        """The clip from ``start`` on, frame for frame what a stream of the whole clip gives there.

        Args:
            frames: the clip's frames from number ``first_needed(start)`` on, as for ``stream``.
            start: the position of a part that was restartable, under these settings or ones with larger chunks.
            tally: told of the transformer's blocks.
            finish: given a part's frames where the model is; what it makes of them, as many rows, comes in their place.
        """

        def finished(part: Part) -> Part:
            return part if finish is None else replace(part, frames=finish(part.frames))

        for part in landed(map(finished, self._parts(frames, start, poll, tally))):  # a generator would hold the frames
            yield replace(part, frames=kept(part.frames))

    def _parts(
        self, frames: Iterable[Tensor], start: Position, poll: Poll | None, tally: Tally | None
    ) -> Iterator[Part]:
        """The same, their frames where the model is."""
        with reused() if self.model.project.weight.device.type == "cpu" else nullcontext():
            factor, begin, first = self.model.config.unshuffle[0], self._begin(start), self.first_needed(start)
            if self._decides_ahead(start):
                frames = self._decide_ahead(iter(frames), start.shot - first, start.shot, poll)
            detector = SceneCutDetector() if self.settings.scene_cuts else None
            numbered = by_shot(frames, first, begin, start.shot, detector)
            for shot, members in groupby(numbered, key=itemgetter(0)):
                groups = frame_groups(map(itemgetter(1), members), factor, begins_shot=shot >= begin)
                restored = self._restored(groups, shot, poll, tally)
                at, color = max(shot, begin), self.settings.color
                if self.remembers:
                    decode = partial(self.ends.decode_run, poll=poll)
                    every, many = self.restart_chunks, self.ends.run_length
                    yield from decoded_in_order(
                        restored, decode, color, shot, at, start, poll, DecoderState, every, many
                    )
                else:
                    yield from decoded_each(restored, self.ends.decode, color, shot, at, start, poll, self.ends.at_once)

    def _restored(
        self, groups: Iterable[FrameGroup], shot: int, poll: Poll | None, tally: Tally | None
    ) -> Iterator[Restored]:
        """The groups of one shot with their finished z_H: chunks, one step each, cross-faded."""
        cursor, fade = ChunkCursor(self.chunk, self.chunk_overlap), TemporalCrossFade(self.chunk_overlap)
        waiting: list[FrameGroup] = []  # read, not yet given out
        latents: list[Tensor] = []  # z_L from position ``gone`` on
        seen = gone = 0
        for group in groups:
            if not group.ended:
                waiting.append(group)
                seen += 1
            chunks = cursor.known(seen, group.ended)
            for span in chunks:
                encoded = gone + len(latents)
                latents += self._encoded(waiting[encoded - seen :], Span(encoded, span.stop))
                z_l = torch.cat(latents[span.start - gone :], dim=2)
                last = group.ended and span is chunks[-1]
                z_h = fade.add(self._one_step(z_l, shot, poll, tally), span, last)
                done, waiting = waiting[: z_h.shape[2]], waiting[z_h.shape[2] :]
                yield done, z_h
            if chunks:
                latents, gone = latents[cursor.keep_from - gone :], cursor.keep_from

    def _encoded(self, groups: Sequence[FrameGroup], span: Span) -> list[Tensor]:
        """z_L ``(1, C, 1, h, w)`` of each of a shot's groups ``span``, with which ``groups`` begin."""
        calls = plan_calls(span, self.ends.at_once(groups[0]), self.chunk - self.chunk_overlap, self.chunk_overlap)
        some = (groups[call.start - span.start : call.stop - span.start] for call in calls)
        return [z_l for few in some for z_l in self.ends.encode(few).split(1, dim=2)]

    def _one_step(self, z_l: Tensor, shot: int, poll: Poll | None, tally: Tally | None) -> Tensor:
        """z_H of a chunk of the shot that begins with frame ``shot``; large frames in tiles."""
        config = self.model.config
        height, width = z_l.shape[3] // config.patch[1], z_l.shape[4] // config.patch[2]
        tile, overlap = self.tiling(height, width)
        tiles = plan_tiles(height, width, tile, overlap)
        worth = (z_l.shape[2] - self.chunk_overlap) * config.unshuffle[0] / (config.depth * len(tiles))

        def before_block() -> None:
            if poll is not None:
                poll()
            if tally is not None:
                tally.block(worth)

        return self._step(z_l, shot, tiles, overlap, before_block)

    def _decides_ahead(self, start: Position) -> bool:
        """Whether a stream from there begins inside a shot whose routing is still to be decided, on its first chunk."""
        return self._begin(start) > start.shot and self._step.undecided(start.shot)

    def _decide_ahead(self, frames: Iterator[Tensor], before: int, shot: int, poll: Poll | None) -> Iterator[Tensor]:
        """Decide on the first chunk of a shot that begins ``before`` frames later; gives all frames on."""
        held = list(islice(frames, before + frame_count(self.chunk, self.model.config.unshuffle[0])))
        groups = [g for g in frame_groups(held[before:], self.model.config.unshuffle[0]) if not g.ended]
        z_l = torch.cat(self._encoded(groups, Span(0, len(groups))), dim=2)
        self._one_step(z_l, shot, poll, None)
        return chain(held, frames)

    def tiling(self, height: int, width: int) -> tuple[int, int]:
        """Side and overlap of the tiles of a frame of ``height`` x ``width`` tokens, in tokens; side 0: one tile."""
        return self.settings.tiling(height, width, self.model.config.pixel_multiple[0])

"""In which order a shot's latent frames are decoded, and where a decoder with a memory begins anew."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from .color import ColorCorrector, ColorMethod
from .frame_groups import FrameGroup
from .model.decoders import DecoderState
from .plan import Position, Span
from .progress import Poll

WARM_UP = 4
"""Latent frames that a decoder with a memory sees before it begins anew inside a shot; what it makes of them is discarded.
Not measured: no trained Wan decoder was at hand (docs/full_size.md)."""

Decode = Callable[[Sequence[FrameGroup], Tensor, ColorCorrector, "DecoderState | None"], Tensor]
"""Groups and their z_H ``(1, C, t, h, w)`` -> finished frames ``(n, out_h, out_w, 3)``, where the model is."""
DecodeRun = Callable[[Sequence[FrameGroup], Tensor, ColorCorrector, DecoderState], Iterator[Tensor]]
"""The same of a decoder with a memory, for the first of the groups, then for the next ones."""
Restored = tuple[Sequence[FrameGroup], Tensor]
"""The groups that the cross-fade gives out for a chunk, and their z_H ``(1, C, t, h, w)``."""
AtOnce = Callable[[FrameGroup], int]
"""How many latent frames of groups like one are decoded at a time."""


@dataclass(frozen=True)
class Part:
    """Finished frames, in the order of the clip."""

    frames: Tensor
    """``(n, out_h, out_w, 3)`` fp32 in [0, 1], or what ``Upscaler.parts`` was told to make of that: a row for each frame."""
    position: Position
    """Place of the first one in the clip."""
    restartable: bool
    """Whether a stream can begin at ``position`` and give the same frames from there on."""


def warm_up_frames(factor: int, remembers: bool, color: ColorMethod) -> int:
    """Frames before a stream's first one that its decoder and colours must see; ``factor`` frames to a latent one."""
    return WARM_UP * factor if remembers else color.memory


def decoded_each(
    restored: Iterable[Restored], decode: Decode, color: ColorMethod, shot: int, at: int, start: Position,
    poll: Poll | None, at_once: AtOnce,
) -> Iterator[Part]:  # fmt: skip
    """Finished frames from ``start`` on of one shot by a decoder that takes every latent frame by itself.

    Args:
        restored: the shot's groups from frame ``at`` on; ``shot`` is its first frame.
        at_once: counted anew in each chunk, so that a stream may begin with any and decode the same together.
    """
    corrector = ColorCorrector(color)
    for groups, z_h in restored:
        for span in _calls(groups, at, start.frame, at_once(groups[0])):
            some = groups[span.start : span.stop]
            count = sum(group.count for group in some)
            if at + count > start.frame - color.memory:  # before, only the cross-fade warms up
                if poll is not None:
                    poll()
                frames = decode(some, z_h[:, :, span.start : span.stop], corrector, None)
                if at >= start.frame:
                    yield Part(frames, Position(at, shot), span.start == 0)
                del frames  # the next ones are made without them
            at += count


def _calls(groups: Sequence[FrameGroup], at: int, start: int, most: int) -> Iterator[Span]:
    """Pieces of up to ``most`` of the groups, the first of which begins with frame ``at``; cut at frame ``start``, too."""
    before = sum(at + frames <= start for frames in accumulate(group.count for group in groups))
    for a, b in ((0, before), (before, len(groups))):
        yield from (Span(i, min(i + most, b)) for i in range(a, b, most))


def decoded_in_order(
    restored: Iterable[Restored], decode: DecodeRun, color: ColorMethod, shot: int, at: int, start: Position,
    poll: Poll | None, new_state: Callable[[], DecoderState], every: int | None, at_once: AtOnce,
) -> Iterator[Part]:  # fmt: skip
    """The same by a decoder with a memory. With the colours' memory it begins anew every ``every`` chunks (None: never),
    warmed up on the latent frames before; where a stream begins does not matter then.

    Args:
        at_once: latent frames that the decoder is given at a time; the shot's first is asked for, too.
    """
    corrector, state = ColorCorrector(color), new_state()
    recent: deque[tuple[FrameGroup, Tensor]] = deque(maxlen=WARM_UP)
    for run in _runs(restored, shot, at, start, every, at_once):
        if run.anew and recent:
            corrector, state = ColorCorrector(color), new_state()
            _warm_up(recent, decode, corrector, state, at_once)
        if run.at >= start.frame:
            if poll is not None:
                poll()
            z_h = run.latents[0] if len(run.latents) == 1 else torch.cat(run.latents, dim=2)
            frame, restartable = run.at, run.anew
            for frames in decode(run.groups, z_h, corrector, state):
                count = len(frames)
                yield Part(frames, Position(frame, shot), restartable)
                del frames  # the next ones are made without them
                frame, restartable = frame + count, False
        recent.extend(zip(run.groups, run.latents, strict=True))


def _warm_up(
    recent: Iterable[tuple[FrameGroup, Tensor]], decode: DecodeRun, corrector: ColorCorrector, state: DecoderState,
    at_once: AtOnce,
) -> None:  # fmt: skip
    """Decode what came before as if it began a shot, for the memory alone."""
    groups, latents = map(list, zip(*recent, strict=True))
    groups[0] = groups[0].last_frame()
    while groups:
        many = at_once(groups[0])
        for _ in decode(groups[:many], torch.cat(latents[:many], dim=2), corrector, state):
            pass
        groups, latents = groups[many:], latents[many:]


@dataclass
class _Run:
    """Latent frames that are decoded in one go."""

    at: int
    """Frame that it begins with."""
    anew: bool
    """Whether the decoder begins anew there."""
    groups: list[FrameGroup]
    latents: list[Tensor]


def _runs(
    restored: Iterable[Restored], shot: int, at: int, start: Position, every: int | None, at_once: AtOnce
) -> Iterator[_Run]:
    """Runs of ``at_once`` latent frames; shorter where the decoder begins anew after them, and at the shot's end."""
    chunks, run = 0, None
    each = (
        (*pair, i == 0) for groups, z in restored for i, pair in enumerate(zip(groups, z.split(1, dim=2), strict=True))
    )
    for group, z_h, begins_chunk in each:
        anew = False
        if at >= start.frame:
            chunks = 0 if at in (start.frame, shot) else chunks + begins_chunk
            anew = begins_chunk and (chunks == 0 or (every is not None and chunks % every == 0))
        if run is not None and (anew or run.at < start.frame <= at):
            yield run
            run = None
        run = run or _Run(at, anew, [], [])
        run.groups.append(group)
        run.latents.append(z_h)
        at += group.count
        if len(run.groups) >= at_once(group):
            yield run
            run = None
    if run is not None:
        yield run

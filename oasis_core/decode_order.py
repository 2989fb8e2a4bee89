"""In which order a shot's latent frames are decoded, and where a decoder with a memory begins anew."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .color import ColorCorrector, ColorMethod
from .frame_groups import FrameGroup
from .model.decoders import DecoderState
from .plan import Position
from .progress import Poll

WARM_UP = 4
"""Latent frames that a decoder with a memory sees before it begins anew inside a shot; what it makes of them is discarded.
Not measured: no trained Wan decoder was at hand (docs/full_size.md)."""

Decode = Callable[[Sequence[FrameGroup], Tensor, ColorCorrector, "DecoderState | None"], Tensor]
"""Groups and their z_H ``(1, C, t, h, w)`` -> finished frames ``(n, out_h, out_w, 3)``, where the model is."""
Restored = tuple[FrameGroup, Tensor, bool]
"""A group, its z_H, and whether it is the first that the cross-fade gives out for its chunk."""


@dataclass(frozen=True)
class Part:
    """Finished frames, in the order of the clip."""

    frames: Tensor
    """``(n, out_h, out_w, 3)`` fp32 in [0, 1]."""
    position: Position
    """Place of the first one in the clip."""
    restartable: bool
    """Whether a stream can begin at ``position`` and give the same frames from there on."""


def warm_up_frames(factor: int, remembers: bool, color: ColorMethod) -> int:
    """Frames before a stream's first one that its decoder and colours must see; ``factor`` frames to a latent one."""
    return WARM_UP * factor if remembers else color.memory


def decoded_each(
    restored: Iterable[Restored], decode: Decode, color: ColorMethod, shot: int, at: int, start: Position,
    poll: Poll | None,
) -> Iterator[Part]:  # fmt: skip
    """Finished frames from ``start`` on of one shot by a decoder that takes every frame by itself.

    Args:
        restored: the shot's groups from frame ``at`` on; ``shot`` is its first frame.
    """
    corrector, memory = ColorCorrector(color), color.memory
    for group, z_h, begins_chunk in restored:
        if at + group.count > start.frame - memory:  # before, only the cross-fade warms up
            if poll is not None:
                poll()
            frames = decode([group], z_h, corrector, None)
            if at >= start.frame:
                yield Part(frames, Position(at, shot), begins_chunk)
        at += group.count


def decoded_in_order(
    restored: Iterable[Restored], decode: Decode, color: ColorMethod, shot: int, at: int, start: Position,
    poll: Poll | None, new_state: Callable[[], DecoderState | None], every: int | None, latents: int,
) -> Iterator[Part]:  # fmt: skip
    """The same by a decoder with a memory. With the colours' memory it begins anew every ``every`` chunks (None: never),
    warmed up on the latent frames before; where a stream begins does not matter then.

    Args:
        latents: latent frames that are decoded at a time; the shot's first is alone.
    """
    corrector, state = ColorCorrector(color), new_state()
    recent: deque[tuple[FrameGroup, Tensor]] = deque(maxlen=WARM_UP)
    for run in _runs(restored, shot, at, start, every, latents):
        if run.anew and recent:
            corrector, state = ColorCorrector(color), new_state()
            for number, (group_before, z_before) in enumerate(recent):
                before = group_before if number else group_before.last_frame()
                decode([before], z_before, corrector, state)
        if run.at >= start.frame:
            if poll is not None:
                poll()
            z_h = run.latents[0] if len(run.latents) == 1 else torch.cat(run.latents, dim=2)
            yield Part(decode(run.groups, z_h, corrector, state), Position(run.at, shot), run.anew)
        recent.extend(zip(run.groups, run.latents, strict=True))


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
    restored: Iterable[Restored], shot: int, at: int, start: Position, every: int | None, most: int
) -> Iterator[_Run]:
    """Runs of ``most`` latent frames; shorter where the decoder begins anew after them, at the shot's first, at its end."""
    chunks, run = 0, None
    for group, z_h, begins_chunk in restored:
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
        if group.first or len(run.groups) == most:
            yield run
            run = None
    if run is not None:
        yield run

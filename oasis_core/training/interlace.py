"""Interlaced video shown on progressive screens: combs where something moves, or what deinterlacers leave."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from .draw import Draw

KINDS = ("woven", "blended", "bobbed", "doubled")
"""Both fields as they are; smoothed vertically (1 2 1); one field, its missing lines interpolated, or repeated."""
KIND_SHARES = (0.5, 0.2, 0.2, 0.1)
"""Ours: combs, the most disturbing of them, as often as all that deinterlacers leave."""
MOVING = 1.0 / 255
"""Mean difference of neighbouring frames below which a clip counts as static and is left alone."""


def interlaced(x: Tensor, draw: Draw) -> Tensor:
    """Clips ``(B T, 3, H, W)`` in [0, 1], each in a way of its own; its kind, parity and field order hold for the clip."""
    kinds = draw.rng.choice(len(KINDS), draw.clips, p=KIND_SHARES)
    odd, later = (draw.rng.random(draw.clips) < 0.5 for _ in range(2))
    clips = rearrange(x, "(b t) c h w -> b t c h w", t=draw.frames)
    out = weave(clips, draw.put(odd), draw.put(later), draw.put(kinds))
    return rearrange(out, "b t c h w -> (b t) c h w")


def weave(clips: Tensor, odd: Tensor, later: Tensor, kinds: Tensor) -> Tensor:
    """``(B, T, 3, H, W)``: one field of each frame, the other of a neighbouring frame, then ``KINDS[kinds]``.

    The neighbour stands for the moment half a frame away, which training clips do not have. Static clips come back
    as they were.

    Args:
        odd: ``(B,)`` bool; the odd lines are the frame's own, else the even ones.
        later: ``(B,)`` bool; the neighbour is the next frame (for the last frame the one before), else the one before.
        kinds: ``(B,)`` indices.
    """
    frames, height = clips.shape[1], clips.shape[3]
    if frames < 2 or height < 2:
        return clips
    after = torch.cat([clips[:, 1:], clips[:, -2:-1]], 1)
    before = torch.cat([clips[:, 1:2], clips[:, :-1]], 1)
    other = torch.where(_each(later), after, before)
    own_line = (torch.arange(height, device=clips.device) % 2)[:, None] == _each(odd)
    woven = torch.where(own_line, clips, other)
    above, below = _lines_above(clips), _lines_below(clips)
    results = (
        woven,
        (2 * woven + _lines_above(woven) + _lines_below(woven)) / 4,
        torch.where(own_line, clips, (above + below) / 2),
        torch.where(own_line, clips, torch.where(_each(odd), below, above)),
    )
    out = results[0]
    for k in range(1, len(KINDS)):
        out = torch.where(_each(kinds == k), results[k], out)
    moving = (clips - other).abs().mean((1, 2, 3, 4)) > MOVING
    return torch.where(_each(moving), out, clips)


def _lines_above(clips: Tensor) -> Tensor:
    """For each line the one above; for the first, which has none, the one below."""
    return torch.cat([clips[..., 1:2, :], clips[..., :-1, :]], 3)


def _lines_below(clips: Tensor) -> Tensor:
    return torch.cat([clips[..., 1:, :], clips[..., -2:-1, :]], 3)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None, None]

"""Putting pieces back together: ramps on interior edges only, sums divided by their weights."""

from __future__ import annotations

import torch
from torch import Tensor

from .plan import Span


def ramp(length: int, left: int, right: int) -> Tensor:
    """Weights ``(length,)`` in (0, 1]: linear over the first ``left`` and last ``right`` positions, 1 between.

    Outer edges take 0 (no ramp: a ramp there would darken the border). Where the two ramps meet they multiply.

    Raises:
        ValueError: a ramp that is negative or longer than the piece.
    """
    if not (0 <= left <= length and 0 <= right <= length):
        raise ValueError(f"ramps are {left} and {right}; each must be from 0 to the piece's length {length}")
    weights = torch.ones(length, dtype=torch.float32)
    if left:
        weights[:left] *= torch.arange(1, left + 1) / (left + 1)
    if right:
        weights[length - right :] *= torch.arange(right, 0, -1) / (right + 1)
    return weights


class OverlapAdd:
    """Weighted mean of overlapping tiles of a ``(..., H, W)`` frame, summed in fp32."""

    def __init__(self, like: Tensor, height: int, width: int) -> None:
        """``like`` gives leading shape, dtype and device."""
        self.sum = torch.zeros(*like.shape[:-2], height, width, dtype=torch.float32, device=like.device)
        self.weight = torch.zeros(height, width, dtype=torch.float32, device=like.device)
        self.dtype = like.dtype

    def add(self, piece: Tensor, rows: Span, columns: Span, overlap: int) -> None:
        """Add a tile ``(..., rows.size, columns.size)``; it has ramps of ``overlap`` on the edges inside the frame.

        Raises:
            ValueError: a tile of another size.
        """
        height, width = self.weight.shape
        if tuple(piece.shape[-2:]) != (rows.size, columns.size):
            raise ValueError(f"tile is {tuple(piece.shape)}; its place is {rows.size} x {columns.size}")
        weight = torch.outer(_interior_ramp(rows, height, overlap), _interior_ramp(columns, width, overlap))
        weight = weight.to(self.weight.device)
        where = (..., slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        self.sum[where] += piece.float() * weight
        self.weight[where[1:]] += weight

    def result(self) -> Tensor:
        """The frame, in the tiles' dtype. Raises ValueError where no tile covered a position."""
        if not bool((self.weight > 0).all()):
            raise ValueError("tiles do not cover the whole frame")
        return (self.sum / self.weight).to(self.dtype)


def _interior_ramp(span: Span, length: int, overlap: int) -> Tensor:
    return ramp(span.size, overlap if span.start > 0 else 0, overlap if span.stop < length else 0)


class TemporalCrossFade:
    """Successive chunks in, finished frames out, each frame once and in order.

    Neighbouring chunks are cross-faded over the last ``overlap`` frames of the earlier one: of n shared frames, frame i
    (from 0) takes (i + 1) / (n + 1) of the later chunk. A last chunk that was moved back (so that it shares more) gives
    only what lies after the start of that fade, so that all but the last ``overlap`` frames go out at once.
    """

    def __init__(self, overlap: int) -> None:
        self.overlap = overlap
        self._tail: Tensor | None = None
        self._done = 0

    def add(self, chunk: Tensor, span: Span, last: bool) -> Tensor:
        """Frames that are now final: ``(B, C, t, h, w)``, t may be 0.

        Args:
            chunk: ``(B, C, span.size, h, w)``.
            span: its place; it starts ``overlap`` before the previous chunk's end, the last one there or earlier.
            last: no chunk follows.

        Raises:
            ValueError: a chunk that is not next.
        """
        ends = self._done + (self._tail.shape[2] if self._tail is not None else 0)
        if chunk.shape[2] != span.size or not (span.start == self._done or (last and span.start < self._done)):
            raise ValueError(f"chunk is {tuple(chunk.shape)} at {span}; the next one must start at frame {self._done}")
        if span.stop <= ends:
            raise ValueError(f"chunk {span} adds nothing: frames up to {ends} are there already")
        chunk = chunk[:, :, self._done - span.start :]
        if self._tail is not None and self.overlap:
            weight = ramp(self.overlap, self.overlap, 0).to(chunk.device)[None, None, :, None, None]
            head = chunk[:, :, : self.overlap]
            mixed = (head.float() * weight + self._tail.float() * (1 - weight)).to(chunk.dtype)
            chunk = torch.cat([mixed, chunk[:, :, self.overlap :]], dim=2)
        keep = 0 if last else self.overlap
        final = chunk[:, :, : chunk.shape[2] - keep]
        self._tail = chunk[:, :, chunk.shape[2] - keep :] if keep else None
        self._done += final.shape[2]
        return final

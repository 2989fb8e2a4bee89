"""What a node shows while it works: the bar, the latest finished frame, a line of text on the node itself."""

from __future__ import annotations

import time

import comfy.model_management as mm
from comfy.utils import ProgressBar
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..oasis_core.heap import share_heaps, trim_heap

PREVIEW_SIDE = 512
"""Pixels of the longer side of a preview, at most."""
PREVIEW_EVERY = 1.0
"""Seconds between two previews."""
TEXT_EVERY = 2.0
"""Seconds between two lines of text."""


class Bar:
    """ComfyUI's progress for one node. Every call ends the work where the user has asked for that.

    As a context it gives freed memory back to the system at the end of the work, however it ends.
    """

    poll = staticmethod(mm.throw_exception_if_processing_interrupted)

    def __init__(self, total: int | None, facts: str, node: str | None) -> None:
        """``total`` frames where known; ``facts`` stand on the node; ``node``: its id, None outside a graph."""
        share_heaps()
        self._bar = ProgressBar(total or 1)
        self._facts, self._node = facts, node
        self._began = self._texted = self._shown = time.monotonic()
        self._first: float | None = None
        """Frames that were done before the work began."""
        self._preview: tuple[str, Image.Image, int] | None = None
        self._bar.update_absolute(0)
        self._text(facts)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        trim_heap()

    def advance(self, done: float, total: int | None) -> None:
        """``Progress`` of the core."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = done, now
        if now - self._texted > TEXT_EVERY and total and done > self._first:
            left = (now - self._began) / (done - self._first) * (total - done)
            self._text(f"{self._facts}\nframe {int(done)} of {total}, about {_span(left)} left")
            self._texted = now
        preview, self._preview = self._preview, None
        if total:
            self._bar.update_absolute(done, total, preview)
        elif preview:
            self._bar.update_absolute(0, 1, preview)

    def show(self, frame: Tensor) -> None:
        """Take ``(H, W, 3)`` in [0, 1] as the preview, if it is time for one."""
        now = time.monotonic()
        if now - self._shown < PREVIEW_EVERY:
            return
        self._shown, self._preview = now, _preview(frame)

    def end(self, text: str, frame: Tensor | None = None) -> None:
        """The last line; a frame, where one is given, is the preview that stays, however short the work was."""
        if frame is not None:
            self._bar.update_absolute(self._bar.total, preview=_preview(frame))
        self._text(text)

    def _text(self, text: str) -> None:
        if self._node is not None:
            PromptServer.instance.send_progress_text(text, self._node)


def _preview(frame: Tensor) -> tuple[str, Image.Image, int]:
    step = max(1, -(-max(frame.shape[:2]) // PREVIEW_SIDE))
    small = frame[::step, ::step].clamp(0, 1).mul(255).byte().cpu().numpy()
    return "JPEG", Image.fromarray(small), PREVIEW_SIDE


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""A clip in memory in, a clip in memory out: what the ComfyUI node for images runs."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor

from ..pipeline import Poll, Upscaler
from ..progress import Progress
from .fit import device_budget, fit
from .shrink import free_memory, is_out_of_memory, shrunk, told

log = logging.getLogger(__name__)


def upscale_clip(
    upscaler: Upscaler,
    frames: Tensor,
    on_progress: Progress | None = None,
    poll: Poll | None = None,
    show: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """``Upscaler.upscale`` with the chunk and the decoder plan that fit the free memory of the model's device.

    Begun again with smaller chunks, then tiles, where the memory runs out all the same.

    Raises:
        MemoryError: not even single frames in the smallest tiles fit; one line.
    """
    count, height, width, _ = frames.shape
    budget = device_budget(upscaler.model.project.weight.device)
    fitted = fit(upscaler, count, height, width, budget)
    if fitted.settings.chunk_frames != upscaler.settings.chunk_frames:
        assert budget is not None
        log.warning(
            "%s instead of %s: all that the %.1f GiB free beside the weights allow",
            told(fitted.settings), told(upscaler.settings), budget / 2**30,
        )  # fmt: skip
    while True:
        try:
            return fitted.upscale(frames, on_progress, poll, show)
        except RuntimeError as e:
            if not is_out_of_memory(e):
                raise
            had, fitted = fitted.settings, shrunk(fitted, height, width)
        free_memory()  # out of the except block: until here the error holds the frames of the failed call
        log.warning("out of memory with %s: again with %s", told(had), told(fitted.settings))

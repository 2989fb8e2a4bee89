"""The model of a job, ready to work."""

from __future__ import annotations

from ..checkpoints import resolve
from ..pipeline import Upscaler
from ..ready import load_with_decoder, ready, routing_of
from .device import choose_device, choose_format
from .job import Job, routing_text


def load_upscaler(job: Job) -> Upscaler:
    """Raises ValueError, OSError or ModuleNotFoundError, one line."""
    device = choose_device(job.device)
    dtype, fp8 = choose_format(job.dtype, device)
    checkpoint = load_with_decoder(resolve(job.model), job.decoder, device, dtype, job.allow_untrained)
    routing = routing_of(routing_text(job.routing), checkpoint)
    return ready(checkpoint, routing, job.settings, job.attention, job.compile, fp8=fp8)

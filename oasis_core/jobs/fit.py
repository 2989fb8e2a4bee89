"""Chunk and decoder tiles for the memory that is there: full-size models only, whose decoder remembers.

A job's are chosen when it begins, and kept in its manifest: for all of its workers, and for when it goes on.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from ..memory import working_memory
from ..model.decoders import DecodePlan, TaehvDecoder, WanDecoder
from ..pipeline import Upscaler
from ..video_io import VideoInfo
from .manifest import Manifest
from .shrink import told as told_chunk
from .shrink import with_plan

log = logging.getLogger(__name__)

RESERVE = 0.9
"""Share of the free memory that a plan may take: allocators waste some, and convolutions need room to work."""
LEAST_CHUNK = 5
"""Frames under which a chunk is not cut down: two latent frames."""
HOST = torch.device("cpu")
WAN_PLANS = (
    DecodePlan(latents=2),
    DecodePlan(frames=4, latents=2),  # most of what two at a time gain, in the stages that need little memory
    DecodePlan(),
    DecodePlan(frames=2),
    DecodePlan(frames=1),
    *(DecodePlan(tile, frames=frames) for tile in (1024, 768, 512) for frames in (2, 1)),
    *(
        DecodePlan(tile, frames=frames, keep_on=HOST)
        for tile, frames in ((1024, 2), (1024, 1), (512, 2), (512, 1), (256, 1))
    ),
)
"""Best first; the last ones leave their past in the host's memory, which costs two copies of it a call."""
TINY_PLANS = (DecodePlan(), DecodePlan(frames=2))


def device_budget(device: torch.device) -> int | None:
    """Bytes that new tensors may take on a CUDA device; None on others, whose memory is not planned."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total - torch.cuda.memory_allocated(device)
    return int(min(free + cached, allowed))


def fit(upscaler: Upscaler, frames: int | None, height: int, width: int, budget: int | None) -> Upscaler:
    """The best chunk and decoder plan whose predicted need stays under ``budget`` bytes beside the weights.

    The decoder's plan is put into the decoder.

    The smallest there is where nothing fits; as it is for models whose decoder has no memory, or without a budget.

    Args:
        frames, height, width: of the input.
    """
    decoder = upscaler.model.decoder
    if budget is None or not isinstance(decoder, WanDecoder | TaehvDecoder):
        return upscaler
    chunk = upscaler.settings.chunk_frames
    while True:
        tried = with_plan(upscaler, chunk, None)
        for plan in WAN_PLANS if isinstance(decoder, WanDecoder) else TINY_PLANS:
            decoder.plan = plan
            need = working_memory(tried, frames or chunk, height, width)
            if need <= RESERVE * budget:
                return tried
        if chunk <= LEAST_CHUNK:
            log.warning(
                "about %.1f GiB are needed beside the weights and %.1f are free: choose a smaller output size or --tile",
                need / 2**30, budget / 2**30,
            )  # fmt: skip
            return tried
        chunk = max(LEAST_CHUNK, chunk // 2)


def planned(upscaler: Upscaler, manifest: Manifest, info: VideoInfo, budget: int | None) -> tuple[Upscaler, Manifest]:
    """With the plan of a job: the manifest's where it has one, else one that fits; and the manifest with it.

    The chunk of a job that has finished segments stays what it is. The decoder's plan is put into the decoder.

    Args:
        budget: as for ``fit``; of several workers the smallest one's.
    """
    upscaler = with_plan(upscaler, manifest.chunk_frames, manifest.tile)
    decoder, known = upscaler.model.decoder, manifest.decode_plan
    if not isinstance(decoder, WanDecoder | TaehvDecoder):
        return upscaler, manifest
    if known is not None:
        decoder.plan = known
        need = working_memory(upscaler, info.frames or upscaler.settings.chunk_frames, info.height, info.width)
        if budget is None or need <= RESERVE * budget:
            return upscaler, manifest
    if budget is None:
        return upscaler, manifest
    fitted = fit(upscaler, info.frames, info.height, info.width, budget)
    if fitted.settings.chunk_frames != upscaler.settings.chunk_frames and not manifest.finished:
        log.info("%s: what %.1f GiB beside the weights allow", told_chunk(fitted.settings), budget / 2**30)
        upscaler = fitted
        manifest = replace(manifest, chunk_frames=fitted.settings.chunk_frames, tile=fitted.settings.tile)
    return upscaler, replace(manifest, decoder=decoder.plan.to_text())


def told(plan: DecodePlan) -> str:
    """A decoder's plan in words."""
    tile = f"tiles of {plan.tile} pixels" if plan.tile else "whole frames"
    many = f", {plan.frames} at a time" if plan.frames else ""
    many += f", {plan.latents} latent frames a call" if plan.latents > 1 else ""
    return f"{tile}{many}{', past kept in host memory' if plan.keep_on is not None else ''}"

"""Whole frames or tiles, chunk and decoder tiles for the memory that is there.

Tiles of the transformer are not exact, since heads that look at the whole frame see the tile alone; shorter chunks change less
(docs/long_videos.md). So large frames stay whole where that fits, with shorter chunks if need be. Chunk and decoder tiles are
planned for full-size models, whose decoder remembers.

A job's plan is made when it begins, and kept in its manifest: for all of its workers, and for when it goes on.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from ..memory import decoder_traffic, working_memory
from ..model.decoders import DecodePlan, PixelDecoder, TaehvDecoder, WanDecoder
from ..model.decoders.streaming import COARSE
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
LEAST_WHOLE = 8
"""Frames under which a chunk is not cut down to keep frames whole: shorter ones differ as much as tiles do."""
HOST = torch.device("cpu")
TURN = 9
"""Latent frames, a chunk of 33 frames, that each tile takes before the next one's turn where the past waits on the host."""
IN_TURNS = tuple(
    DecodePlan(tile, frames=4, keep_on=HOST, latents=latents, turn=TURN)
    for tile in (1024, 768, 512, 384)
    for latents in (2, 1)
)
"""Those of which the one is taken that carries least between device and host."""
WAN_PLANS = (
    DecodePlan(latents=2),
    DecodePlan(frames=4, latents=2),  # most of what two at a time gain, in the stages that need little memory
    DecodePlan(),
    *(DecodePlan(tile, frames=4) for tile in (1024, 768, 512)),
    DecodePlan(frames=2),
    *(DecodePlan(tile, frames=2) for tile in (1024, 768, 512)),
    *IN_TURNS,
    DecodePlan(frames=1),
    *(DecodePlan(tile, frames=1) for tile in (1024, 768, 512)),
    *(DecodePlan(tile, frames=frames, keep_on=HOST, turn=TURN) for tile, frames in ((384, 2), (256, 1))),
    DecodePlan(256, frames=1, keep_on=HOST),
)
"""Best first, by the time that is expected (``benchmarks/decoder_traffic.py``). Where the past waits in the host's memory, two
copies of it are made a turn, or a call."""
TINY_PLANS = (DecodePlan(), DecodePlan(frames=2))


def device_budget(device: torch.device) -> int | None:
    """Bytes that new tensors may take on a CUDA device; None on others, whose memory is not planned."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    index = torch.cuda.current_device() if device.index is None else device.index  # "cuda" alone is refused
    allowed = torch.cuda.get_per_process_memory_fraction(index) * total - torch.cuda.memory_allocated(device)
    return int(min(free + cached, allowed))


def fit(
    upscaler: Upscaler, frames: int | None, height: int, width: int, budget: int | None, whole: bool = True
) -> Upscaler:
    """The best plan whose predicted need stays under ``budget`` bytes beside the weights; as it is without a budget.

    A decoder without a memory takes fewer frames at once before anything else changes.

    Where the tile is left to us: whole frames up to ``LARGEST_WHOLE``, with shorter chunks if need be. Else, of full-size
    models: chunk and decoder plan, the smallest there is where nothing fits. The decoder's plan is put into the decoder.

    Args:
        frames, height, width: of the input.
        whole: False: tiles stay what they are.
    """
    if budget is None:
        return upscaler
    size = frames, height, width
    upscaler = _fewer_at_once(upscaler, size, budget)
    geometry, cell = upscaler.geometry(height, width), upscaler.model.config.pixel_multiple
    if whole and upscaler.settings.may_be_whole(geometry.pad_h // cell[0], geometry.pad_w // cell[1], cell[0]):
        tried, need = _search(with_plan(upscaler, None, 0), size, budget, LEAST_WHOLE)
        if need <= RESERVE * budget:
            return tried
    if not isinstance(upscaler.model.decoder, WanDecoder | TaehvDecoder):
        return upscaler
    tried, need = _search(upscaler, size, budget, LEAST_CHUNK)
    if need > RESERVE * budget:
        log.warning(
            "about %.1f GiB are needed beside the weights and %.1f are free: choose a smaller output size or --tile",
            need / 2**30, budget / 2**30,
        )  # fmt: skip
    return tried


def _fewer_at_once(upscaler: Upscaler, size: tuple[int | None, int, int], budget: int) -> Upscaler:
    """With half the latent frames at once, again and again, while a decoder without a memory needs too much."""
    frames, height, width = size
    while isinstance(upscaler.model.decoder, PixelDecoder):
        at_once = upscaler.latents(upscaler.geometry(height, width), "cuda")
        need = working_memory(upscaler, frames or upscaler.settings.chunk_frames, height, width, "cuda")
        if at_once == 1 or need <= RESERVE * budget:
            break
        upscaler = with_plan(upscaler, None, None, at_once // 2)
    return upscaler


def _search(upscaler: Upscaler, size: tuple[int | None, int, int], budget: int, least: int) -> tuple[Upscaler, int]:
    """The first plan that fits, or else the last one, and its need.

    The chunk is halved down to ``least`` frames; for each the decoder's plans are tried.
    """
    decoder, chunk = upscaler.model.decoder, upscaler.settings.chunk_frames  # the model itself may wait elsewhere
    plans = WAN_PLANS if isinstance(decoder, WanDecoder) else TINY_PLANS
    frames, height, width = size
    while True:
        tried = with_plan(upscaler, chunk, None)
        for plan in plans if isinstance(decoder, WanDecoder | TaehvDecoder) else (None,):
            if plan is not None:
                decoder.plan = plan  # type: ignore[assignment]
            need = working_memory(tried, frames or chunk, height, width, "cuda")
            if need <= RESERVE * budget:
                if plan in IN_TURNS:
                    need = _least_carried(tried, size, budget)
                return tried, need
        if chunk <= least:
            return tried, need
        chunk = max(least, chunk // 2)


def _least_carried(upscaler: Upscaler, size: tuple[int | None, int, int], budget: int) -> int:
    """The need of the best of ``IN_TURNS``, which is put into the decoder; as many tiles as there is room for keep their past
    on the device."""
    decoder, (frames, height, width), found = upscaler.model.decoder, size, []
    assert isinstance(decoder, WanDecoder)
    geometry = upscaler.geometry(height, width)
    for plan in IN_TURNS:
        tiles = len(plan.spans(geometry.pad_h // COARSE)) * len(plan.spans(geometry.pad_w // COARSE))
        for resident in range(tiles):
            decoder.plan = replace(plan, resident=resident)
            need = working_memory(upscaler, frames or upscaler.settings.chunk_frames, height, width, "cuda")
            if need > RESERVE * budget:
                break
            carried = decoder_traffic(decoder.config, geometry.pad_h, geometry.pad_w, TURN, decoder.plan, 2)
            found.append((carried, need, decoder.plan))
    _, need, decoder.plan = min(found, key=lambda one: one[0])
    return need


def planned(upscaler: Upscaler, manifest: Manifest, info: VideoInfo, budget: int | None) -> tuple[Upscaler, Manifest]:
    """With the plan of a job: the manifest's where it has one, else one that fits; and the manifest with it.

    Chunk and tile of a job that has finished segments stay what they are. The decoder's plan is put into the decoder.

    Args:
        budget: as for ``fit``; of several workers the smallest one's.
    """
    begun = manifest.chunk_frames is not None or manifest.finished > 0
    upscaler = with_plan(upscaler, manifest.chunk_frames, manifest.tile)
    decoder, known = upscaler.model.decoder, manifest.decode_plan
    stateful = isinstance(decoder, WanDecoder | TaehvDecoder)
    if stateful and known is not None:
        decoder.plan = known  # type: ignore[assignment]
        need = working_memory(upscaler, info.frames or upscaler.settings.chunk_frames, info.height, info.width)
        if budget is None or need <= RESERVE * budget:
            return upscaler, manifest
    if budget is None:
        return upscaler, manifest
    fitted = fit(upscaler, info.frames, info.height, info.width, budget, whole=not begun)
    upscaler = with_plan(upscaler, None, None, fitted.settings.at_once)  # no frame hangs on it
    if fitted.settings != upscaler.settings and not manifest.finished:
        log.info("%s: what %.1f GiB beside the weights allow", told_chunk(fitted.settings), budget / 2**30)
        upscaler = fitted
        manifest = replace(manifest, chunk_frames=fitted.settings.chunk_frames, tile=fitted.settings.tile)
    if not stateful:
        return upscaler, manifest
    return upscaler, replace(manifest, decoder=decoder.plan.to_text())  # type: ignore[union-attr, operator]


def told(plan: DecodePlan) -> str:
    """A decoder's plan in words."""
    tile = f"tiles of {plan.tile} pixels" if plan.tile else "whole frames"
    many = f", {plan.frames} at a time" if plan.frames else ""
    many += f", {plan.latents} latent frames a call" if plan.latents > 1 else ""
    many += f", each {plan.turn} latent frames in turn" if plan.turn else ""
    where = ", past kept in host memory" if plan.keep_on is not None else ""
    return f"{tile}{many}{where}{f' but for {plan.resident} tiles' if plan.resident else ''}"

"""What one head looks at from one token, drawn on the frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..attention import TokenGrid
from ..patchify import replicate_first
from ..pipeline import Upscaler
from .calibrated import first_chunk, fixed_routing
from .divergence import box
from .picture import BACKGROUND, FONT, INK, LINE
from .spec import extent_of, pattern_text

PANELS = 9
"""Latent frames that are shown, the nearest in time to the token."""
PANEL_WIDTH = 360
"""Pixels of one."""
DIMMED = 0.45
"""Brightness of the frame beneath the attention."""
GAP = 6
HEAT = ((0.15, 0.05, 0.35), (0.80, 0.15, 0.30), (0.98, 0.60, 0.10), (1.0, 1.0, 0.75))
"""Colours from little to most attention."""


@dataclass(frozen=True)
class AttentionMap:
    """One query's attention."""

    weights: Tensor
    """``(t, h, w)``, sums to 1; 0 where the head does not look. fp32 on the CPU."""
    token: tuple[int, int, int]
    layer: int
    head: int
    pattern: str
    frames: Tensor
    """The chunk's last frame of each latent frame, on the model's grid: ``(t, H, W, 3)`` in [0, 1], on the CPU."""


class _FoundError(Exception):
    """The layer was reached; the rest of the forward pass is not needed."""


@torch.no_grad()
def attention_map(
    upscaler: Upscaler,
    frames: Iterable[Tensor],
    layer: int,
    head: int,
    *,
    at: float = 0.5,
    y: float = 0.5,
    x: float = 0.5,
    poll: Callable[[], None] | None = None,
) -> AttentionMap:
    """Attention of a head in the first chunk of a clip, under the upscaler's routing.

    Args:
        frames: ``(H, W, 3)`` in [0, 1].
        layer, head: from 0.
        at, y, x: the token's place in the chunk's time, height and width, each 0 to 1.

    Raises:
        ValueError: a layer, head or place that is not there, or no frames; one line.
    """
    config, routing = upscaler.model.config, fixed_routing(upscaler)
    for name, value, count in (("layer", layer, config.depth), ("head", head, config.heads)):
        if not 0 <= value < count:
            raise ValueError(f"{name} is {value}; this model has {count}: give 0 to {count - 1}")
    for name, place in (("time", at), ("y", y), ("x", x)):
        if not 0 <= place <= 1:
            raise ValueError(f"token {name} is {place}; it must be from 0 to 1 (a share of the chunk)")
    pixels = first_chunk(upscaler, frames)
    pattern = routing.layers[layer][head]
    found: list[tuple[Tensor, tuple[int, int, int]]] = []

    def observe(number: int, q: Tensor, k: Tensor, grid: TokenGrid) -> None:
        if number == layer:
            sizes = (grid.t, grid.h, grid.w)
            t, h, w = (min(s - 1, int(p * s)) for p, s in zip((at, y, x), sizes, strict=True))
            query = torch.tensor([(t * grid.h + h) * grid.w + w], device=q.device)
            scores = (k[0, :, head].float() @ q[0, query[0], head].float()) * q.shape[-1] ** -0.5
            index, seen = box(grid, extent_of(pattern, routing.window), query)
            local = scores[index[0]].masked_fill(~seen[0], float("-inf")).softmax(0)
            weights = torch.zeros_like(scores).index_put_((index[0],), local)
            found.append((weights.reshape(sizes).cpu(), (t, h, w)))
            raise _FoundError

    try:
        z = upscaler.model.encode(pixels.to(upscaler.model.project.weight.dtype))
        upscaler.model.dit(z, routing, poll, observe, upscaler.model.dit.timestep(upscaler.fidelity, z.device))
    except _FoundError:
        pass
    weights, token = found[0]
    group = config.unshuffle[0]
    shown = rearrange(replicate_first(pixels, group)[0, :, group - 1 :: group], "c t h w -> t h w c")
    return AttentionMap(weights, token, layer, head, pattern_text(pattern), ((shown + 1) / 2).float().cpu())


def attention_picture(found: AttentionMap) -> Image.Image:
    """The latent frames nearest to the token side by side, attention in colours, the token framed white.

    Brightness goes with the square root of the weight, alike in all frames; above each stands its share of the attention.
    """
    t, h, w = found.weights.shape
    first = max(0, min(found.token[0] - PANELS // 2, t - PANELS))
    numbers = range(first, min(t, first + PANELS))
    columns = min(3, len(numbers))
    scale = PANEL_WIDTH / found.frames.shape[2]
    height = round(found.frames.shape[1] * scale)
    rows = -(-len(numbers) // columns)
    size = (columns * (PANEL_WIDTH + GAP) + GAP, LINE + GAP + rows * (height + LINE + GAP))
    whole = Image.new("RGB", size, BACKGROUND)
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(FONT)
    place = ", ".join(map(str, found.token))
    draw.text((GAP, GAP - 2), f"layer {found.layer}, head {found.head}: {found.pattern}; token ({place})", INK, font)
    heat = (found.weights / found.weights.max()).sqrt()
    for i, number in enumerate(numbers):
        left, top = GAP + (i % columns) * (PANEL_WIDTH + GAP), LINE + GAP + (i // columns) * (height + LINE + GAP)
        here = " (the token's)" if number == found.token[0] else ""
        draw.text((left, top), f"frame {number}{here}: {float(found.weights[number].sum()):.1%} of it", INK, font)
        whole.paste(_panel(found.frames[number], heat[number], (height, PANEL_WIDTH)), (left, top + LINE))
        if here:
            y, x = (found.token[1] * height / h, found.token[2] * PANEL_WIDTH / w)
            corners = (left + x - 1, top + LINE + y - 1, left + x + PANEL_WIDTH / w, top + LINE + y + height / h)
            draw.rectangle(corners, outline=(255, 255, 255))
    return whole


def _panel(frame: Tensor, heat: Tensor, size: tuple[int, int]) -> Image.Image:
    """The frame dimmed and grey, under ``heat`` ``(h, w)`` in [0, 1]."""
    small = F.interpolate(frame.permute(2, 0, 1)[None], size, mode="area")[0].mean(0)
    strong = F.interpolate(heat[None, None], size, mode="nearest")[0]
    stops = torch.tensor(HEAT)
    at = strong[0] * (len(HEAT) - 1)
    low = at.long().clamp(max=len(HEAT) - 2)
    color = torch.lerp(stops[low], stops[low + 1], (at - low)[..., None])
    mixed = torch.lerp(small[..., None].expand(-1, -1, 3) * DIMMED, color, strong[0][..., None].clamp(max=0.9))
    return Image.fromarray(np.rint(mixed.clamp(0, 1).numpy() * 255).astype(np.uint8))

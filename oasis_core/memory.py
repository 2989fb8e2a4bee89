"""What a job needs on the device beside the weights, so that a host can make room for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from .attention import TokenGrid
from .attention.backends import SDPA
from .attention.problem import Problem
from .attention.sdpa import window_numbers
from .color import ColorMethod
from .model.config import OasisConfig, PixelDecoderConfig
from .model.decoders import DecodePlan, MissingDecoder, TaehvDecoder, WanDecoder
from .model.decoders.streaming import COARSE
from .model.decoders.wan_layers import PAST
from .model.decoders.winograd import Form
from .model.dit import DEVICE_TOKENS
from .model.graphs import worth_graphs
from .model.oasis import OasisModel
from .model.vae_config import TaehvConfig, WanDecoderConfig
from .patchify import latent_length
from .pipeline import Upscaler
from .routing.auto import ShotRoutings
from .routing.extent import Extent
from .routing.spec import DEFAULT_WINDOW, HeadPattern, Pattern, RoutingSpec, extent_of

TOKEN_WIDTHS = 16
"""Tensors of the model's width alive at once for each token on a CPU, measured on oasis-tiny in fp32 (5 and 33 frames)."""
PIXEL_BYTES = 72
"""For each output pixel of a frame group: six fp32 RGB images (upsampled, decoded, reference, colour correction)."""
LATENTS = 3
"""Latents of a chunk beside the transformer: z_L as it waits and as it goes in, z_H."""
COLOR_BYTES = {ColorMethod.NONE: 0, ColorMethod.ADAIN: 98, ColorMethod.WAVELET: 87, ColorMethod.LAB: 209}
"""For each output pixel of a frame while its colours are corrected, counted (``tests/test_memory.py``)."""
DECODED_BYTES = 30
"""The same while it is decoded: the input in fp32 and in the model's numbers, beside the features at half the resolution."""
SMALL, LARGE = 11 * 4 / 64 + 22 / 16, 4 / 16 + 6 * 2 / 4 + 7
"""Inputs that the Wan decoder's convolutions in time keep, before and after the cut, in channels of its ``width`` for each output
pixel."""
WAITING_BYTES = 12
"""The same of a finished frame that is on its way to the host."""
COUNTED = ("cuda", "meta")
"""Devices whose bytes are counted, tensor by tensor (``transformer_memory``); on others more lives at once, and estimates are
coarser."""


def working_memory(upscaler: Upscaler, frames: int, height: int, width: int, on: str | None = None) -> int:
    """Bytes for a clip of that size: the transformer works on one tile of a chunk, the decoder on whole frame groups.

    A stateful decoder's memory of earlier frames stays while the transformer works.

    Args:
        on: the kind of device that will do it; None: where the model is.
    """
    config = upscaler.model.config
    geometry = upscaler.geometry(height, width)
    element = upscaler.model.project.weight.element_size()
    pixels = geometry.pad_h * geometry.pad_w
    times = latent_length(min(frames, upscaler.settings.chunk_frames), config.unshuffle[0])
    rows, columns = geometry.pad_h // config.pixel_multiple[0], geometry.pad_w // config.pixel_multiple[1]
    tile, _ = upscaler.tiling(rows, columns)
    grid = TokenGrid(times, min(rows, tile or rows), min(columns, tile or columns))
    latents = min(times, upscaler.latents(geometry, on))
    images = latents * config.unshuffle[0] * pixels * PIXEL_BYTES
    gathers = gathers_windows(upscaler.model)
    folded = upscaler.model.dit.folded is not None
    transformer = transformer_memory(config, grid, element, upscaler.routing, gathers, folded)
    if isinstance(config.decoder, PixelDecoderConfig):
        width, group = config.decoder.hr_width, latents * config.unshuffle[0] * pixels
        if (on or upscaler.model.project.weight.device.type) not in COUNTED:
            tokens = grid.length * (2 * config.ffn_dim + TOKEN_WIDTHS * config.dim) * element
            return tokens + images + group * 2 * width * element
        decoded = DECODED_BYTES + 3 * width * element // 4
        drawn = group * max(decoded, COLOR_BYTES[upscaler.settings.color])
        waiting = LATENTS * times * rows * columns * config.token_numbers * element + group * WAITING_BYTES
        graphs = upscaler.model.dit.graphs is not None and worth_graphs(
            transformer, 1, upscaler.model.project.weight.device
        )
        return waiting + (transformer + drawn if graphs else max(transformer, drawn))  # graphs hold their memory
    decoder = upscaler.model.decoder
    if isinstance(decoder, MissingDecoder):
        return max(transformer, images)
    if isinstance(decoder, TaehvDecoder):
        state, work = tiny_decoder_memory(decoder.config, geometry.pad_h, geometry.pad_w, 1, decoder.plan, element)
    else:
        assert isinstance(decoder, WanDecoder)
        plan = decoder.plan
        plan = replace(plan, turn=min(plan.turn, times))
        state, work = wan_decoder_memory(decoder.config, geometry.pad_h, geometry.pad_w, latents, plan, element)
        if plan.turn:  # frames are finished after all of the turn are decoded
            decoded = 4 * plan.turn * pixels * 3 * element
            leaving = latents * config.unshuffle[0] * pixels * WAITING_BYTES
            return state + max(transformer, work + leaving, decoded + images)
    # The groups' input, in fp32 and as the decoder gets it; the frames before, on their way to the host.
    given = latents * config.unshuffle[0] * pixels * (3 * (4 + element) + WAITING_BYTES)
    return state + max(transformer, work + given, images)


def gathers_windows(model: OasisModel) -> bool:
    """Whether window heads' keys are copied where the attention was chosen to run (``sdpa.py``), not read in place."""
    attention, weight, config = model.dit.attention, model.project.weight, model.config
    device = attention.device or weight.device
    problem = Problem(TokenGrid(1, 1, 1), Extent(*DEFAULT_WINDOW), config.heads, config.head_dim, weight.dtype, device)
    return attention.supports(problem) is None and attention.chosen(problem) is SDPA


def transformer_memory(
    config: OasisConfig, grid: TokenGrid, element: int, routing: RoutingSpec | ShotRoutings, gathers: bool = True,
    folded: bool = True,
) -> int:  # fmt: skip
    """Bytes of activations of one step on ``grid``, in numbers of ``element`` bytes, off the CPU: the largest of three moments.

    Before the attention: the residual stream, q, k, v for every token, and for ``DEVICE_TOKENS`` at a time q and k in
    fp32, twice (not folded: q, k, v once more, both normed, one turned, and five fp32 tensors that RoPE needs). In it: the
    same four, the output of each kind of head and of all, the window's copies. After it: the stream, the output, and the
    feed-forward layer in slices (not folded: before and after GELU). The tables of RoPE are always there.

    Args:
        gathers: windows are gathered (``sdpa.window_attention``), not read in place. folded: the weights are
            (``model.fold``).
    """
    every = grid.length * config.dim
    few = -(-grid.length // -(-grid.length // DEVICE_TOKENS))  # slices are of equal size
    tables = 2 * grid.length * config.head_dim * 4
    rope = 5 * 4 // element  # in numbers of ``element`` bytes
    turned = 4 * 4 // element  # q and k in fp32, before and after their norms
    before = (
        4 * every + few * turned * config.dim
        if folded
        else (4 if few < grid.length else 1) * every + few * (6 + rope) * config.dim
    )
    after = 2 * every + few * (config.dim + config.ffn_dim if folded else 3 * config.dim + 2 * config.ffn_dim)
    if isinstance(routing, RoutingSpec):
        layers, window = set(routing.layers), routing.window
    else:  # what will be decided is not known: the most that it can be
        layers, window = {(HeadPattern.WINDOW,) * config.heads}, routing.auto.window
    attention = max(_attended(config, grid, layer, window, gathers) for layer in layers)
    return max(before, 4 * every + attention, after) * element + tables


def _attended(
    config: OasisConfig, grid: TokenGrid, layer: tuple[Pattern, ...], window: tuple[int, int, int], gathers: bool
) -> int:
    """Numbers that a layer's attention holds beside q, k and v: the output of all heads, and what one kind of head needs
    before it is there: its own output, for windows that of a band of rows after the copies that it was made from."""
    head = grid.length * config.head_dim
    kinds = Counter(extent_of(p, window) for p in layer)
    most = 0 if len(kinds) == 1 else head * max(kinds.values())
    for extent, heads in kinds.items():
        if gathers and (extent.h is not None or extent.w is not None):
            sides = zip(extent.axes, (grid.t, grid.h, grid.w), strict=True)
            t, h, w = (2 * side - 1 if e is None else e for e, side in sides)
            most = max(most, window_numbers(grid, heads, config.head_dim, (t, h, w)))
    return head * len(layer) + most


def tiny_decoder_memory(
    config: TaehvConfig, height: int, width: int, latents: int, plan: DecodePlan, element: int
) -> tuple[int, int]:
    """``wan_decoder_memory`` for the tiny decoder."""
    pixel = height * width * config.width * element  # one frame at full resolution
    many = 4 * latents
    at_once = min(plan.frames or many, many)
    state = 3 * pixel * (4 / 64 + 2 / 16 + 1 / 4)
    half = 2 * latents * 6 / 4  # at half the resolution: input, its past beside it, hidden layers
    return int(state), int(pixel * max(half, 2 * latents / 4 + 3 * at_once) + many * height * width * 3 * element)


def wan_decoder_memory(
    config: WanDecoderConfig, height: int, width: int, latents: int, plan: DecodePlan, element: int
) -> tuple[int, int]:
    """Bytes of the Wan decoder's state between calls, and of a call beside it.

    Args:
        height, width: of the output, in pixels. latents: latent frames in a call.
        element: bytes of a number.
    """
    pixel = height * width * config.width * element  # one frame at full resolution
    keeps = plan.keep_on is None
    areas = _areas(height, width, plan)
    stays = len(areas) if keeps else min(plan.resident, len(areas))
    state = PAST * pixel * (SMALL * keeps + LARGE * sum(areas[:stays]))
    area = max(areas)
    many = 4 * latents
    at_once = min(plan.frames or many, many)
    # In a large stage, where convolutions write over their inputs: the upsampled frames before and after they are in place, and
    # the first convolution's input, as large as products in time need. Where there is no Triton: the residual stream, the first
    # convolution's output, the second one's input with its past, a frame between norm and SiLU.
    inputs = {4: 6 / 4, 2: 4 / 2}.get(Form.of(at_once, True).group, 1 + PAST / at_once)
    last = area * (max((2 + inputs) * at_once, 3 * at_once + PAST + 1) + PAST * LARGE * (stays < len(areas)))
    # In the second stage, where frames are half as many, the same.
    inputs = {4: 6 / 4, 2: 4 / 2}.get(Form.of(2 * latents, True).group, 1 + PAST / (2 * latents))
    half = 2 * latents * 4 / COARSE**2  # those frames at the cut
    second = (2 + inputs) * half + PAST * SMALL * (not keeps)
    # What waits at the cut for the tiles to come, and what one tile makes of a call's: all of its frames.
    waits = (plan.turn or latents) / 2 * (len(areas) > 1) * (keeps or not plan.turn)
    features = waits + area * 2 * half
    out = 4 * (plan.turn or latents) * 3 / config.width
    work = max(second + waits * (plan.turn > 0), features + last + out)
    return int(state), int(pixel * work) + _derived(config, latents, at_once, element)


def decoder_traffic(
    config: WanDecoderConfig, height: int, width: int, latents: int, plan: DecodePlan, element: int
) -> int:
    """Bytes that cross between device and host, either way, for ``latents`` latent frames inside a stream."""
    if plan.keep_on is None:
        return 0
    pixel, areas = height * width * config.width * element, _areas(height, width, plan)
    turns = -(-latents // (plan.turn or plan.latents))
    crosses = turns * PAST * (SMALL + LARGE * sum(areas[plan.resident :]))
    waits = latents / 2 * sum(areas) * (plan.turn > 0)
    return int(2 * pixel * (crosses + waits))


def _areas(height: int, width: int, plan: DecodePlan) -> list[float]:
    """What each tile sees, as a share of the frame."""
    rows, columns = (_with_halos(size, plan) for size in (height, width))
    return [row * column / (height * width) for row in rows for column in columns]


def _derived(config: WanDecoderConfig, latents: int, at_once: int, element: int) -> int:
    """Bytes of the kernels that a GPU derives from the weights, in 16 bits: for first frames, and for products in time."""
    if element > 2:
        return 0
    first, second, large = 10 * 16 + 8, 8 + 5 * 16, 6 * 4 + 6  # convolutions of each stage, in widths squared
    calls = ((first, latents), (second, 2 * latents), (large, at_once))
    taps = sum(n * (1 + {4: 6, 2: 4}.get(Form.of(frames, True).group, 3)) for n, frames in calls)
    return taps * 9 * config.width**2 * element


def _with_halos(size: int, plan: DecodePlan) -> list[int]:
    """Pixels of a side that each tile sees."""
    spans = [span.times(COARSE) for span in plan.spans(size // COARSE)]
    return [min(span.stop + plan.halo, size) - max(0, span.start - plan.halo) for span in spans]

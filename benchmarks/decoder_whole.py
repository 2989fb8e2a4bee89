"""Parts of ``decoder_speed.py``: the whole Wan decoder against fp32 and against what it was, and the pipeline around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from decoder_table import FIGURES, ON, note
from full_size import build
from random_models import FULL, fill
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from oasis_core.attention.backends import backend_for
from oasis_core.color import ColorMethod, correct_color
from oasis_core.geometry import upsample_and_pad
from oasis_core.jobs.fit import told
from oasis_core.model.decoders import DecodePlan, DecoderState, WanDecoder, wan
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import RoutingSpec


@contextmanager
def before() -> Iterator[None]:
    """The decoder as it was: norm and SiLU as a kernel, 3D convolutions, biases and sums by torch."""
    now = wan.streams
    wan.streams = lambda x: False
    try:
        yield
    finally:
        wan.streams = now


def decoder_of(dtype: torch.dtype, seed: int = 0) -> WanDecoder:
    torch.manual_seed(seed)
    with torch.device("meta"):
        decoder = WanDecoder(WanDecoderConfig())
    fill(decoder, ON.device, torch.float32)
    for p in decoder.parameters():
        p.data = p.data.bfloat16().to(dtype)  # the same numbers in every type
    return decoder


def layout(decoder: WanDecoder) -> WanDecoder:
    for p in decoder.parameters():
        if p.ndim in (4, 5):
            p.data = p.data.contiguous(memory_format=torch.channels_last if p.ndim == 4 else torch.channels_last_3d)
    return decoder


def decode(decoder: nn.Module, z: Tensor, at_once: int) -> Tensor:
    """In pieces: the first latent frame, then ``at_once`` at a time."""
    state = DecoderState()
    return torch.cat([decoder(p, state) for p in (z[:, :, :1], *z[:, :, 1:].split(at_once, dim=2))], dim=2)


def errors() -> None:
    """Against fp32 without TF32, of each way in bf16 and fp16."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    z = torch.randn(1, 16, 5, 24, 40, device=ON.device)
    with before():
        truth = decode(decoder_of(torch.float32), z, 2)
    torch.backends.cudnn.allow_tf32 = True
    for dtype in (torch.bfloat16, torch.float16):
        decoder = layout(decoder_of(dtype))
        for folded in (False, True):
            if folded:
                decoder.fold()
            for name, at_once in (("before", 1), ("now", 1), ("now", 2)):
                if name == "before":
                    with before():
                        got = decode(decoder, z.to(dtype), at_once)
                else:
                    got = decode(decoder, z.to(dtype), at_once)
                e = (got.float() - truth).abs() / truth.std()
                text = f"max {e.max():.4f}, root mean square {e.square().mean().sqrt():.5f} of the deviation"
                key = f"error, {str(dtype)[6:]}{', folded' * folded}, {name}, {at_once} a call"
                note(key, [float(e.max()), float(e.square().mean().sqrt())], text)


def latent(frames: int = 9, height: int = 90, width: int = 160) -> Tensor:
    return torch.randn(1, 16, frames, height, width, device=ON.device, dtype=ON.dtype)


def decoding() -> None:
    decoder, z = layout(decoder_of(ON.dtype)), latent()
    decoder.fold()

    def timed(at_once: int) -> dict[str, float | None]:
        def work() -> None:
            state = DecoderState()
            for piece in (z[:, :, :1], *z[:, :, 1:].split(at_once, dim=2)):
                decoder(piece, state)

        return ON.measure(work, 3)

    with before():
        for n in (1, 2):
            got = timed(n)
            note(f"decode before, {n} a call", got, f"{got['ms']:.1f} ms, peak {got['peak_gib']:.2f} GiB")
    for n in (1, 2, 4):
        got = timed(n)
        note(f"decode now, {n} a call", got, f"{got['ms']:.1f} ms, peak {got['peak_gib']:.2f} GiB")


def profiled() -> None:
    """The kernels of one decode, those of most time first."""
    decoder, z = layout(decoder_of(ON.dtype)), latent()
    decoder.fold()
    for n in (1, 2):
        decode(decoder, z, n)
        with profile(activities=[ProfilerActivity.CUDA]) as run:
            decode(decoder, z, n)
            torch.cuda.synchronize()
        events = sorted(run.key_averages(), key=lambda e: -e.self_device_time_total)
        total = sum(e.self_device_time_total for e in events)
        print(f"  profile, {n} a call: {total / 1000:.1f} ms of kernels")
        lines = [(round(e.self_device_time_total / 1000, 2), e.count, e.key) for e in events[:25]]
        for ms, count, key in lines[:18]:
            print(f"    {ms:8.2f} ms {count:5d} x {key[:150]}")
        FIGURES[f"profile, {n} a call"] = lines


def pipeline() -> None:
    """Whole, from uint8 frames in pageable memory to fp32 ones there, and its stages alone."""
    torch.manual_seed(0)
    model = build(FULL, ON)
    model.dit.attention = backend_for("auto", ON.device)
    routing = RoutingSpec.by_ratio(FULL.depth, FULL.heads, 1 / 3, 1 / 3)
    model.dit.fold(routing)
    model.decoder.fold()  # type: ignore[operator]
    clip = torch.randint(0, 256, (33, 180, 320, 3), dtype=torch.uint8)
    settings = UpscaleSettings(scale=4, chunk_frames=33, tile=0, scene_cuts=False)

    def whole(settings: UpscaleSettings) -> dict[str, float | None]:
        upscaler = Upscaler(model, routing, settings)
        out = upscaler.upscale(clip.float() / 255)
        assert out.shape == (33, 720, 1280, 3)
        assert bool(torch.isfinite(out).all())
        return ON.measure(lambda: upscaler.upscale(clip.float() / 255), 5)

    with before():
        got = whole(settings)
        note("pipeline, decoder as before", got, f"{got['ms']:.1f} ms")
    for plan in (DecodePlan(), DecodePlan(frames=4, latents=2), DecodePlan(latents=2)):
        model.decoder.plan = plan  # type: ignore[assignment]
        got = whole(settings)
        note(f"pipeline, {told(plan)}", got, f"{got['ms']:.1f} ms, peak {got['peak_gib']:.2f} GiB")
    for name, chosen in (
        ("", settings), (", scene cuts looked for", replace(settings, scene_cuts=True)),
        (", no colour correction", replace(settings, color=ColorMethod.NONE)),
    ):  # fmt: skip
        got = whole(chosen)
        note(f"pipeline{name}", got, f"{got['ms']:.1f} ms, peak {got['peak_gib']:.2f} GiB")
    frames = clip.float() / 255
    upscaler = Upscaler(model, routing, settings)
    geometry = upscaler.geometry(180, 320)
    up = upsample_and_pad(frames.cuda(), geometry)
    z = model.encode(up.to(ON.dtype))
    state = DecoderState()
    images = up[0].movedim(0, -1)[:4]
    host = torch.empty(4, 720, 1280, 3)
    pinned = host.pin_memory()
    parts: dict[str, Callable[[], object]] = {
        "uint8 to float on the CPU": lambda: clip.float() / 255,
        "transformer": lambda: model.restore(z, routing),
        "upsampling of 4 frames": lambda: upsample_and_pad(frames[:4].cuda(), geometry),
        "encoding of 4 frames": lambda: model.encode(up[:, :, :4].to(ON.dtype), first=False),
        "decoding of 1 latent frame": lambda: model.decoder(z[:, :, :1] if state.whole.first else z[:, :, 1:2], state),
        "colour of 4 frames, wavelet": lambda: correct_color(images, images, ColorMethod.WAVELET),
        "4 frames to pageable memory": lambda: images.cpu(),
        "4 frames to pinned memory": lambda: pinned.copy_(images),
        "4 frames, pinned to new pageable": lambda: pinned.clone(),
        "33 frames of new host memory, touched": lambda: torch.empty(33, 720, 1280, 3).fill_(0),
    }
    for name, work in parts.items():
        got = ON.measure(work, 5)
        note(f"stage: {name}", got, f"{got['ms']:.2f} ms")
    with profile(activities=[ProfilerActivity.CUDA]) as run:
        upscaler.upscale(frames)
        torch.cuda.synchronize()
    events = sorted(run.key_averages(), key=lambda e: -e.self_device_time_total)
    lines = [(round(e.self_device_time_total / 1000, 2), e.count, e.key) for e in events[:40]]
    note(
        "pipeline, kernels and copies",
        lines,
        f"{sum(e.self_device_time_total for e in events) / 1000:.1f} ms of device time",
    )
    for ms, count, key in lines[:25]:
        print(f"    {ms:8.2f} ms {count:5d} x {key[:150]}")

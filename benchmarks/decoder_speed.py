"""The Wan decoder on a CUDA device: errors, times, a profile, candidates for its convolutions, and the pipeline around it.

    python benchmarks/decoder_speed.py                          # 33 frames of 720x1280, bf16, random weights: about two minutes
    python benchmarks/decoder_speed.py --parts errors,decode    # some of it

Writes JSON (``--json``) and prints a table last. Every part stands alone: what fails is said, and the next one runs.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path

import clock
import torch
import torch.nn.functional as F
from full_size import Device, build
from random_models import FULL, fill
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from oasis_core.attention.backends import backend_for
from oasis_core.color import ColorMethod, correct_color
from oasis_core.geometry import upsample_and_pad
from oasis_core.jobs.fit import told
from oasis_core.model.decoders import DecodePlan, DecoderState, WanDecoder, wan
from oasis_core.model.decoders.winograd import Form, kernels
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import RoutingSpec

ON = Device(torch.device("cuda"), torch.bfloat16)
ROWS: list[tuple[str, str]] = []
FIGURES: dict[str, object] = {}


def note(name: str, value: object, text: str) -> None:
    """One line of the table and the JSON."""
    ROWS.append((name, text))
    FIGURES[name] = value
    print(f"  {name}: {text}", flush=True)


@contextmanager
def before() -> Iterator[None]:
    """The decoder as it was: norm and SiLU as a kernel, 3D convolutions, biases and sums by torch."""
    now = wan.streams
    wan.streams = lambda x: False
    try:
        yield
    finally:
        wan.streams = now


def milliseconds(work: Callable[[], object], rounds: int = 5) -> float:
    return clock.milliseconds(work, ON.device, rounds)


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


def conv_case(channels: int, height: int, width: int, cout: int | None = None) -> None:
    """One convolution in time of four output frames, every way: ms, and TFLOP/s as if done the plain way."""
    import conv_candidates as cc

    cout = cout or channels
    flop = 2 * 27 * channels * cout * 4 * height * width
    last2, last3 = torch.channels_last, torch.channels_last_3d
    x = torch.randn(1, channels, 6, height, width, device=ON.device, dtype=torch.float16).contiguous(
        memory_format=last3
    )
    w = (
        (torch.randn(cout, channels, 3, 3, 3, device=ON.device) / (27 * channels) ** 0.5)
        .half()
        .contiguous(memory_format=last3)
    )
    frames = [x[:, :, i].contiguous(memory_format=last2) for i in range(6)]
    bias = torch.zeros(cout, device=ON.device, dtype=torch.float16)
    fours, pairs = (kernels(w, form, torch.float16) for form in (Form.FOURS, Form.PAIRS))
    taps = [w[:, :, i].contiguous(memory_format=last2) for i in range(3)]
    four = torch.cat(frames[:4]).contiguous(memory_format=last2)
    wide = [F.pad(k, (0, 0) * 3 + (0, -cout % 128)).contiguous(memory_format=last2) for k in fours]
    xb, wb, bb = x.bfloat16(), w.bfloat16(), bias.bfloat16()

    def product(weights: list[Tensor]) -> None:
        for f, k in zip(frames, weights, strict=False):
            F.conv2d(f, k, padding=1)

    def twice(weights: list[Tensor]) -> None:
        product(weights)
        product(weights)

    ways: dict[str, Callable[[], object]] = {
        "3D bf16": lambda: F.conv3d(xb, wb, padding=(0, 1, 1)),
        "3D bf16, bias": lambda: F.conv3d(xb, wb, bb, padding=(0, 1, 1)),
        "3D fp16": lambda: F.conv3d(x, w, padding=(0, 1, 1)),
        "three 2D, unsummed": lambda: [F.conv2d(four, k, padding=1) for k in taps],
        "F(2,3) fp16": lambda: twice(pairs),
        "F(4,3) fp16": lambda: product(fours),
        "F(4,3) fp16, to 128": lambda: product(wide),
    }
    if cout % 8:
        ways = {k: v for k, v in ways.items() if "3D" in k}
        padded = [F.pad(k, (0, 0) * 3 + (0, 5)).contiguous(memory_format=last2) for k in fours]
        w8 = F.pad(w, (0, 0) * 4 + (0, 5)).contiguous(memory_format=last3)
        ways |= {"F(4,3) to 8": lambda: product(padded), "3D to 8": lambda: F.conv3d(x, w8, padding=(0, 1, 1))}
    for name, work in ways.items():
        attempt(f"conv {channels}->{cout}: {name}", work, flop)
    if cout % 8:
        return
    plain = [f[0].permute(1, 2, 0).contiguous() for f in frames]
    mats = [cc.matrix(k) for k in fours]
    truth = F.conv2d(frames[0].float(), fours[0].float(), padding=1)[0].permute(1, 2, 0)
    deeper = [(a, b, 64, d, e, 3) for a, b, _, d, e, _ in cc.TMA[:3]] if channels % 64 == 0 else []
    tma = cc.TMA if channels == 96 else deeper  # each takes seconds to compile
    candidates = [
        *(("tma", cc.conv_tma, c) for c in tma),
        *(("pointer", cc.conv_pointer, c) for c in cc.POINTER[: 3 if channels == 96 else 1]),
        *(("64 and 32", cc.conv_split, c) for c in cc.SPLIT if cout == 96),
    ]
    for name, run, config in candidates:

        def work(run: Callable[..., Tensor] = run, config: tuple[int, ...] = config) -> None:
            for f, m in zip(plain, mats, strict=True):
                run(f, m, config)

        def wrong(run: Callable[..., Tensor] = run, config: tuple[int, ...] = config) -> float:
            return float((run(plain[0], mats[0], config).float() - truth).abs().max() / truth.std())

        attempt(f"conv {channels}->{cout}: F(4,3) Triton {name} {config}", work, flop, wrong)


def attempt(name: str, work: Callable[[], object], flop: float, wrong: Callable[[], float] | None = None) -> None:
    """Time it, or say why not."""
    try:
        error = "" if wrong is None else f", error {wrong():.4f}"
        ms = milliseconds(work)
        note(name, ms, f"{ms:.3f} ms, {flop / ms / 1e9:.0f} TFLOP/s{error}")
    except Exception as e:  # a candidate that does not build is a result
        note(
            name, None, f"failed: {type(e).__name__} {str(e).strip().splitlines()[-1][:120] if str(e).strip() else ''}"
        )


def convolutions() -> None:
    conv_case(96, 720, 1280)
    conv_case(192, 360, 640)
    conv_case(384, 180, 320)
    conv_case(96, 720, 1280, 3)
    for channels, height, width in ((192, 360, 640), (384, 180, 320)):
        for dtype in (torch.bfloat16, torch.float16):
            x = torch.randn(4, channels, height, width, device=ON.device, dtype=dtype).contiguous(
                memory_format=torch.channels_last
            )
            w = torch.randn(2 * channels, channels, 2, 2, device=ON.device, dtype=dtype).contiguous(
                memory_format=torch.channels_last
            )
            flop = 2 * 4 * channels * 2 * channels * 4 * height * width
            attempt(f"upsampling's 2x2, {channels}, {str(dtype)[6:]}", lambda x=x, w=w: F.conv2d(x, w, padding=1), flop)


def stream_kernel() -> None:
    """The kernel between convolutions, four frames: GB/s of what it must move."""
    from oasis_core.model.decoders import triton_stream as ts

    for c, h, w in ((96, 720, 1280), (192, 360, 640), (384, 180, 320)):
        half = {"device": ON.device, "dtype": torch.float16}
        x = torch.randn(4, h, w, c, device=ON.device, dtype=ON.dtype)
        corners = torch.randn(4, h // 2 + 1, w // 2 + 1, 4 * c, device=ON.device, dtype=ON.dtype)
        out, bias, gamma = torch.empty_like(x), torch.randn(c, **half), torch.randn(c, **half)
        y = [torch.randn(1, h, w, c, **half) for _ in range(6)]
        past = torch.randn(2, h, w, c, **half)
        shape = ts.Shape(1, 4, h, w, c)
        frame = h * w * c * 2

        def step(kind: str, x=x, corners=corners, out=out, bias=bias, gamma=gamma, y=y, past=past, shape=shape) -> None:
            up, block = kind == "after an upsampling", kind == "between blocks"
            ts.stream_step(
                shape, x=corners if up else x if block else None, corners=up, y=[] if up else y, bias=bias,
                stream=out if up else x if block else None, gamma=gamma, past=past, has_past=True,
                u=[torch.empty_like(v) for v in y] if up else y, joined=False, tiny=1e-24,
            )  # fmt: skip

        sizes = ((512, 4), (1024, 4), (1024, 8), (2048, 4), (2048, 8), (4096, 8))
        for elements, warps in sizes:
            ts.ELEMENTS, ts.WARPS = elements, warps
            texts, values = [], []
            for kind, frames in (("inside a block", 16), ("between blocks", 24), ("after an upsampling", 18)):
                for t in (x, *y):
                    t.normal_()
                ms = milliseconds(lambda kind=kind: step(kind))
                texts.append(f"{kind} {ms:.3f} ms {frames * frame / ms / 1e6:.0f} GB/s")
                values.append(ms)
            note(f"kernel, {c} channels, {elements} a program, {warps} warps", values, "; ".join(texts))
        ts.ELEMENTS, ts.WARPS = 1024, 4
    big, other = (torch.empty(2**30, device=ON.device, dtype=torch.uint8).random_() for _ in range(2))
    ms = milliseconds(lambda: big.copy_(other))
    note("copy of 1 GiB", ms, f"{ms:.3f} ms, {2 * 2**30 / ms / 1e6:.0f} GB/s")


def attention() -> None:
    """One frame's, one head of 384."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    n, d = 14400, 384
    q, k, v = (torch.randn(1, 1, n, d, device=ON.device, dtype=ON.dtype) for _ in range(3))
    flop = 4 * n * n * d
    attempt("attention 384: as it is", lambda: F.scaled_dot_product_attention(q, k, v), flop)
    for backend in (
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
    ):

        def work(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        attempt(f"attention 384: {backend.name}", work, flop)

    def products(rows: int) -> Tensor:
        out = torch.empty_like(q[0, 0])
        for i in range(0, n, rows):
            scores = torch.mm(q[0, 0, i : i + rows] * d**-0.5, k[0, 0].T, out_dtype=torch.float32)
            out[i : i + rows] = scores.softmax(1).to(v.dtype) @ v[0, 0]
        return out

    for rows in (1440, 3600, 14400):
        attempt(f"attention 384: products, {rows} rows", lambda rows=rows: products(rows), flop)


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


PARTS = {
    "errors": errors, "decode": decoding, "profile": profiled, "kernel": stream_kernel, "convs": convolutions,
    "attention": attention, "pipeline": pipeline,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / f"decoder_{date.today()}.json")
    args = parser.parse_args()
    FIGURES.update(device=torch.cuda.get_device_name(), torch=torch.__version__)
    for name in args.parts.split(","):
        began = time.perf_counter()
        print(f"{name}:", flush=True)
        try:
            with torch.inference_mode():
                PARTS[name]()
        except Exception:
            note(f"{name} FAILED", None, traceback.format_exc(limit=-3).replace("\n", " | ")[-600:])
        torch.cuda.empty_cache()
        print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)
        args.json.parent.mkdir(exist_ok=True)
        args.json.write_text(json.dumps(FIGURES, indent=1), encoding="utf-8")
    print(f"\n{FIGURES['device']}, torch {torch.__version__}")
    for row in ROWS:
        print(f"{row[0]:<60} {row[1]}")


if __name__ == "__main__":
    main()

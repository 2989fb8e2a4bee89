"""Parts of ``decoder_speed.py``: what the Wan decoder is made of, and candidates for it: convolutions, the kernel between them,
attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from decoder_table import ON, attempt, milliseconds, note
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from oasis_core.model.decoders.winograd import Form, kernels


def conv_case(channels: int, height: int, width: int, cout: int | None = None) -> None:
    """One convolution in time of four output frames, every way: ms, and TFLOP/s as if done the plain way."""
    import conv_candidates as cc  # newest Triton alone has what it needs: other parts run without

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

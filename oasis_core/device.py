"""Device and number format by name: what was asked for, or a refusal that says why."""

from __future__ import annotations

import torch

FP8 = "fp8"
"""Name of the format in which the transformer's matrices are fp8 and all else is bf16."""
FP8_CAPABILITY = (8, 9)
"""Compute capability from which NVIDIA's GPUs have fp8 units (Ada)."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """``auto``: CUDA, else Apple's MPS, else CPU. Raises ValueError for one that this machine does not have."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise ValueError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:N, mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {name} was asked for, but this torch ({torch.__version__}) sees no CUDA GPU; use cpu or auto"
        )
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        raise ValueError(f"device {name} was asked for, but there are {torch.cuda.device_count()} CUDA GPUs")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps was asked for, but this machine has no usable Apple GPU; use cpu or auto")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto``: bf16 where the device is faster in it (``missing_bf16``), else fp32. Raises ValueError for an unknown name."""
    if name == "auto":
        return torch.float32 if missing_bf16(device) else torch.bfloat16
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; allowed: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def choose_format(name: str, device: torch.device) -> tuple[torch.dtype, bool]:
    """``choose_dtype``, and whether the transformer's matrices shall be fp8. Raises ValueError where the device has none."""
    if name != FP8:
        try:
            return choose_dtype(name, device), False
        except ValueError:
            raise ValueError(f"dtype is {name!r}; allowed: auto, {', '.join(DTYPES)}, {FP8}") from None
    if why := missing_fp8(device):
        raise ValueError(f"dtype fp8 cannot be used: {why}")
    return torch.bfloat16, True


def missing_bf16(device: torch.device) -> str | None:
    """Why a device does not multiply bf16 matrices faster than fp32 ones, one line; None where it does."""
    if device.type == "cuda":
        return None if torch.cuda.is_bf16_supported() else f"{torch.cuda.get_device_name(device)} has no bf16 units"
    if device.type != "cpu":
        return f"it was not measured on {device.type}"
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return "this torch has no oneDNN, whose products use the units of CPUs"
    # Not there in older versions of torch.
    has = (getattr(torch.cpu, f"_is_{unit}_supported", lambda: False) for unit in ("amx_tile", "avx512_bf16"))
    return None if any(unit() for unit in has) else "this CPU has neither AMX nor AVX512-BF16"


def missing_fp8(device: torch.device) -> str | None:
    """Why a device does not multiply fp8 matrices, one line; None where it does."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU of the Ada, Hopper or a newer kind and the model is on {device}; choose bf16"
    if torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"{name} has no fp8 units (Ada, Hopper and newer kinds do); choose bf16"
    return None

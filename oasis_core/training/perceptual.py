"""ST-LPIPS (VGG): a shift-tolerant perceptual distance, as a loss.

Weights come from the PyPI package ``stlpips-pytorch`` (extra ``[train]``), read as a file: its code is not imported.
Method: "Shift-tolerant Perceptual Similarity Metric", Ghildyal and Liu, ECCV 2022.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Per VGG slice: the index of its anti-aliased pooling in the weight file (None: no pooling) and of its convolutions.
SLICES: tuple[tuple[int | None, tuple[int, ...]], ...] = (
    (None, (0, 2)),
    (5, (6, 8)),
    (11, (12, 14, 16)),
    (19, (20, 22, 24)),
    (27, (28, 30, 32)),
)


def vgg_weights_path() -> Path:
    """The weight file inside the installed package. Raises ModuleNotFoundError with the remedy."""
    spec = importlib.util.find_spec("stlpips_pytorch")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the perceptual loss needs the package stlpips-pytorch: pip install oasis[train]")
    return Path(next(iter(spec.submodule_search_locations))) / "weights/vST0.0/vgg_shift_tolerant.pth"


class STLPIPS(nn.Module):
    """Distance of image batches ``(S, 3, H, W)`` in [0, 1]: one mean value; lower is more alike."""

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        state = torch.load(weights or vgg_weights_path(), map_location="cpu", weights_only=True)
        self.tensors = nn.ParameterDict(
            {k.replace(".", "_"): nn.Parameter(_laid_out(v.float()), requires_grad=False) for k, v in state.items()}
        )

    def _conv(self, x: Tensor, index: str) -> Tensor:
        weight, bias = self.tensors[f"net_{index}_weight"], self.tensors[f"net_{index}_bias"]
        return F.relu(F.conv2d(x, weight, bias, padding=1))

    def features(self, x: Tensor) -> list[Tensor]:
        """Five feature maps, finest first."""
        x = (x * 2 - 1 - self.tensors["scaling_layer_shift"]) / self.tensors["scaling_layer_scale"]
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for number, (pool, convs) in enumerate(SLICES, 1):
            if pool is not None:
                x = F.pad(F.max_pool2d(x, 2, 1), (2, 2, 2, 2), mode="reflect")
                x = F.conv2d(x, self.tensors[f"net_slice{number}_{pool}_filt"], stride=2, groups=x.shape[1])
            for conv in convs:
                x = self._conv(x, f"slice{number}_{conv}")
            maps.append(x)
        return maps

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            target = [_unit(f) for f in self.features(hr)]
        total = sr.new_zeros((), dtype=torch.float32)
        for i, (ours, theirs) in enumerate(zip(self.features(sr), target, strict=True)):
            difference = (_unit(ours) - theirs) ** 2
            weight = self.tensors[f"lin{i}_model_1_weight"].flatten()
            total = total + (difference.mean((0, 2, 3), dtype=torch.float32) * weight).sum()
        return total


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x / (x.pow(2).sum(1, keepdim=True) + 1e-10).sqrt()

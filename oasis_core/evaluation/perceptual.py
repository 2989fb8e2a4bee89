"""ST-LPIPS: a shift-tolerant perceptual distance of images; lower is more alike. The VGG one also serves as a loss.

Weights come from the PyPI package ``stlpips-pytorch``, read as files: its code is not imported.
Method: "Shift-tolerant Perceptual Similarity Metric", Ghildyal and Liu, ECCV 2022.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = Literal["alex", "vgg"]
SAMPLES = 4
"""About as many frames of a clip are compared, evenly spaced from the first on (4 to 7, all of a shorter clip): the
distance changes slowly along a clip, and VGG takes seconds a frame."""


@dataclass(frozen=True)
class Down:
    """Maximum over a window at every pixel, then every second pixel of the blurred map."""

    window: int
    blur: int
    """Index of the blur's filter in the weight file."""


@dataclass(frozen=True)
class Conv:
    """Convolution and ReLU; with ``blur`` the map is blurred and halved between the two."""

    index: int
    padding: int = 1
    blur: int | None = None


SLICES: dict[Network, tuple[tuple[Down | Conv, ...], ...]] = {
    "alex": (
        (Conv(0, padding=2, blur=1),),
        (Down(3, 4), Conv(5, padding=2)),
        (Down(3, 8), Conv(9)),
        (Conv(11),),
        (Conv(13),),
    ),
    "vgg": (
        (Conv(0), Conv(2)),
        (Down(2, 5), Conv(6), Conv(8)),
        (Down(2, 11), Conv(12), Conv(14), Conv(16)),
        (Down(2, 19), Conv(20), Conv(22), Conv(24)),
        (Down(2, 27), Conv(28), Conv(30), Conv(32)),
    ),
}
"""Five slices of each network; the map after each is compared."""


def weights_path(network: Network) -> Path:
    """The weight file inside the installed package. Raises ModuleNotFoundError with the remedy."""
    spec = importlib.util.find_spec("stlpips_pytorch")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "ST-LPIPS needs the package stlpips-pytorch, of the extras train and evaluate: pip install stlpips-pytorch"
        )
    return Path(next(iter(spec.submodule_search_locations))) / f"weights/vST0.0/{network}_shift_tolerant.pth"


class STLPIPS(nn.Module):
    """Distance of image batches ``(S, 3, H, W)`` in [0, 1]: one mean value; lower is more alike."""

    def __init__(self, network: Network = "vgg") -> None:
        super().__init__()
        self.slices = SLICES[network]
        state = torch.load(weights_path(network), map_location="cpu", weights_only=True)
        self.tensors = nn.ParameterDict(
            {k.replace(".", "_"): nn.Parameter(_laid_out(v.float()), requires_grad=False) for k, v in state.items()}
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """Five feature maps, finest first."""
        x = (x * 2 - 1 - self.tensors["scaling_layer_shift"]) / self.tensors["scaling_layer_scale"]
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for number, steps in enumerate(self.slices, 1):
            for step in steps:
                x = self._down(x, number, step) if isinstance(step, Down) else self._conv(x, number, step)
            maps.append(x)
        return maps

    def _down(self, x: Tensor, number: int, step: Down) -> Tensor:
        return self._halve(F.max_pool2d(x, step.window, 1), number, step.blur)

    def _conv(self, x: Tensor, number: int, step: Conv) -> Tensor:
        name = f"net_slice{number}_{step.index}"
        x = F.conv2d(x, self.tensors[f"{name}_weight"], self.tensors[f"{name}_bias"], padding=step.padding)
        return F.relu(x if step.blur is None else self._halve(x, number, step.blur))

    def _halve(self, x: Tensor, number: int, blur: int) -> Tensor:
        x = F.pad(x, (2, 2, 2, 2), mode="reflect")
        return F.conv2d(x, self.tensors[f"net_slice{number}_{blur}_filt"], stride=2, groups=x.shape[1])

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            target = [_unit(f) for f in self.features(hr)]
        total = sr.new_zeros((), dtype=torch.float32)
        for i, (ours, theirs) in enumerate(zip(self.features(sr), target, strict=True)):
            difference = (_unit(ours) - theirs) ** 2
            weight = self.tensors[f"lin{i}_model_1_weight"].flatten()
            total = total + (difference.mean((0, 2, 3), dtype=torch.float32) * weight).sum()
        return total


class Perceptual:
    """``stlpips_NETWORK`` of a clip for each network: the mean distance of some of its frames (``SAMPLES``)."""

    def __init__(self, networks: Mapping[str, STLPIPS], frames: int) -> None:
        """``frames``: how many the clip has."""
        self._every = max(1, frames // SAMPLES)
        self._networks = networks
        self._distances: dict[str, list[float]] = {name: [] for name in networks}
        self._seen = 0

    def add(self, truth: np.ndarray, output: np.ndarray) -> None:
        """One frame of each, ``(H, W, 3)`` uint8."""
        if self._seen % self._every == 0:
            sr, hr = (torch.from_numpy(f).permute(2, 0, 1)[None].float() / 255 for f in (output, truth))
            with torch.inference_mode():
                for name, network in self._networks.items():
                    self._distances[name].append(network(sr, hr).item())
        self._seen += 1

    def result(self) -> dict[str, float]:
        return {f"stlpips_{name}": float(np.mean(values)) for name, values in self._distances.items()}


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x / (x.pow(2).sum(1, keepdim=True) + 1e-10).sqrt()

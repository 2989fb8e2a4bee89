"""ST-LPIPS against the published networks, built of torch's generic layers from the package's weight files."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("stlpips_pytorch")

from oasis_core.evaluation.perceptual import SLICES, STLPIPS, Network, Perceptual, weights_path

ALEX = [["c0 p2", "b1", "r"], ["m3", "b4", "c5 p2", "r"], ["m3", "b8", "c9 p1", "r"], ["c11 p1", "r"], ["c13 p1", "r"]]
VGG = [
    ["c0 p1", "r", "c2 p1", "r"],
    ["m2", "b5", "c6 p1", "r", "c8 p1", "r"],
    ["m2", "b11", "c12 p1", "r", "c14 p1", "r", "c16 p1", "r"],
    ["m2", "b19", "c20 p1", "r", "c22 p1", "r", "c24 p1", "r"],
    ["m2", "b27", "c28 p1", "r", "c30 p1", "r", "c32 p1", "r"],
]
"""Layers of each slice: convolution with its padding, anti-aliased blur, maximum of a window at stride 1, ReLU."""


def layer(text: str, prefix: str, weights: dict[str, Tensor]) -> list[nn.Module]:
    kind, name = text[0], prefix + text[1:].split()[0] if len(text) > 1 else prefix
    if kind == "r":
        return [nn.ReLU()]
    if kind == "m":
        return [nn.MaxPool2d(int(text[1]), stride=1)]
    weight = weights[f"{name}.filt" if kind == "b" else f"{name}.weight"]
    count, inputs, size = weight.shape[:3]
    if kind == "b":
        blur = nn.Conv2d(count, count, size, stride=2, groups=count, bias=False)
        blur.weight = nn.Parameter(weight)
        return [nn.ReflectionPad2d(2), blur]
    conv = nn.Conv2d(inputs, count, size, padding=int(text[-1]))
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(weights[f"{name}.bias"])
    return [conv]


@pytest.mark.parametrize(("network", "slices"), [("alex", ALEX), ("vgg", VGG)])
def test_distance_equals_the_published_networks(network: Network, slices: list[list[str]]) -> None:
    weights = torch.load(weights_path(network), map_location="cpu", weights_only=True)
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    total = 0.0
    maps = [(x * 2 - 1 - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"] for x in (a, b)]
    for i, names in enumerate(slices):
        layers = [module for text in names for module in layer(text, f"net.slice{i + 1}.", weights)]
        maps = [nn.Sequential(*layers)(x) for x in maps]
        p, q = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in maps)
        total += nn.functional.conv2d((p - q) ** 2, weights[f"lin{i}.model.1.weight"]).mean().item()
    assert float(STLPIPS(network)(a, b)) == pytest.approx(total, rel=1e-4)


def test_every_weight_of_the_files_is_used() -> None:
    for network, slices in SLICES.items():
        used = {(n, i) for n, steps in enumerate(slices, 1) for s in steps for i in (getattr(s, "index", None), s.blur)}
        state = torch.load(weights_path(network), map_location="cpu", weights_only=True)
        there = {(int(k.split(".")[1][5:]), int(k.split(".")[2])) for k in state if k.startswith("net.")}
        assert there == {(n, i) for n, i in used if i is not None}


def test_a_clip_is_compared_at_evenly_spaced_frames() -> None:
    class Brightness(STLPIPS):
        def __init__(self) -> None:
            nn.Module.__init__(self)

        def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
            return sr.mean() * 255

    for frames, expected in (
        (1, [0]),
        (3, [0, 1, 2]),
        (5, [0, 1, 2, 3, 4]),
        (24, [0, 6, 12, 18]),
        (27, [0, 6, 12, 18, 24]),
    ):
        measure = Perceptual({"mean": Brightness()}, frames)
        for i in range(frames):
            frame = torch.full((8, 8, 3), i, dtype=torch.uint8).numpy()
            measure.add(frame, frame)
        assert measure.result()["stlpips_mean"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)

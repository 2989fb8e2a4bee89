"""Our Wan decoder and DiT beside ComfyUI's classes, in ComfyUI's environment: random weights, whole clips."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from oasis_core.checkpoints.decoder import fill, shapes_of
from oasis_core.checkpoints.vae_names import ORIGINAL
from oasis_core.model import OasisConfig
from oasis_core.model.decoders import TaehvDecoder
from oasis_core.model.dit import DiT
from oasis_core.model.vae_config import LATENT_MEAN, LATENT_STD, TaehvConfig, WanDecoderConfig
from oasis_core.routing import HeadPattern, RoutingSpec

pytestmark = pytest.mark.comfy
TOLERANCE = 1e-4
"""Largest error as a share of the output's standard deviation."""


def neighbour(name: str) -> ModuleType:
    """A test file of the folder above: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


wan = neighbour("test_wan_decoder")


def theirs(  # type: ignore[no-untyped-def]
    comfyui, folder: Path, kind: str, arguments: dict[str, object], tensors: dict[str, Tensor], weights: dict[str, Tensor],
    may_miss: tuple[str, ...] = (),
) -> Tensor:  # fmt: skip
    """What ComfyUI's class makes of it."""
    job, out = folder / "job.safetensors", folder / "out.safetensors"
    said = {"class": kind, "arguments": json.dumps(arguments), "may_miss": json.dumps(may_miss)}
    save_file({**tensors, **{f"weights.{n}": t.contiguous() for n, t in weights.items()}}, job, metadata=said)
    script = Path(__file__).with_name("vae_reference.py")
    command = [str(comfyui.python), str(script), str(comfyui.folder), str(job), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=comfyui.folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)["out"]


@pytest.mark.parametrize(("width", "t"), [(8, 1), (8, 2), (16, 5), pytest.param(96, 3, marks=pytest.mark.slow)])
@torch.inference_mode()
def test_decoder(comfyui, tmp_path: Path, width: int, t: int) -> None:  # type: ignore[no-untyped-def]
    config = WanDecoderConfig() if width == 96 else replace(wan.SMALL, width=width)
    decoder = wan.random_decoder(config)
    z = wan.latent(config, t, 4, 3)
    weights = {n: x for n, x in wan.as_file(decoder, ORIGINAL, "").items() if not n.startswith(wan.ENCODER)}
    arguments = {"dim": width, "z_dim": config.latent_channels, "temperal_downsample": [False, True, True]}
    result = theirs(
        comfyui, tmp_path, "WanVAE", arguments, {"z": wan.denormalised(z, config)}, weights, wan.ENCODER
    )  # fmt: skip
    ours = decoder(z)
    assert ours.shape == result.shape
    assert result.std() > 0.1
    assert (ours - result).abs().max() < TOLERANCE * result.std()


@pytest.mark.parametrize(
    ("heads", "head_dim", "depth", "ffn", "grid"),
    [
        (2, 16, 2, 40, (3, 4, 6)),
        (3, 32, 1, 24, (1, 2, 3)),
        pytest.param(12, 128, 1, 8960, (2, 3, 4), marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_transformer(  # type: ignore[no-untyped-def]
    comfyui, tmp_path: Path, heads: int, head_dim: int, depth: int, ffn: int, grid: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    c = OasisConfig(
        "x", dim=heads * head_dim, depth=depth, heads=heads, ffn_dim=ffn, freq_dim=32, context_length=5, timestep=500.0
    )
    dit = DiT(c).eval()
    for name, p in dit.named_parameters():
        spread = 0.3 if p.ndim == 1 or "modulation" in name or name == "context" else p[0].numel() ** -0.5
        p.copy_(torch.randn_like(p) * spread + (0.7 if "norm" in name else 0))
    text = {
        "0.weight": torch.randn(c.dim, 7),
        "0.bias": torch.randn(c.dim),
        "2.weight": torch.randn(c.dim, c.dim) * c.dim**-0.5,
    }
    text["2.bias"] = torch.randn(c.dim)
    words = torch.randn(1, 5, 7)
    hidden = F.gelu(F.linear(words, text["0.weight"], text["0.bias"]), approximate="tanh")
    assert dit.context is not None
    dit.context.copy_(F.linear(hidden, text["2.weight"], text["2.bias"]))
    weights = {n: t for n, t in dit.state_dict().items() if n != "context"}
    weights |= {f"text_embedding.{n}": t for n, t in text.items()}
    arguments = {
        "dim": c.dim, "ffn_dim": ffn, "freq_dim": 32, "text_dim": 7, "num_heads": heads, "num_layers": depth,
    }  # fmt: skip
    z = torch.randn(1, 16, grid[0], 2 * grid[1], 2 * grid[2])
    given = {"z": z, "timestep": torch.tensor([500.0]), "context": words}
    result = theirs(comfyui, tmp_path, "WanModel", arguments, given, weights)
    ours = dit(z, RoutingSpec.uniform(depth, heads, HeadPattern.GLOBAL))
    assert ours.shape == result.shape
    assert result.std() > 0.1
    assert (ours - result).abs().max() < TOLERANCE * result.std()


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("t", [1, 4])
@torch.inference_mode()
def test_tiny_decoder(comfyui, tmp_path: Path, t: int, normalised: bool) -> None:  # type: ignore[no-untyped-def]
    if not (Path(comfyui.folder) / "comfy" / "taesd" / "taehv.py").is_file():
        pytest.skip("this ComfyUI has no TAEHV to compare with (0.3.64 has none, 0.33 has)")
    config = TaehvConfig() if normalised else TaehvConfig(latent_mean=LATENT_MEAN, latent_std=LATENT_STD)
    decoder = TaehvDecoder(config)
    fill(decoder, wan.random_state(shapes_of(decoder)))
    z = wan.latent(WanDecoderConfig(), t, 4, 3)
    weights = {n.replace("layers.", "decoder."): x for n, x in decoder.state_dict().items()}
    given = {"z": wan.denormalised(z, WanDecoderConfig())}
    arguments: dict[str, object] = {"latent_channels": 16, "parallel": False, "normalised": normalised}
    result = theirs(comfyui, tmp_path, "TAEHV", arguments, given, weights, ("encoder.",))
    ours = (decoder(z) + 1) / 2
    assert ours.shape == result.shape
    assert result.std() > 0.1
    assert (ours - result).abs().max() < TOLERANCE * result.std()

"""Wan 2.1 files of every naming and number format become OASIS models that compute the same."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from oasis_core.checkpoints import load_checkpoint, save_checkpoint
from oasis_core.checkpoints.convert import convert
from oasis_core.checkpoints.dit_names import DIFFUSERS, ORIGINAL
from oasis_core.checkpoints.match import Naming
from oasis_core.checkpoints.tensor_files import TensorFiles
from oasis_core.cli import main
from oasis_core.model import OasisConfig
from oasis_core.model.dit import DiT
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.routing import HeadPattern, RoutingSpec

NAMINGS = {"wan": ("", ORIGINAL), "comfyui": ("model.diffusion_model.", ORIGINAL), "diffusers": ("", DIFFUSERS)}
TEXT_DIM = 5


def odd_config(rng: random.Random) -> OasisConfig:
    """Odd sizes, as a Wan file could have them."""
    heads, channels, patch = rng.randint(1, 3), rng.randint(1, 5), rng.randint(1, 3)
    return OasisConfig(
        "odd", latent_channels=channels, patch=(1, patch, patch), dim=heads * 2 * rng.randint(3, 7), depth=rng.randint(1, 3),
        heads=heads, ffn_dim=rng.randint(1, 30), freq_dim=2 * rng.randint(1, 9), context_length=1,
        decoder=WanDecoderConfig(latent_mean=(0.0,) * channels, latent_std=(1.0,) * channels),
    )  # fmt: skip


def wan_weights(config: OasisConfig, seed: int) -> dict[str, Tensor]:
    """A base's weights under Wan's own names, text embedder included."""
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in DiT(config).state_dict().items() if n != "context"}
    text = {"0.weight": (config.dim, TEXT_DIM), "0.bias": (config.dim,)}
    text |= {"2.weight": (config.dim, config.dim), "2.bias": (config.dim,)}
    shapes |= {f"text_embedding.{n}": torch.Size(s) for n, s in text.items()}
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator) * 0.3 for n, s in shapes.items()}


def write(path: Path, weights: dict[str, Tensor], naming: str, **metadata: str) -> Path:
    prefix, table = NAMINGS[naming]
    names = Naming("", table)
    save_file({prefix + names.theirs(n): t for n, t in weights.items()}, path, metadata=metadata or None)
    return path


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("naming", NAMINGS)
@torch.inference_mode()
def test_random_odd_configs_convert_save_and_load(tmp_path: Path, naming: str, seed: int) -> None:
    rng = random.Random(seed)
    config, length = odd_config(rng), rng.randint(1, 9)
    weights = wan_weights(config, seed)
    base = write(tmp_path / "base.safetensors", weights, naming)
    routing = RoutingSpec(
        tuple(tuple(rng.choice(list(HeadPattern)) for _ in range(config.heads)) for _ in range(config.depth))
    )
    made = convert(
        base, name="n", context_length=length, sigma=0.5, timestep=250.0, routing=routing, heads=config.heads
    )
    for name, tensor in made.model.dit.state_dict().items():
        if name != "context":
            assert torch.equal(tensor, weights[name]), name
    save_checkpoint(tmp_path / "oasis.safetensors", made.model, made.metadata)
    loaded = load_checkpoint(tmp_path / "oasis.safetensors")
    assert loaded.metadata == made.metadata
    assert not loaded.metadata.trained
    assert (loaded.config.sigma, loaded.config.timestep, loaded.config.context_length) == (0.5, 250.0, length)
    assert (loaded.config.dim, loaded.config.depth, loaded.config.ffn_dim) == (config.dim, config.depth, config.ffn_dim)
    z = torch.randn(1, config.latent_channels, 2, 2 * config.patch[1], config.patch[2])
    results = [m.model.restore(z, routing) for m in (loaded, made)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)  # memory that is aligned otherwise is summed otherwise
    states = [m.model.state_dict() for m in (made, loaded)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(t, states[1][n]) for n, t in states[0].items())


@torch.inference_mode()
def test_the_context_is_what_wan_pads_a_text_with(tmp_path: Path) -> None:
    config = odd_config(random.Random(0))
    weights = wan_weights(config, 0)
    made = convert(write(tmp_path / "b.safetensors", weights, "wan"), context_length=64, heads=config.heads)
    w = {n.removeprefix("text_embedding."): t for n, t in weights.items()}
    padding = F.linear(torch.zeros(1, TEXT_DIM), w["0.weight"], w["0.bias"])
    padding = F.linear(F.gelu(padding, approximate="tanh"), w["2.weight"], w["2.bias"])
    context = made.model.dit.context
    assert context is not None
    assert (context - padding).abs().max() < 0.1 * padding.std()
    assert len(context[0].unique(dim=0)) == 64  # alike, they would be trained alike


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16])
def test_number_formats(tmp_path: Path, dtype: torch.dtype, wanted: torch.dtype | None) -> None:
    config = odd_config(random.Random(1))
    weights = {n: t.to(dtype) for n, t in wan_weights(config, 1).items()}
    made = convert(write(tmp_path / "b.safetensors", weights, "wan"), heads=config.heads, dtype=wanted)
    for name, tensor in made.model.dit.state_dict().items():
        assert tensor.dtype == (wanted or dtype)
        if name != "context":
            assert torch.equal(tensor, weights[name].to(wanted or dtype))


def as_fp8(weights: dict[str, Tensor], form: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """What a file of scaled fp8 holds (matrices in blocks alone), what it stands for, and its metadata."""
    stored, meant, layers = {}, {}, {}
    for name, tensor in weights.items():
        if not (name.startswith("blocks.") and tensor.ndim == 2):
            stored[name] = meant[name] = tensor.bfloat16()
            continue
        layer = name.removesuffix(".weight")
        scale = tensor.abs().max() / 448
        if form == "rows":
            scale = tensor.abs().amax(1, keepdim=True) / 448
        eight = (tensor / scale).to(torch.float8_e4m3fn)
        meant[name] = (eight.float() * scale).bfloat16()
        stored[name] = eight.view(torch.uint8) if form == "bytes" else eight
        if form == "scaled_fp8":
            stored[f"{layer}.scale_weight"], stored[f"{layer}.scale_input"] = scale.reshape(1), torch.ones(1)
        else:
            stored[f"{layer}.weight_scale"] = scale
            said = {"format": "float8_e4m3fn"}
            layers[layer] = said
            if form != "header":
                stored[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    if form == "scaled_fp8":
        stored["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    return stored, meant, {"_quantization_metadata": json.dumps({"layers": layers})} if form == "header" else {}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("form", ["scaled_fp8", "comfy_quant", "rows", "bytes", "header"])
def test_scaled_fp8(tmp_path: Path, form: str, prefix: str) -> None:
    config = odd_config(random.Random(2))
    stored, meant, metadata = as_fp8(wan_weights(config, 2), form)
    if metadata:
        layers = json.loads(metadata["_quantization_metadata"])["layers"]
        metadata = {"_quantization_metadata": json.dumps({"layers": {prefix + n: said for n, said in layers.items()}})}
    save_file({prefix + n: t for n, t in stored.items()}, tmp_path / "b.safetensors", metadata=metadata or None)
    made = convert(tmp_path / "b.safetensors", heads=config.heads)
    for name, tensor in made.model.dit.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert name == "context" or torch.equal(tensor, meant[name]), name


def test_what_is_quantised_otherwise_is_refused(tmp_path: Path) -> None:
    said = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    save_file({"a.weight": torch.zeros(4, dtype=torch.uint8), "a.comfy_quant": said}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="quantised as 'nvfp4'; only float8_e4m3fn"):
        convert(tmp_path / "a.safetensors")
    save_file({"a.weight": torch.zeros(4, dtype=torch.uint8)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="quantised in a form that is not read"):
        convert(tmp_path / "a.safetensors")


@pytest.mark.parametrize("give", ["index", "folder"])
def test_sharded(tmp_path: Path, give: str) -> None:
    config = odd_config(random.Random(3))
    weights = wan_weights(config, 3)
    names = Naming("", DIFFUSERS)
    parts: list[dict[str, Tensor]] = [{}, {}, {}]
    for i, (name, tensor) in enumerate(weights.items()):
        parts[i % 3][names.theirs(name)] = tensor
    weight_map = {}
    for i, part in enumerate(parts):
        save_file(part, tmp_path / f"part-{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"part-{i}.safetensors")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    made = convert(index if give == "index" else tmp_path, heads=config.heads)
    assert all(torch.equal(t, weights[n]) for n, t in made.model.dit.state_dict().items() if n != "context")
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="part-1.safetensors"):
        convert(index)
    index.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="no weight_map"):
        convert(index)


@pytest.mark.parametrize("naming", NAMINGS)
def test_one_error_lists_every_key_that_does_not_fit(tmp_path: Path, naming: str) -> None:
    weights = wan_weights(odd_config(random.Random(4)), 4)
    del weights["blocks.0.self_attn.q.bias"]
    weights["time_embedding.0.bias"] = torch.zeros(1)
    base = write(tmp_path / "b.safetensors", weights, naming)
    prefix, table = NAMINGS[naming]
    with pytest.raises(ValueError, match="does not fit") as e:
        convert(base, heads=1)
    assert f"missing {prefix}{Naming('', table).theirs('blocks.0.self_attn.q.bias')}" in str(e.value)
    assert f"{prefix}{Naming('', table).theirs('time_embedding.0.bias')} is (1,) instead of" in str(e.value)


def test_refuses_other_models(tmp_path: Path) -> None:
    weights = wan_weights(odd_config(random.Random(5)), 5)
    embedding = weights["patch_embedding.weight"]
    weights["patch_embedding.weight"] = torch.cat([embedding, embedding], dim=1)
    with pytest.raises(ValueError, match="an image-to-video model"):
        convert(write(tmp_path / "b.safetensors", weights, "wan"))
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no Wan 2.1 transformer"):
        convert(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "none.safetensors")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = OasisConfig(
        "b", dim=128, depth=1, heads=1, ffn_dim=8, freq_dim=8, context_length=1, decoder=WanDecoderConfig()
    )
    base, out = write(tmp_path / "b.safetensors", wan_weights(config, 0), "comfyui"), tmp_path / "oasis.safetensors"
    assert main(["convert", str(base), str(out), "--context", "4", "--sigma", "0.9"]) == 0
    assert main(["info", str(out)]) == 0
    told = capsys.readouterr().out
    for part in ("oasis-1.3b", "bfloat16", "100% global", "no: converted", "Wan 2.1's, in a file of its own"):
        assert part in told
    clip = Path(__file__).parent.parent / "assets" / "sample.mp4"
    assert main(["upscale", str(clip), str(tmp_path / "o.mp4"), "--model", str(out)]) == 2
    assert "not trained yet" in capsys.readouterr().err
    assert main(["upscale", str(clip), str(tmp_path / "o.mp4"), "--model", str(out), "--allow-untrained"]) == 2
    assert "--decoder" in capsys.readouterr().err
    assert not (tmp_path / "o.mp4").exists()
    assert main(["convert", str(base), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


PEAK = """
import resource, sys, torch
from pathlib import Path
from oasis_core.checkpoints.tensor_files import TensorFiles
files = TensorFiles.open(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kept = dict(files.read({n: n for n in files.shapes}, "cpu", getattr(torch, sys.argv[2])))
total = sum(float(t.sum()) for t in kept.values())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak as Linux tells it")
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_reading_takes_little_more_than_the_file(tmp_path: Path, wanted: str) -> None:
    path = tmp_path / "big.safetensors"
    save_file({f"t{i}": torch.zeros(1024, 1024, 8) for i in range(48)}, path)  # 1.5 GiB
    done = subprocess.run([sys.executable, "-c", PEAK, str(path), wanted], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.15 * path.stat().st_size


def test_tensor_files_tell_before_they_read(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(2, 3, dtype=torch.float16), "b": torch.zeros(1)}, tmp_path / "f.safetensors")
    files = TensorFiles.open(tmp_path / "f.safetensors")
    assert dict(files.shapes) == {"a.weight": (2, 3), "b": (1,)}
    assert files.formats == ("F16", "F32")

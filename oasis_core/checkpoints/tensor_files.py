"""Tensors of a file, or of a sharded one, as other projects write them: read straight to device and number format.

Files are mapped into memory, so that a tensor costs its own size once, where it goes. fp8 weights with scales, in both of
ComfyUI's forms, come out multiplied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

BATCH = 256 * 2**20
"""Bytes read before the file is mapped anew: what was read stays resident as long as the mapping lives."""
PICKLED = (".pth", ".pt", ".ckpt", ".bin")
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FP8_FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
SCALES = (".scale_weight", ".weight_scale")
"""Ends of a scale's name instead of ``.weight``: the ``scaled_fp8`` form, the ``comfy_quant`` form."""
QUANT = ".comfy_quant"
SIDE = (*SCALES, ".scale_input", ".input_scale", QUANT, "scaled_fp8")
"""Ends of the names of what is no weight but belongs to one."""
_BYTES = {"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I64": 8}


@dataclass(frozen=True)
class TensorFiles:
    """What lies in a checkpoint. Read by ``read``; names and shapes are known without reading."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    """Of every weight, by its name in the file."""
    formats: tuple[str, ...]
    """Number formats of the weights, as the files name them."""
    header: Mapping[str, str]
    """Metadata of a single safetensors file."""
    _files: Mapping[str, Path]
    _sizes: Mapping[str, int]
    _scales: Mapping[str, str]
    """Weight -> the name of its scale."""
    _fp8: Mapping[str, torch.dtype]
    """Weights that are fp8 stored as bytes."""

    @classmethod
    def open(cls, path: Path) -> TensorFiles:
        """Look into ``path``: a .safetensors file, a sharded one's .index.json or folder, or a pickle of tensors alone.

        Raises:
            FileNotFoundError: no such file, or a shard is missing.
            ValueError: nothing of this kind, or quantised in a form that is not read; one line.
        """
        if path.suffix.lower() in PICKLED:
            return cls._of_pickle(path)
        shapes, kinds, files, sizes, header = {}, {}, {}, {}, {}
        shards = _shards(path)
        for shard in shards:
            try:
                with safe_open(shard, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a dict
                        part = file.get_slice(name)
                        shapes[name], kinds[name], files[name] = tuple(part.get_shape()), part.get_dtype(), shard
                        sizes[name] = _BYTES.get(kinds[name], 1) * _count(shapes[name])
                    header = dict(file.metadata() or {}) if len(shards) == 1 else {}
            except SafetensorError as e:
                raise ValueError(f"{shard} is not a readable safetensors file ({str(e)[:200]})") from None
        weights = {n: s for n, s in shapes.items() if not n.endswith(SIDE)}
        scales = {
            n.removesuffix(end) + ".weight": n for n in shapes for end in SCALES if n.endswith(end)
        }  # fmt: skip
        fp8 = _fp8_layers(shapes, files, header)
        for name in weights:
            if kinds[name] in ("U8", "I8") and name not in fp8:
                raise ValueError(
                    f"{path}: {name} is {kinds[name]}: quantised in a form that is not read; get fp8 or bf16"
                )
        return cls(
            path, MappingProxyType(weights), tuple(sorted({kinds[n] for n in weights})), MappingProxyType(header),
            files, sizes, {w: s for w, s in scales.items() if w in weights}, fp8,
        )  # fmt: skip

    @classmethod
    def _of_pickle(cls, path: Path) -> TensorFiles:
        tensors = _unpickled(path)
        shapes = {n: tuple(t.shape) for n, t in tensors.items()}
        kinds = tuple(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}))
        return cls(path, MappingProxyType(shapes), kinds, MappingProxyType({}), dict.fromkeys(shapes, path), {}, {}, {})

    def read(
        self, names: Mapping[str, str], device: torch.device | str, dtype: torch.dtype | None
    ) -> Iterator[tuple[str, Tensor]]:
        """The tensors ``names`` (name to give out -> name in the file), file by file.

        ``dtype`` None keeps each tensor's own; scaled fp8 then comes as bf16.
        """
        if self.path.suffix.lower() in PICKLED:
            tensors = _unpickled(self.path)
            yield from ((ours, tensors[theirs].to(device, dtype)) for ours, theirs in names.items())
            return
        for shard, batch in self._batches(names):
            with safe_open(shard, framework="pt", device=str(device)) as file:
                for ours, theirs in batch:
                    yield ours, self._weight(theirs, file.get_tensor(theirs), device, dtype)

    def _weight(self, name: str, stored: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
        if name in self._fp8:
            stored = stored.view(self._fp8[name])
        scale = self._scales.get(name)
        if scale is None:
            return stored.to(dtype or stored.dtype)
        with safe_open(self._files[scale], framework="pt", device=str(device)) as file:
            factor = file.get_tensor(scale).float()
        factor = factor.reshape(-1, *[1] * (stored.ndim - 1)) if factor.numel() > 1 else factor.reshape(())
        return (stored.float() * factor).to(dtype or torch.bfloat16)

    def _batches(self, names: Mapping[str, str]) -> Iterator[tuple[Path, list[tuple[str, str]]]]:
        by_file: dict[Path, list[tuple[str, str]]] = {}
        for ours, theirs in names.items():
            by_file.setdefault(self._files[theirs], []).append((ours, theirs))
        for shard, pairs in by_file.items():
            batch, size = [], 0
            for ours, theirs in pairs:
                batch.append((ours, theirs))
                size += self._sizes[theirs]
                if size >= BATCH:
                    yield shard, batch
                    batch, size = [], 0
            if batch:
                yield shard, batch


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _shards(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint."""
    if path.is_dir():
        indices = sorted(path.glob("*.safetensors.index.json"))
        found = sorted(path.glob("*.safetensors"))
        if not indices and len(found) != 1:
            raise ValueError(f"{path} holds {len(found)} .safetensors files and no index; name the file")
        return _shards(indices[0]) if indices else found
    if not path.is_file():
        raise FileNotFoundError(f"model file not found: {path}")
    if path.suffix != ".json":
        return [path]
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        shards = [path.parent / name for name in sorted(set(names))]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{path} is not the index of a sharded checkpoint (it has no weight_map)") from None
    if missing := [s.name for s in shards if not s.is_file()]:
        raise FileNotFoundError(f"{path} names shards that are not beside it: {', '.join(missing)}")
    return shards


def _fp8_layers(
    shapes: Mapping[str, tuple[int, ...]], files: Mapping[str, Path], header: Mapping[str, str]
) -> dict[str, torch.dtype]:
    """Weights that are said to be fp8, in the tensors ``*.comfy_quant`` or in the header."""
    layers: dict[str, object] = {}
    try:
        layers.update(json.loads(header.get("_quantization_metadata", "{}")).get("layers", {}))
        for name in (n for n in shapes if n.endswith(QUANT)):
            with safe_open(files[name], framework="pt") as file:
                layers[name.removesuffix(QUANT)] = json.loads(bytes(file.get_tensor(name).tolist()))
    except (ValueError, AttributeError) as e:
        raise ValueError(f"what the file says of its quantisation is not readable ({str(e)[:200]})") from None
    result = {}
    for layer, said in layers.items():
        kind = said.get("format") if isinstance(said, dict) else None
        if kind not in FP8_FORMATS:
            raise ValueError(f"{layer} is quantised as {kind!r}; only {', '.join(FP8_FORMATS)} are read")
        result[f"{layer}.weight"] = FP8_FORMATS[kind]
    return result


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Tensors of a pickle that holds tensors alone, mapped into memory."""
    if not path.is_file():
        raise FileNotFoundError(f"model file not found: {path}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as e:  # unpickling raises what it likes
        raise ValueError(f"{path} is not a readable file of tensors ({' '.join(str(e).split())[:200]})") from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError(f"{path} holds something else than named tensors")
    return found

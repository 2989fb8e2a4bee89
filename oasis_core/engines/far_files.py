"""Files for workers that do not see the driver's storage: inputs and model come to them, segments go back, in blocks.

Ray's object store carries the blocks; one at a time is in flight for each file, so that it needs little room.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock

from ..jobs.fingerprint import hash_input
from ..jobs.manifest import Asked
from ..video_io.reader import image_sequence

BLOCK = 16 << 20
"""Bytes that travel at a time."""
MODEL, DECODER = "model", "decoder"
"""Keys of the checkpoint and its decoder among the files that a server gives out; inputs have their numbers."""


class FileServer:
    """Beside the driver: gives out the files that it was made with, and no others."""

    def __init__(self, files: Mapping[str, Sequence[Path]]) -> None:
        self._files = {key: list(paths) for key, paths in files.items()}

    def names(self, key: str) -> list[str]:
        """Of a key's files, without their folder. Raises KeyError where there is no such key."""
        return [path.name for path in self._files[key]]

    def read(self, key: str, number: int, offset: int) -> bytes:
        """A block of a file; empty behind its end. Raises OSError, KeyError, IndexError."""
        return read_block(self._files[key][number], offset)


def files_to_serve(inputs: Sequence[Path], model: Path, decoder: Path | None) -> dict[str, Sequence[Path]]:
    """By key. Raises FileNotFoundError where model or decoder is missing, ValueError as ``files_of``."""
    files: dict[str, Sequence[Path]] = {str(number): files_of(path) for number, path in enumerate(inputs)}
    files[MODEL] = [model]
    if decoder is not None:
        files[DECODER] = [decoder]
    for key in (MODEL, DECODER):
        if key in files and not files[key][0].is_file():
            raise FileNotFoundError(f"{key} file not found: {files[key][0]}")
    return files


def serve(ray: ModuleType, files: Mapping[str, Sequence[Path]]) -> Any:
    """Handle of a ``FileServer`` on this machine."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(FileServer).options(num_cpus=0, max_concurrency=8, scheduling_strategy=here).remote(files)


def files_of(source: Path) -> list[Path]:
    """What an input consists of. Raises ValueError for a folder without images."""
    return image_sequence(source) or [source]


def read_block(path: Path, offset: int) -> bytes:
    """``BLOCK`` bytes at most. Raises OSError."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(BLOCK)


def write_blocks(path: Path, read: Callable[[int], bytes]) -> None:
    """A file of what ``read`` gives at each offset, until that is nothing. Raises OSError."""
    with path.open("wb") as file:
        while block := read(file.tell()):
            file.write(block)


@dataclass(frozen=True)
class Shared:
    """How a worker tells whether it sees what the driver sees."""

    key: str
    """Of the input, at ``server``."""
    probe: Path
    """A file in the job's folder..."""
    text: str
    """...and what is in it."""
    asked: Asked
    """With the input's hash."""
    server: Any
    """Handle of the ``FileServer`` actor; None: there is none."""
    never: bool = False
    """Take nothing as shared: for tests."""


class FarFiles:
    """A worker's side: what it has fetched, and segments that wait to be fetched from it."""

    def __init__(self) -> None:
        self._sees: dict[Path, bool] = {}
        self._out: Path | None = None

    def places(self, source: Path, file: Path, shared: Shared) -> tuple[Path, Path, bool]:
        """Input and output as this worker reaches them, and whether the driver sees the output.

        Raises OSError where they are not shared and there is no server.
        """
        if shared.probe not in self._sees:
            self._sees[shared.probe] = not shared.never and _sees(source, shared)
        if self._sees[shared.probe]:
            return source, file, True
        if shared.server is None:
            raise OSError(f"this worker does not see {source} and {shared.probe.parent}: put both on shared storage")
        if self._out is None:
            self._out = Path(tempfile.mkdtemp(prefix="oasis_segments_"))
        return fetch(shared.server, shared.key, source, shared.text), self._out / file.name, False

    def shares(self, shared: Shared) -> bool:
        """Whether ``places`` found that the driver's files are seen here."""
        return self._sees.get(shared.probe, False)

    def listing(self, name: str) -> list[str]:
        """Files of a finished segment, relative to where segments lie."""
        assert self._out is not None
        place = self._out / name
        return [f"{name}/{file.name}" for file in sorted(place.iterdir())] if place.is_dir() else [name]

    def read(self, name: str, offset: int) -> bytes:
        """A block of a file of ``listing``. Raises OSError."""
        assert self._out is not None
        return read_block(self._out / name, offset)

    def drop(self, name: str) -> None:
        """The segment has arrived."""
        assert self._out is not None
        place = self._out / name
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)

    def clear(self, text: str) -> None:
        """Remove all that was fetched for the job of that ``Shared.text``, and what waits."""
        shutil.rmtree(_folder(text), ignore_errors=True)
        if self._out is not None:
            shutil.rmtree(self._out, ignore_errors=True)
            self._out = None


def _sees(source: Path, shared: Shared) -> bool:
    try:
        if shared.probe.read_text(encoding="utf-8") != shared.text:
            return False
        now = {f"input.{name}": value for name, value in hash_input(source).items()}
    except (OSError, ValueError):
        return False
    return all(shared.asked.get(name) == value for name, value in now.items())


def fetch(server: Any, key: str, source: Path, text: str) -> Path:
    """An input (or model) under a temporary name on this machine, fetched by the first of its workers that needs it.

    Raises OSError where there is no room.
    """
    import ray

    place = _folder(text) / hashlib.sha256(key.encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    names: list[str] = ray.get(server.names.remote(key))
    with FileLock(place.with_suffix(".lock")):
        for number, name in enumerate(names):
            if (place / name).exists():
                continue
            part = place / f"{name}.part"
            write_blocks(part, lambda offset, number=number: ray.get(server.read.remote(key, number, offset)))  # type: ignore[misc]
            part.replace(place / name)
    return place / names[0] if names == [source.name] else place if _is_folder(source, names) else place / source.name


def _is_folder(source: Path, names: Sequence[str]) -> bool:
    """Whether images were named by their folder, not by a pattern."""
    return "%" not in source.name and source.name not in names


def _folder(text: str) -> Path:
    return Path(tempfile.gettempdir()) / f"oasis_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def bring(ask: Callable[..., Any], name: str, folder: Path) -> None:
    """Copy a finished segment from a worker into the job's folder.

    ``ask``: a method of the worker's ``FarFiles`` by name, with its arguments. Raises OSError.
    """
    try:
        for file in ask("listing", name):
            target = folder / file
            target.parent.mkdir(exist_ok=True)
            write_blocks(target, lambda offset, file=file: ask("read", file, offset))  # type: ignore[misc]
    except BaseException:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
        raise
    ask("drop", name)

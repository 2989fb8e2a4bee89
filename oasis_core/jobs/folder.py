"""The folder beside the target in which a job keeps its finished segments; every change of its manifest is atomic."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ..routing.spec import RoutingSpec
from .fingerprint import hash_file
from .lock import JobLock
from .manifest import Asked, Border, Manifest, SegmentRecord, differences

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
ENDING = ".oasis"
"""The job folder of ``film.mp4`` is ``film.mp4.oasis``."""


class JobFolder:
    """A job's place on the disk and its state, held by this process until the ``with`` block ends. Made by ``open_job``."""

    def __init__(self, path: Path, manifest: Manifest, lock: JobLock) -> None:
        self.path, self.manifest, self._lock = path, manifest, lock
        self._changing = threading.Lock()
        """Segments are added by the writer's thread, decisions by the model's."""

    def __enter__(self) -> JobFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._lock.release()

    def update(self, manifest: Manifest) -> None:
        """Make ``manifest`` the job's state, on the disk first. Raises OSError."""
        part = self.path / (MANIFEST + ".part")
        with part.open("w", encoding="utf-8") as file:
            file.write(manifest.to_json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path / MANIFEST)
        self.manifest = manifest

    def add(self, segment: SegmentRecord, border: Border) -> None:
        """Keep a segment whose file is complete, up to ``border``. Raises OSError."""
        make_durable(self.path / segment.name)
        with self._changing:
            self.update(self.manifest.with_segment(segment, border))

    def decide(self, shot: int, routing: RoutingSpec) -> None:
        """Keep the routing that was decided for the shot that begins with that frame. Raises OSError."""
        with self._changing:
            decided = {**self.manifest.decided, str(shot): routing.to_json()}
            self.update(replace(self.manifest, decided=decided))

    def add_finished(self, segment: SegmentRecord) -> None:
        """Keep a segment whose file is complete, in any order. Raises OSError."""
        make_durable(self.path / segment.name)
        with self._changing:
            self.update(self.manifest.with_finished(segment))

    def clean(self) -> None:
        """Remove what an interruption left half done; segments that are damaged are given up, the first one with those
        that follow it."""
        manifest = self.manifest
        checked = not (manifest.joining or manifest.joined)
        for number, segment in enumerate(manifest.segments if checked else ()):
            if not self._is_whole(segment):
                log.warning("%s is damaged or missing: made again, with all after it", self.path / segment.name)
                self.update(replace(manifest, segments=manifest.segments[:number], complete=False))
                break
        for segment in self.manifest.ahead if checked else ():
            if not self._is_whole(segment):
                log.warning("%s is damaged or missing: made again", self.path / segment.name)
                self.update(replace(self.manifest, ahead=tuple(s for s in self.manifest.ahead if s != segment)))
        kept = {MANIFEST, *(segment.name for segment in (*self.manifest.segments, *self.manifest.ahead))}
        for file in self.path.iterdir():
            if file.name not in kept and _is_ours(file):
                _delete(file)

    def _is_whole(self, segment: SegmentRecord) -> bool:
        file = self.path / segment.name
        return file.exists() and hash_file(file) == segment.sha256

    def remove(self) -> None:
        """Delete the folder; what is not the job's own stays, and the folder with it."""
        try:
            for file in sorted(self.path.iterdir(), key=lambda f: f.name == MANIFEST):  # the manifest last
                if _is_ours(file):
                    _delete(file)
            self._lock.release_and_remove()
            self.path.rmdir()
        except OSError as e:
            log.warning("%s could not be removed whole (%s)", self.path, e)


def open_job(target: Path, asked: Asked, resume: bool) -> JobFolder:
    """The job folder for ``target``: a new one, or with ``resume`` the one that is there.

    Raises:
        OSError: there is one and ``resume`` is False, another process is at work in it, or it cannot be made.
        ValueError: it is damaged, or the job of something else; the message says what differs.
    """
    path = job_path(target)
    existed = path.exists()
    path.mkdir(exist_ok=True)
    lock = JobLock(path)
    try:
        if existed and not resume:
            raise FileExistsError(
                f"an unfinished job for {target} is in {path}: go on with --resume, or delete that folder to start anew"
            )
        return _opened(path, target, asked, lock)
    except BaseException:
        lock.release()
        raise


def _opened(path: Path, target: Path, asked: Asked, lock: JobLock) -> JobFolder:
    manifest = read_manifest(path)
    if manifest is None:
        folder = JobFolder(path, Manifest(asked), lock)
        folder.update(folder.manifest)
    else:
        if changed := differences(manifest.asked, asked):
            raise ValueError(
                f"{path} is of another job ({'; '.join(changed)}): give what it was, or delete that folder to start anew"
            )
        if manifest.joined and not target.exists():
            manifest = Manifest(asked)  # it was finished, and the user has removed it
        folder = JobFolder(path, manifest, lock)
        folder.update(manifest)
    folder.clean()
    return folder


def job_path(target: Path) -> Path:
    """Where the job folder of a target is."""
    return target.with_name(target.name + ENDING)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a job folder; None where there is none. Raises ValueError where it is damaged, OSError."""
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        text = ""
    try:
        return Manifest.from_json(text)
    except ValueError as e:
        raise ValueError(f"{path / MANIFEST} is damaged ({e}); delete that folder to start anew") from None


def unfinished_target(folder: Path, prefix: str, asked: Asked) -> Path | None:
    """The target in ``folder``, its name beginning with ``prefix``, whose unfinished job asks for exactly that; None: none.

    Damaged jobs and those of something else are passed over.
    """
    for path in sorted(folder.glob(f"*{ENDING}")):
        if not path.name.startswith(prefix):
            continue
        try:
            manifest = read_manifest(path)
        except (ValueError, OSError) as e:
            log.warning("%s", e)
            continue
        if manifest is not None and not manifest.joined and not differences(manifest.asked, asked):
            return path.with_name(path.name.removesuffix(ENDING))
    return None


def make_durable(path: Path) -> None:
    """Have a file, or all files of a folder, on the disk before going on."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())


def _is_ours(file: Path) -> bool:
    return file.name.startswith((MANIFEST, "segment_", "joined"))


def _delete(file: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)

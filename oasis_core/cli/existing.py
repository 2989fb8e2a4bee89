"""Outputs that are there already: left alone, replaced where that is asked for, refused else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ..jobs.folder import MANIFEST, job_path

log = logging.getLogger(__name__)

Pair = tuple[Path, Path]
"""An input and its output."""


def is_done(source: Path, target: Path) -> bool:
    """Whether the output is there, another file than the input, not older than it, and not in the making."""
    if is_unfinished(target) or not target.exists() or not source.exists() or source.samefile(target):
        return False
    return target.stat().st_mtime >= source.stat().st_mtime


def is_unfinished(target: Path) -> bool:
    """Whether a job for it waits to go on."""
    return (job_path(target) / MANIFEST).exists()


def check_replaced(pairs: Sequence[Pair], overwrite: bool, resume: bool) -> None:
    """Refuse to replace finished files unasked. Those that are the input, folders and unfinished jobs are refused elsewhere.

    ``resume`` replaces what is older than its input (``is_done`` says what it leaves alone), and says so.

    Raises ValueError where both are asked for, FileExistsError for an output that is there; nothing is touched.
    """
    if overwrite and resume:
        raise ValueError("--overwrite makes finished outputs again, --resume leaves them alone: give one of them")
    there = [target for source, target in pairs if target.is_file() and not _is_same(source, target)]
    finished = [target for target in there if not is_unfinished(target)]
    if not finished or overwrite:
        return
    if resume:
        for target in finished:
            log.info("%s is older than its input: it is made again", target)
        return
    which = (
        f"{finished[0]} exists already" if len(pairs) == 1 else f"{len(finished)} of {len(pairs)} outputs exist already"
    )
    example = "" if len(pairs) == 1 else f", such as {finished[0]}"
    raise FileExistsError(
        f"{which}{example}: --overwrite replaces finished outputs, --resume leaves them alone; or give another name"
    )


def _is_same(source: Path, target: Path) -> bool:
    return source.exists() and source.samefile(target)

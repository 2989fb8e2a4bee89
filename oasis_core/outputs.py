"""Whether a file can be put where a user wants it, known before any work."""

from __future__ import annotations

import os
from pathlib import Path


def check_folder(path: Path) -> None:
    """Raises OSError, one line, where the folder that ``path`` is to lie in is not there or takes no files."""
    if not path.parent.is_dir():
        raise OSError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise OSError(f"cannot write {path}: the folder {path.parent} is not writable")

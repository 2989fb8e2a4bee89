"""One process at a time works on a job folder.

The lock is the operating system's, on a file in the folder (``flock``, ``LockFileEx``): it ends with the process that holds it,
so that one that was killed leaves nothing to clean up. By filelock, which torch brings along.
"""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "lock"
"""Name of the file. That it is there says nothing; whether it is locked does."""


class JobLock:
    """Held from the time it is made. Raises BlockingIOError where another process holds it, OSError."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._lock = FileLock(self.path, timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise BlockingIOError(f"another process is at work in {folder}: wait until it is done, or end it") from None

    def release(self) -> None:
        """Let others in; a second time does nothing."""
        self._lock.release()

    def release_and_remove(self) -> None:
        """The same, and the file goes. Raises OSError."""
        if os.name == "nt":  # deletes no open file
            self.release()
            self.path.unlink(missing_ok=True)
        else:  # in this order nobody can lock a file that is about to go
            self.path.unlink(missing_ok=True)
            self.release()

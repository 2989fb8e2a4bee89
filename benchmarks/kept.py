"""Results of a long script, kept in its JSON file as they come: stopped and started again, it goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Kept:
    """``results`` by name, beside facts about the run."""

    def __init__(self, path: Path | None, facts: dict[str, Any], same: dict[str, Any]) -> None:
        """``same``: what the results depend on; a file that was made with something else is refused.

        Raises:
            ValueError: the file is of another model or of other settings.
        """
        self._path, self._facts = path, {**facts, "settings": same}
        self.results: dict[str, Any] = {}
        if path is not None and path.is_file():
            old = json.loads(path.read_text(encoding="utf-8"))
            if (was := old.get("settings")) != json.loads(json.dumps(same)):
                raise ValueError(f"{path.name} was made with {was}, this is {same}; give another --json")
            self.results = old["results"]

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of that name: what is kept, else made and kept."""
        if name not in self.results:
            self.results[name] = make()
            self.save()
        return self.results[name]

    def save(self) -> None:
        """Written beside and renamed: a file is whole or as it was."""
        if self._path is None:
            return
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps({**self._facts, "results": self.results}, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, self._path)

"""What an OASIS file says of itself, in the safetensors header."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..model.config import OasisConfig
from ..routing.spec import RoutingSpec

FORMAT = "oasis"
VERSION = "1"


@dataclass(frozen=True)
class Metadata:
    """Everything but the tensors."""

    config: OasisConfig
    routing: RoutingSpec
    licence: str
    """SPDX identifier or a short text: the licence of the weights."""
    notes: str = ""
    """Where the weights come from: recipe, date, commit."""
    trained: bool = True
    """False: converted from another model and not trained since; it cannot upscale."""

    def to_header(self) -> dict[str, str]:
        """Header strings; ``from_header`` reads them back to an equal object."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "config": json.dumps(self.config.to_dict()),
            "routing": self.routing.to_json(),
            "license": self.licence,
            "notes": self.notes,
            **({} if self.trained else {"trained": "false"}),
        }

    @classmethod
    def from_header(cls, header: dict[str, str]) -> Metadata:
        """Raises ValueError with one line where the header is not an OASIS one or does not fit together."""
        if header.get("format") != FORMAT:
            raise ValueError(
                'it is a safetensors file, but not an OASIS checkpoint (its header has no "format": "oasis")'
            )
        if header.get("version") != VERSION:
            raise ValueError(f"its format version is {header.get('version')!r}; this program reads version {VERSION}")
        try:
            config = json.loads(header["config"])
            routing = header["routing"]
        except KeyError as e:
            raise ValueError(f"its header lacks {e}") from None
        except json.JSONDecodeError as e:
            raise ValueError(f"its config is not readable JSON ({e})") from None
        if not isinstance(config, dict):
            raise ValueError("its config is not a JSON object")
        result = cls(
            OasisConfig.from_dict(config),
            RoutingSpec.from_json(routing),
            header.get("license", "not stated"),
            header.get("notes", ""),
            header.get("trained") != "false",
        )
        result.routing.check_fits(result.config.depth, result.config.heads)
        return result

"""What a job folder says of itself: what was asked for, and which segments are finished. Pure data, and its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..model.decoders import DecodePlan
from ..plan import Position
from ..routing.spec import RoutingSpec

FORMAT = 4
"""Version of the file; another one is refused."""

Asked = dict[str, "str | int | float | bool | None"]
"""Everything that the output depends on, flat: ``input.bytes``, ``setting.scale``, ``model``..."""


@dataclass(frozen=True)
class Border:
    """The end of a segment that is full."""

    position: Position
    """Where the next one begins."""
    complete: bool = False
    """There is no next one."""
    problem: str | None = None
    """One line where the input broke off."""
    end: int | None = None
    """Time stamp at which the last frame of all ends."""
    exact: bool = True
    """Whether all frames up to it can be found again by their time stamps."""


@dataclass(frozen=True)
class SegmentRecord:
    """A finished segment."""

    name: str
    """File or (images) folder in the job folder."""
    start: int
    """First frame."""
    stop: int
    """Frame after the last one."""
    next_shot: int
    """First frame of the shot that frame ``stop`` is in: with it the next segment can be made."""
    pts: int
    """Time stamp of the first frame, in the input's time base."""
    checksum: int
    """The first frame's, as it came from the input (``Frame.checksum``)."""
    reorder: int
    """Packets that a frame may come before its turn (B-frames)."""
    sha256: str
    seconds: float
    """Time that it took."""

    def __post_init__(self) -> None:
        if not (0 <= self.next_shot <= self.stop and 0 <= self.start < self.stop and self.reorder >= 0):
            raise ValueError(f"segment {self.name} of frames {self.start} to {self.stop} makes no sense")
        if "/" in self.name or "\\" in self.name or not self.name.startswith("segment_"):
            raise ValueError(f"segment file is {self.name!r}; expected a plain name such as segment_0000000.nut")


@dataclass(frozen=True)
class Manifest:
    """A job's state."""

    asked: Asked
    segments: tuple[SegmentRecord, ...] = ()
    """Finished ones, each beginning where the one before ends, from frame 0 on."""
    ahead: tuple[SegmentRecord, ...] = ()
    """Finished ones after a gap, in the input's order: several workers finish in any order."""
    length: int | None = None
    """Frames of the input, once it was read to its end while segments were missing; None: not known."""
    chunk_frames: int | None = None
    """Smaller than what was asked for, since memory ran out; None: as asked."""
    tile: int | None = None
    """Likewise."""
    decoder: str | None = None
    """``DecodePlan.to_text`` that the memory was planned for; None: as the decoder comes."""
    complete: bool = False
    """All segments are there."""
    joining: bool = False
    """Images are being moved out of them."""
    joined: bool = False
    """The target is in place; what is left of the folder may go."""
    problem: str | None = None
    """One line where the input broke off."""
    end: int | None = None
    """Time stamp at which the last frame ends, once all segments are there; None: not known."""
    exact: bool = True
    """Whether frames of the input can be found by their time stamps, as far as it was read."""
    decided: dict[str, str] = field(default_factory=dict)
    """Routings that were decided while it ran: first frame of the shot, JSON."""

    @property
    def routings(self) -> dict[int, RoutingSpec]:
        """``decided``, read. Raises ValueError where it is no such thing."""
        return {int(shot): RoutingSpec.from_json(text) for shot, text in self.decided.items()}

    @property
    def decode_plan(self) -> DecodePlan | None:
        """``decoder``, read. Raises ValueError where it is no such thing."""
        return None if self.decoder is None else DecodePlan.of_text(self.decoder)

    @property
    def position(self) -> Position:
        """Where the next segment begins."""
        return Position(self.segments[-1].stop, self.segments[-1].next_shot) if self.segments else Position()

    @property
    def finished(self) -> int:
        """Frames in all segments that are there."""
        return sum(s.stop - s.start for s in (*self.segments, *self.ahead))

    @property
    def gap_end(self) -> int | None:
        """First frame after ``position`` that is finished already; None: none is."""
        return self.ahead[0].start if self.ahead else None

    def with_segment(self, segment: SegmentRecord, border: Border) -> Manifest:
        """And the one at ``position``, made by reading the input up to ``border``."""
        exact = self.exact and border.exact
        if border.complete:
            told = replace(self, length=border.position.frame, problem=border.problem, end=border.end, exact=exact)
        else:
            told = replace(self, exact=exact)
        return told.with_finished(segment)

    def with_finished(self, segment: SegmentRecord) -> Manifest:
        """And that one, wherever it lies. Raises ValueError where it overlaps another."""
        ahead = sorted((*self.ahead, segment), key=lambda s: s.start)
        segments = list(self.segments)
        while ahead and ahead[0].start == (segments[-1].stop if segments else 0):
            segments.append(ahead.pop(0))
        _check_order(segments, ahead)
        return replace(self, segments=tuple(segments), ahead=tuple(ahead)).with_completeness()

    def with_length(self, length: int, problem: str | None, end: int | None, exact: bool) -> Manifest:
        """Of an input that was read to its end."""
        told = replace(self, length=length, problem=problem, end=end, exact=self.exact and exact)
        return told.with_completeness()

    def with_completeness(self) -> Manifest:
        """``complete`` as length and segments say."""
        return replace(self, complete=self.length is not None and self.position.frame == self.length)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises ValueError, one line, for anything that ``to_json`` did not write."""
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as e:
            raise ValueError(f"it is not readable JSON ({e})") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f"it is not a job manifest of format {FORMAT}")
        segments, ahead = data.pop("segments", None), data.pop("ahead", None)
        if not isinstance(segments, list) or not isinstance(ahead, list):
            raise ValueError("its segments are not a list")
        _check_fields(cls, {**data, "segments": (), "ahead": ()})
        asked = data["asked"]
        if not all(isinstance(v, (str, int, float, bool, type(None))) for v in asked.values()):
            raise ValueError("what was asked for is not plain text and numbers")
        if not all(
            type(shot) is str and shot.isdecimal() and type(text) is str for shot, text in data["decided"].items()
        ):
            raise ValueError("what was decided is not a routing for each shot")
        records, later = tuple(_record(s) for s in segments), tuple(_record(s) for s in ahead)
        _check_order(records, later)
        manifest = cls(**{**data, "segments": records, "ahead": later})
        manifest.routings  # noqa: B018 - raises where one cannot be read
        manifest.decode_plan  # noqa: B018 - likewise
        return manifest


def _check_order(segments: Sequence[SegmentRecord], ahead: Sequence[SegmentRecord]) -> None:
    stops = [0, *(s.stop for s in segments)]
    if any(s.start != stop for s, stop in zip(segments, stops, strict=False)):
        raise ValueError("its segments do not follow each other")
    stops = [stops[-1] + 1, *(s.stop for s in ahead)]
    if any(s.start < stop for s, stop in zip(ahead, stops, strict=False)):
        raise ValueError("its segments after the gap overlap or are out of order")


def differences(had: Asked, have: Asked) -> list[str]:
    """One text for each thing that is not what it was."""
    return [
        f"{name} was {had.get(name)!r}, is {have.get(name)!r}"
        for name in sorted({*had, *have})
        if had.get(name) != have.get(name)
    ]


def _record(data: object) -> SegmentRecord:
    if not isinstance(data, dict):
        raise ValueError("a segment is not a JSON object")
    _check_fields(SegmentRecord, data)
    return SegmentRecord(**data)


KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "int | None": (int, type(None)),
    "str | None": (str, type(None)), "Asked": (dict,), "dict[str, str]": (dict,), "tuple[SegmentRecord, ...]": (tuple,),
}  # fmt: skip
"""What JSON gives for the annotations above."""


def _check_fields(cls: type[Any], data: dict[str, Any]) -> None:
    names = {f.name: str(f.type) for f in fields(cls)}
    if set(data) != set(names):
        raise ValueError(f"its fields are {sorted(data)}; expected {sorted(names)}")
    for name, kind in names.items():
        value = data[name]
        wrong = not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and "bool" not in kind)
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"its {name} is {str(value)[:40]!r}; expected {kind}")

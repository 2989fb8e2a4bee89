"""Attention-specialisation routing as data: one pattern for each layer and head (paper section 3.2).

Pure data, hashable, JSON in and out; nothing here touches tensors, so nodes, CLI and model may all read it.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .extent import EXAMPLES, Extent

FORMAT = "oasis-routing"
VERSION = 1
DEFAULT_WINDOW = (3, 5, 5)
"""Sliding window (frames, token rows, token columns): paper section 3.2."""


class HeadPattern(str, Enum):
    """What a query attends to."""

    GLOBAL = "global"
    """Every token of the chunk."""
    INTRA_FRAME = "intra-frame"
    """Every token of the query's own latent frame."""
    WINDOW = "window"
    """The sliding neighbourhood of ``RoutingSpec.window`` around the query, truncated at the borders."""


Pattern = HeadPattern | Extent
"""A preset, or an extent of the head's own."""


def extent_of(pattern: Pattern, window: tuple[int, int, int]) -> Extent:
    """What a head of that pattern sees, ``window`` being the routing's."""
    if isinstance(pattern, Extent):
        return pattern
    return {
        HeadPattern.GLOBAL: Extent(None, None, None),
        HeadPattern.INTRA_FRAME: Extent(1, None, None),
        HeadPattern.WINDOW: Extent(*window),
    }[pattern]


def named(extent: Extent, window: tuple[int, int, int]) -> Pattern:
    """The preset that the extent is, else itself."""
    return next((p for p in HeadPattern if extent_of(p, window) == extent), extent)


def kinds_of(patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    """The patterns of a layer, each once, in the order in which they are worked on: presets first."""
    own = sorted({p for p in patterns if isinstance(p, Extent)}, key=str)
    return (*(p for p in HeadPattern if p in patterns), *own)


def grouped_order(patterns: tuple[Pattern, ...]) -> tuple[int, ...]:
    """The layer's heads, those of a pattern side by side."""
    return tuple(n for kind in kinds_of(patterns) for n, p in enumerate(patterns) if p == kind)


def pattern_text(pattern: Pattern) -> str:
    """``global``, ``intra-frame``, ``window``, or an extent such as ``3x7x7``."""
    return pattern.value if isinstance(pattern, HeadPattern) else str(pattern)


def parse_pattern(text: object) -> Pattern:
    """What ``pattern_text`` gave. Raises ValueError, one line, with the patterns there are."""
    try:
        return HeadPattern(text) if text in [p.value for p in HeadPattern] else Extent.parse(str(text))
    except ValueError:
        known = ", ".join(p.value for p in HeadPattern)
        got = textwrap.shorten(repr(text), 60, placeholder="...")
        raise ValueError(f"{got}; known patterns: {known}, or an extent such as {EXAMPLES}") from None


def parse_patterns(text: str) -> tuple[Pattern, ...]:
    """Patterns by commas. Raises ValueError, one line."""
    try:
        return tuple(parse_pattern(word.strip().lower()) for word in text.split(","))
    except ValueError as e:
        raise ValueError(f"pattern is {e}") from None


@dataclass(frozen=True)
class RoutingSpec:
    """Pattern of every head of every layer.

    ``layers[i][n]`` is the pattern of head n in block i; every layer has the same number of heads. An extent that is a
    preset's becomes that preset, so that routings that do the same are equal.
    ``window`` is (t, h, w) in tokens, each extent odd: a query sees ``extent // 2`` tokens to each side.

    Raises:
        ValueError: no layers, ragged layers, or an extent that is even or below 1.
    """

    layers: tuple[tuple[Pattern, ...], ...]
    window: tuple[int, int, int] = DEFAULT_WINDOW

    def __post_init__(self) -> None:
        if not self.layers or not self.layers[0]:
            raise ValueError("routing has no layers or no heads; give a pattern for each layer and head")
        counts = {len(layer) for layer in self.layers}
        if len(counts) > 1:
            raise ValueError(f"routing layers have different head counts {sorted(counts)}; every layer needs the same")
        if len(self.window) != 3 or any(type(e) is not int or e < 1 or e % 2 == 0 for e in self.window):
            raise ValueError(
                f"routing window is {self.window!r}; it needs three odd whole numbers (t, h, w), such as [3, 5, 5]"
            )
        presets = {extent_of(p, self.window): p for p in HeadPattern}
        layers = tuple(tuple(presets.get(p, p) if isinstance(p, Extent) else p for p in layer) for layer in self.layers)
        object.__setattr__(self, "layers", layers)

    @property
    def depth(self) -> int:
        return len(self.layers)

    @property
    def heads(self) -> int:
        return len(self.layers[0])

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """Those that heads use: the presets, then extents by their text."""
        used = {p for layer in self.layers for p in layer}
        own = sorted((p for p in used if isinstance(p, Extent)), key=str)
        return (*(p for p in HeadPattern if p in used), *own)

    def heads_of(self, layer: int, pattern: Pattern) -> tuple[int, ...]:
        """Indices of the heads of ``layer`` that use ``pattern``, ascending."""
        return tuple(n for n, p in enumerate(self.layers[layer]) if p == pattern)

    def share(self, pattern: Pattern) -> float:
        """Share of all heads that use ``pattern``, 0 to 1."""
        return sum(layer.count(pattern) for layer in self.layers) / (self.depth * self.heads)

    def shares(self) -> str:
        """All of them in words: ``4% global, 96% window``; the presets always, extents where there are any."""
        own = [p for p in self.patterns if isinstance(p, Extent)]
        return ", ".join(f"{self.share(p):.0%} {pattern_text(p)}" for p in (*HeadPattern, *own))

    def cost(self, sizes: tuple[int, int, int]) -> float:
        """Arithmetic of the attention against all heads global, 0 to 1, on a token grid of those sides (t, h, w)."""
        pairs = sum(extent_of(p, self.window).pairs(sizes) for layer in self.layers for p in layer)
        return pairs / (self.depth * self.heads * (sizes[0] * sizes[1] * sizes[2]) ** 2)

    def check_fits(self, depth: int, heads: int) -> None:
        """Raise ValueError unless this routing has ``depth`` layers of ``heads`` heads."""
        if (self.depth, self.heads) != (depth, heads):
            raise ValueError(
                f"routing is for another model: it has {self.depth} layers x {self.heads} heads, "
                f"this model has {depth} x {heads}; use the routing that belongs to this checkpoint"
            )

    @classmethod
    def uniform(
        cls, depth: int, heads: int, pattern: Pattern, window: tuple[int, int, int] = DEFAULT_WINDOW
    ) -> RoutingSpec:
        """Every head of every layer uses ``pattern``."""
        return cls(layers=((pattern,) * heads,) * depth, window=window)

    @classmethod
    def by_ratio(
        cls,
        depth: int,
        heads: int,
        global_share: float,
        intra_frame_share: float,
        window: tuple[int, int, int] = DEFAULT_WINDOW,
    ) -> RoutingSpec:
        """The same split in every layer: first heads global, then intra-frame, the rest window.

        Shares are fractions of the heads, each in 0..1 and together at most 1, rounded to whole heads.
        """
        if not (
            0 <= global_share <= 1 and 0 <= intra_frame_share <= 1 and global_share + intra_frame_share <= 1 + 1e-6
        ):
            raise ValueError(
                f"head shares are global {global_share}, intra-frame {intra_frame_share}; "
                "each must be 0 to 1 and their sum at most 1 (the rest are window heads)"
            )
        n_global = round(global_share * heads)
        n_intra = min(heads - n_global, round(intra_frame_share * heads))
        layer = (
            (HeadPattern.GLOBAL,) * n_global
            + (HeadPattern.INTRA_FRAME,) * n_intra
            + (HeadPattern.WINDOW,) * (heads - n_global - n_intra)
        )
        return cls(layers=(layer,) * depth, window=window)

    def to_json(self) -> str:
        """One JSON object; ``from_json`` reads it back to an equal spec."""
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "window": list(self.window),
                "layers": [[pattern_text(p) for p in layer] for layer in self.layers],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> RoutingSpec:
        """Parse what ``to_json`` wrote. Raises ValueError with one line for anything else."""
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as e:
            raise ValueError(f"routing is not readable JSON ({e}); expected the file that OASIS wrote") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f'routing JSON has no "format": "{FORMAT}"; expected the file that OASIS wrote')
        if data.get("version") != VERSION:
            raise ValueError(f"routing version is {data.get('version')!r}; this program reads version {VERSION}")
        layers, window = data.get("layers"), data.get("window", list(DEFAULT_WINDOW))
        if not isinstance(layers, list) or not all(isinstance(layer, list) for layer in layers):
            raise ValueError('routing JSON needs "layers": a list with one list of patterns for each layer')
        if not isinstance(window, list):
            raise ValueError(f'routing "window" is {window!r}; it needs three odd whole numbers, such as [3, 5, 5]')
        return cls(
            layers=tuple(tuple(_pattern(p, i) for p in layer) for i, layer in enumerate(layers)), window=tuple(window)
        )

    @classmethod
    def from_file(cls, path: Path) -> RoutingSpec:
        """Read a JSON file. Raises FileNotFoundError or ValueError, each one line that names the file."""
        if not path.is_file():
            raise FileNotFoundError(f"routing file not found: {path}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"routing file {path} is not text; expected the JSON file that OASIS wrote") from None
        try:
            return cls.from_json(text)
        except ValueError as e:
            raise ValueError(f"routing file {path}: {textwrap.shorten(str(e), 500, placeholder='...')}") from None


def _pattern(value: object, layer: int) -> Pattern:
    try:
        return parse_pattern(value)
    except ValueError as e:
        raise ValueError(f"routing layer {layer} names the pattern {e}") from None

"""A routing with what it was found from: made from clips, kept as JSON that every reader of routings takes."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..geometry import upsample_and_pad
from ..jobs.fingerprint import hash_model
from ..patchify import frame_count
from ..pipeline import Upscaler
from ..plan import plan_tiles
from ..scene_cuts import SceneCutDetector
from .assignment import assign_by_budget, assign_by_threshold
from .calibration import CANDIDATES, QUERIES, Divergences, check_dense, measure
from .spec import Pattern, RoutingSpec, parse_pattern, pattern_text

RULES = {"threshold": assign_by_threshold, "budget": assign_by_budget}
"""threshold: cheapest pattern whose KL is at most that many nats; budget: least sum of KL at that share of dense."""
DEFAULT_BUDGET = 0.35
"""Share of the dense attention's arithmetic where neither threshold nor budget is given."""


@dataclass(frozen=True)
class KlTable:
    """KL(local || global) of each pattern, layer and head, in nats."""

    patterns: tuple[Pattern, ...]
    mean: tuple[tuple[tuple[float, ...], ...], ...]
    """``mean[p][layer][head]``."""
    half_width: tuple[tuple[tuple[float, ...], ...], ...]
    """Of the 95 % confidence interval."""

    def of(self, pattern: Pattern, layer: int, head: int) -> float | None:
        """Mean KL of a head under that pattern; 0 for global, None where it was no candidate."""
        if pattern in self.patterns:
            return self.mean[self.patterns.index(pattern)][layer][head]
        return 0.0 if pattern == "global" else None


@dataclass(frozen=True)
class CalibratedRouting:
    """A routing, the divergences behind it, and how they were measured."""

    routing: RoutingSpec
    kl: KlTable
    about: dict[str, Any]
    """Plain JSON values: model, weights' hash, clips, queries, seed, fidelity, rule, cost."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Token grid of the first clip."""
        t, h, w = self.about["clips"][0]["tokens"]
        return t, h, w

    def to_json(self) -> str:
        """A routing's JSON with one more key, ``calibration``; ``from_json`` reads it back to an equal object."""
        names = [pattern_text(p) for p in self.kl.patterns]
        tables = {"kl": self.kl.mean, "kl_95": self.kl.half_width}
        calibration = {
            **self.about,
            **{key: dict(zip(names, table, strict=True)) for key, table in tables.items()},
        }
        return json.dumps({**json.loads(self.routing.to_json()), "calibration": calibration})

    @classmethod
    def from_json(cls, text: str) -> CalibratedRouting:
        """Raises ValueError, one line, for what is no routing, or one without a calibration."""
        routing = RoutingSpec.from_json(text)
        data = json.loads(text).get("calibration")
        if not isinstance(data, dict):
            raise ValueError("routing has no calibration in it; expected the file that `oasis calibrate` wrote")
        about = {key: value for key, value in data.items() if key not in ("kl", "kl_95")}
        try:
            kl, half = data["kl"], data["kl_95"]
            patterns = tuple(parse_pattern(name) for name in kl)
            mean = tuple(_table(kl[name], routing) for name in kl)
            table = KlTable(patterns, mean, tuple(_table(half[name], routing) for name in kl))
            found = cls(routing, table, about)
            if any(type(side) is not int or side < 1 for side in found.sizes):
                raise ValueError(f"its tokens are {found.sizes}")
        except (LookupError, TypeError, ValueError, AttributeError) as e:
            why = textwrap.shorten(str(e), 200, placeholder="...")
            raise ValueError(f"routing's calibration is damaged ({why}); calibrate again") from None
        return found


def calibrate(
    upscaler: Upscaler,
    name: str,
    clips: Iterable[tuple[str, Iterable[Tensor]]],
    rule: str,
    value: float,
    *,
    patterns: Sequence[Pattern] = CANDIDATES,
    queries: int = QUERIES,
    seed: int = 0,
    poll: Callable[[], None] | None = None,
) -> CalibratedRouting:
    """Measure a dense model on the first chunk of each clip, and assign.

    Args:
        upscaler: the model with its own routing, whose window is taken; its settings say what it is given.
        name: of the model, for the record.
        clips: name and frames ``(H, W, 3)`` in [0, 1] of each.
        rule, value: one of ``RULES`` and its number.

    Raises:
        ValueError: a model that is not dense, no clips, a rule, value or pattern that makes no sense; one line.
    """
    own = fixed_routing(upscaler)
    check_dense(own, name)
    if rule not in RULES:
        raise ValueError(f"assignment rule is {rule!r}; allowed: {', '.join(RULES)}")
    facts: list[dict[str, Any]] = []

    def chunks() -> Iterable[Tensor]:
        for clip, frames in clips:
            pixels = first_chunk(upscaler, frames)
            facts.append({"name": clip, "pixels": list(pixels.shape[2:])})
            yield pixels

    found = measure(upscaler.model, chunks(), own.window, queries, seed, patterns, upscaler.fidelity, poll)
    routing = RULES[rule](found, value)
    for fact, grid in zip(facts, found.grids, strict=True):
        fact["tokens"] = [grid.t, grid.h, grid.w]
    about = {
        "model": name,
        "weights_sha256": hash_model(upscaler.model),
        "weights_dtype": str(upscaler.model.project.weight.dtype).removeprefix("torch."),
        "clips": facts, "queries": queries, "seed": seed, "fidelity": upscaler.fidelity, "rule": {rule: value},
        "attention_cost": cost_on(routing, found),
    }  # fmt: skip
    return CalibratedRouting(routing, kl_table(found), about)


def fixed_routing(upscaler: Upscaler) -> RoutingSpec:
    """The upscaler's routing. Raises ValueError where it is decided while a clip runs."""
    if not isinstance(upscaler.routing, RoutingSpec):
        raise ValueError("this model's routing is decided while a clip runs; give one that is fixed")
    return upscaler.routing


def told(found: CalibratedRouting) -> str:
    """One line: shares, cost, sum and mean of what localising loses."""
    routing, kl = found.routing, found.kl
    losses = [kl.of(p, i, n) or 0.0 for i, layer in enumerate(routing.layers) for n, p in enumerate(layer)]
    widest = max(v for table in kl.half_width for heads in table for v in heads)
    return (
        f"{routing.shares()}; attention {found.about['attention_cost']:.1%} of dense; "
        f"mean KL {sum(losses) / len(losses):.3f} nats, most {max(losses):.3f} (sampling: within {widest:.3f})"
    )


def kl_table(found: Divergences) -> KlTable:
    """What was measured, as plain numbers of six digits."""
    return KlTable(found.patterns, _rounded(found.mean), _rounded(found.half_width))


def cost_on(routing: RoutingSpec, found: Divergences) -> float:
    """Arithmetic of the attention against dense, 0 to 1, on the clips."""
    dense = [g.length**2 for g in found.grids]
    return sum(routing.cost((g.t, g.h, g.w)) * d for g, d in zip(found.grids, dense, strict=True)) / sum(dense)


@torch.no_grad()
def first_chunk(upscaler: Upscaler, frames: Iterable[Tensor]) -> Tensor:
    """What the transformer is given first of a clip: pixels ``(1, 3, T, H, W)`` in [-1, 1] of its first shot's first chunk.

    T is a chunk's, less in a shorter shot (whole groups alone); of a frame that goes in tiles the one in the middle.

    Raises:
        ValueError: no frames.
    """
    factor, most = upscaler.model.config.unshuffle[0], frame_count(upscaler.chunk, upscaler.model.config.unshuffle[0])
    detector = SceneCutDetector()
    held: list[Tensor] = []
    for frame in frames:
        if detector.begins_shot(frame) and held and upscaler.settings.scene_cuts:
            break
        held.append(frame[..., :3])
        if len(held) == most:
            break
    if not held:
        raise ValueError("the clip has no frames; give at least one")
    clip = torch.stack(held[: frame_count((len(held) - 1) // factor + 1, factor)])
    device = upscaler.model.project.weight.device
    pixels = upsample_and_pad(clip.to(device, torch.float32).clamp(0, 1), upscaler.geometry(*clip.shape[1:3]))
    cell = upscaler.model.config.pixel_multiple
    size = pixels.shape[3] // cell[0], pixels.shape[4] // cell[1]
    tiles = plan_tiles(*size, *upscaler.tiling(*size))
    y, x = (span.times(n) for span, n in zip(tiles[len(tiles) // 2], cell, strict=True))
    return pixels[..., y.start : y.stop, x.start : x.stop]


def read_calibrated(path: Path) -> CalibratedRouting:
    """Read a file that ``oasis calibrate`` wrote. Raises FileNotFoundError or ValueError, one line that names it."""
    RoutingSpec.from_file(path)
    try:
        return CalibratedRouting.from_json(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"routing file {path}: {e}") from None


def _rounded(table: Tensor) -> tuple[tuple[tuple[float, ...], ...], ...]:
    return tuple(tuple(tuple(float(f"{v:.6g}") for v in heads) for heads in layers) for layers in table.tolist())


def _table(value: Any, routing: RoutingSpec) -> tuple[tuple[float, ...], ...]:
    table = tuple(tuple(float(v) for v in heads) for heads in value)
    if len(table) != routing.depth or any(len(heads) != routing.heads for heads in table):
        raise ValueError(f"its table is not {routing.depth} layers x {routing.heads} heads")
    return table

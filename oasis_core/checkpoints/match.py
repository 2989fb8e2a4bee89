"""Which tensor of a file is which of ours: by tables of names, and one error that lists all that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]
MOST_TOLD = 20
"""Names that an error lists before it counts the rest."""


@dataclass(frozen=True)
class Naming:
    """How some project names the tensors."""

    name: str
    table: Mapping[str, str]
    """Start of our name -> start of theirs; the longest that fits counts."""

    def theirs(self, ours: str) -> str:
        """Raises KeyError for a name that the table does not know."""
        starts = [start for start in self.table if ours.startswith(start)]
        if not starts:
            raise KeyError(ours)
        start = max(starts, key=len)
        return self.table[start] + ours.removeprefix(start)


def match(
    what: str,
    wanted: Mapping[str, Shape],
    found: Mapping[str, Shape],
    namings: Iterable[Naming],
    prefixes: Iterable[str],
    may_be_there: Callable[[str], bool],
) -> tuple[str, dict[str, str]]:
    """The naming under which most of ``wanted`` is ``found``, and our name -> theirs (with prefix) under it.

    Shapes count as equal where they differ by sides of 1 alone.

    Args:
        what: for the error, such as the file's path.
        may_be_there: whether a name without its prefix is no mistake although nobody wants it.

    Raises:
        ValueError: missing, unexpected and mis-shaped tensors, all of them in one line.
    """
    tries = [
        (naming, prefix, {ours: prefix + naming.theirs(ours) for ours in wanted})
        for naming in namings
        for prefix in prefixes
    ]
    naming, prefix, names = max(tries, key=lambda t: sum(n in found for n in t[2].values()))
    used = set(names.values())
    missing = [theirs for theirs in names.values() if theirs not in found]
    if len(missing) == len(names):
        some = ", ".join(sorted(found)[:3])
        raise ValueError(f"{what}: none of the tensors wanted is in it (it has {some}, ...); give another file")
    extra = [n for n in found if n not in used and not may_be_there(n.removeprefix(prefix))]
    wrong = [
        f"{theirs} is {found[theirs]} instead of {wanted[ours]}"
        for ours, theirs in names.items()
        if theirs in found and _plain(found[theirs]) != _plain(wanted[ours])
    ]
    problems = [f"missing {n}" for n in missing] + [f"unexpected {n}" for n in extra] + wrong
    if problems:
        rest = len(problems) - MOST_TOLD
        more = f"; and {rest} more" if rest > 0 else ""
        raise ValueError(f"{what} ({naming.name} names) does not fit: {'; '.join(sorted(problems)[:MOST_TOLD])}{more}")
    return naming.name, names


def _plain(shape: Shape) -> Shape:
    return tuple(s for s in shape if s != 1) or (prod(shape),)

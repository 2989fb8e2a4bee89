"""The one step on a chunk: large frames in tiles; where the routing is decided as the clip runs, the decision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torch import Tensor

from .blend import OverlapAdd
from .model import OasisModel
from .plan import Span
from .routing.auto import Deciding, ShotRoutings
from .routing.spec import RoutingSpec

log = logging.getLogger(__name__)

Tile = tuple[Span, Span]


class OneStep:
    """A model with its routing and fidelity. Runs where the model is."""

    def __init__(self, model: OasisModel, routing: RoutingSpec | ShotRoutings, fidelity: float) -> None:
        """Raises ValueError where the model cannot be asked for that fidelity."""
        model.config.timestep_at(fidelity)
        self._model, self._routing, self._fidelity = model, routing, fidelity

    def undecided(self, shot: int) -> bool:
        """Whether the routing of the shot that begins with that frame is still to be decided."""
        return isinstance(self._routing, ShotRoutings) and self._routing.of(shot) is None

    def __call__(
        self, z_l: Tensor, shot: int, tiles: Sequence[Tile], overlap: int, poll: Callable[[], None] | None
    ) -> Tensor:
        """z_H of z_L ``(B, C, t, h, w)``, tiles and their overlap in tokens. A routing is decided on the middle tile."""
        patch = self._model.config.patch[1]

        def restored(tile: Tile) -> Tensor:
            y, x = (span.times(patch) for span in tile)
            return self._tile(z_l[..., y.start : y.stop, x.start : x.stop], shot, poll)

        middle = tiles[len(tiles) // 2]
        done = {middle: restored(middle)} if self.undecided(shot) or len(tiles) == 1 else {}
        if len(tiles) == 1:
            return done[middle]
        blended = OverlapAdd(z_l, *z_l.shape[3:])
        for tile in tiles:
            y, x = (span.times(patch) for span in tile)
            blended.add(done.pop(tile) if tile in done else restored(tile), y, x, overlap * patch)
        return blended.result()

    def _tile(self, z_l: Tensor, shot: int, poll: Callable[[], None] | None) -> Tensor:
        if isinstance(self._routing, RoutingSpec):
            return self._model.restore(z_l, self._routing, poll, self._fidelity)
        known, auto, config = self._routing.of(shot), self._routing.auto, self._model.config
        if known is not None:
            return self._model.restore(z_l, known, poll, self._fidelity)
        deciding = Deciding(auto)
        z_h = self._model.restore(z_l, auto.dense(config.depth, config.heads), poll, self._fidelity, deciding)
        decided = deciding.routing()
        log.info("routing of the shot from frame %d on: %s", shot, decided.shares())
        self._routing.decide(shot, decided)
        return z_h

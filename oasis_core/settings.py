"""What a user chooses for a job, and what is taken where nothing is said."""

from __future__ import annotations

from dataclasses import dataclass

from .color import ColorMethod

AUTO_TILE = 1280
"""Tile side (output pixels) that ``tile=None`` takes for frames that are not kept whole: bounds memory and the quadratic cost
of whole-frame heads."""
CHUNK_OVERLAP = 2
"""Latent frames that chunks share where nothing is said (DESIGN section 6)."""
DEFAULT_FIDELITY = 0.5
"""Fidelity where nothing is said, in models that have the control."""
TILE_OVERLAP = 128
"""Output pixels that tiles share where nothing is said."""
WHOLE_FRAME = 2560 * 1440
"""Output pixels up to which ``tile=None`` keeps the frame whole: tiles of ``AUTO_TILE`` with their overlaps would cost heads that
see everything more here (six tiles of 80x80 tokens instead of one frame of 90x160), and differ from it (docs/long_videos.md)."""
LARGEST_WHOLE = 4096 * 2176
"""Output pixels up to which ``tile=None`` keeps it whole where its memory is known to be there (``jobs/fit.py``). At 3840x2160
whole-frame heads take 3.2 times the work that they take in tiles, all else 0.6 times; it grows with the square of the pixels."""
DRAWN_AT_ONCE = 8 * 1280 * 720
"""Output pixels up to which ``at_once=None`` draws several latent frames in one call on a GPU: with single frames of 720p the
host took 7 ms each to start what an H100 did in 2.5 (benchmarks/tiny_parts.py)."""
MANY_AT_ONCE = ("cuda", "meta")
"""Devices where that is so: others have no such cost, and caches that hold a frame's work better than several frames'."""


@dataclass(frozen=True)
class UpscaleSettings:
    """What a user chooses for a job.

    Raises:
        ValueError: a value outside its range. (Sizes are checked against the input by ``geometry.plan_geometry``.)
    """

    scale: float | None = 4.0
    """Factor 1 to 4; None where a target size is given."""
    width: int | None = None
    """Target width in pixels; alone, the height keeps the aspect ratio."""
    height: int | None = None
    """Target height in pixels."""
    fidelity: float | None = None
    """0: all detail that the model invents; 1: faithful to the input; None: the middle, in models that have the control."""
    color: ColorMethod = ColorMethod.WAVELET
    """Colour correction against the input."""
    chunk_frames: int = 16
    """Frames that the transformer sees at once, 1 or more: memory and whole-clip heads grow with it."""
    chunk_overlap: int | None = None
    """Latent frames that neighbouring chunks share and cross-fade, fewer than a chunk holds; None: 2, or what a small
    chunk allows."""
    tile: int | None = None
    """Tile side in output pixels, whole tokens of the model; 0: whole frame; None: whole up to 2560x1440, and up to 4096x2176 on
    devices with room for it, else tiles of 1280."""
    tile_overlap: int | None = None
    """Output pixels that neighbouring tiles share and cross-fade, fewer than a tile has; None: 128, or half a small tile."""
    scene_cuts: bool = True
    """Start anew at each hard cut, so that no shot bleeds into the next; False: the whole clip is one shot."""
    restart_frames: int | None = None
    """Frames after which a decoder with a memory begins anew, so that a job can go on from there; None: with each shot."""
    at_once: int | None = None
    """Latent frames that are upsampled, decoded and corrected in one call by a decoder that has no memory, 1 or more: for speed
    alone; None: on a GPU what ``DRAWN_AT_ONCE`` holds, elsewhere 1."""

    def __post_init__(self) -> None:
        if self.chunk_frames < 1:
            raise ValueError(f"chunk is {self.chunk_frames} frames; it must be at least 1")
        if self.chunk_overlap is not None and self.chunk_overlap < 0:
            raise ValueError(f"chunk overlap is {self.chunk_overlap} latent frames; it must be 0 or more")
        if self.restart_frames is not None and self.restart_frames < 1:
            raise ValueError(f"restart is {self.restart_frames} frames; it must be at least 1")
        if self.at_once is not None and self.at_once < 1:
            raise ValueError(f"latent frames in one call are {self.at_once}; they must be at least 1")
        if self.tile is not None and self.tile < 0:
            raise ValueError(f"tile is {self.tile}; it must be 0 (whole frame) or a positive number of pixels")
        if self.tile_overlap is not None and not 0 <= self.tile_overlap < (self.tile or AUTO_TILE):
            raise ValueError(
                f"tile overlap is {self.tile_overlap}; it must be from 0 to below the tile ({self.tile or AUTO_TILE})"
            )

    def check_tiles(self, cell: int) -> None:
        """Raises ValueError for tiles that are not whole tokens of ``cell`` output pixels: they would become others."""
        for name, pixels in (("tile", self.tile), ("tile overlap", self.tile_overlap)):
            if pixels is not None and pixels % cell:
                near = sorted({max(cell, pixels // cell * cell), (pixels // cell + 1) * cell})
                whole = " (whole frame)" if name == "tile" else ""
                raise ValueError(
                    f"{name} is {pixels}; it must be 0{whole} or a multiple of {cell}, this model's token, "
                    f"such as {' or '.join(map(str, near))}"
                )

    def may_be_whole(self, height: int, width: int, cell: int) -> bool:
        """Whether a frame that ``tiling`` would cut up may be kept whole by who knows that its memory is there."""
        return self.tile is None and WHOLE_FRAME < height * width * cell**2 <= LARGEST_WHOLE

    def drawn_at_once(self, pixels: int, device: str) -> int:
        """Latent frames in one call where each has ``pixels`` output pixels; ``device``: the kind of device."""
        if self.at_once is not None:
            return self.at_once
        return max(1, DRAWN_AT_ONCE // pixels) if device in MANY_AT_ONCE else 1

    def tiling(self, height: int, width: int, cell: int) -> tuple[int, int]:
        """Side and overlap of the tiles of a frame of ``height`` x ``width`` tokens, in tokens; side 0: one tile.

        ``cell``: output pixels along a token's side (``check_tiles`` saw to it that what was asked for is whole tokens).
        """
        if self.tile == 0 or (self.tile is None and height * width * cell**2 <= WHOLE_FRAME):
            return 0, 0
        tile = max(1, round((self.tile or AUTO_TILE) / cell))
        asked = min(TILE_OVERLAP, tile * cell // 2) if self.tile_overlap is None else self.tile_overlap
        return tile, min(round(asked / cell), max(0, tile - 1))

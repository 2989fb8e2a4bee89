"""Every size of the network, validated when built."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .vae_config import SPACE, TIME, WanDecoderConfig


@dataclass(frozen=True)
class PixelDecoderConfig:
    """Sizes of the convolutional pixel-shuffle decoder (``model/decoders/pixel.py``)."""

    width: int = 64
    """Channels at half the latent's cell size (1/4 of the output's resolution for 8x8 cells)."""
    blocks: int = 4
    """Residual blocks at that resolution."""
    hr_width: int = 32
    """Channels at half the output's resolution."""
    hr_blocks: int = 1
    """Residual blocks at that resolution."""
    residual: bool = False
    """True: it sees z_H - z_L and nothing else, so that all it draws the transformer has said. False: it sees z_H and the
    low-quality frames; then it restores by itself, and the transformer learns little (docs/training.md): only the first
    weights are so."""

    def __post_init__(self) -> None:
        if type(self.residual) is not bool:
            raise ValueError(f"decoder residual is {self.residual!r}; it must be true or false")
        for f in fields(self)[:4]:
            value = getattr(self, f.name)
            low = 0 if f.name.endswith("blocks") else 1
            if type(value) is not int or value < low:
                raise ValueError(f"decoder {f.name} is {value!r}; it must be a whole number of at least {low}")


@dataclass(frozen=True)
class OasisConfig:
    """Sizes of one OASIS model. Field defaults are those of Wan2.1-T2V-1.3B where it has the field (DESIGN section 1).

    Raises:
        ValueError: a size that is not positive, a width that the heads do not divide, odd head size, or a cell that the
            decoder cannot produce.
    """

    name: str
    """Shown to users and stored in checkpoints."""
    unshuffle: tuple[int, int, int] = (4, 8, 8)
    """Pixel-unshuffle factors (frames, rows, columns): one latent position covers that many output pixels."""
    latent_channels: int = 16
    """Channels of z_L and z_H."""
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent positions in one token (t, h, w)."""
    dim: int = 1536
    """Width of a token."""
    depth: int = 30
    """Transformer blocks."""
    heads: int = 12
    """Attention heads in a block; ``dim / heads`` is the head size."""
    ffn_dim: int = 8960
    """Hidden width of the feed-forward layer."""
    freq_dim: int = 256
    """Width of the timestep's sinusoidal embedding."""
    context_length: int = 0
    """Tokens of the fixed learned context of the cross-attention; 0: no cross-attention."""
    rope_theta: float = 10000.0
    """Base of the rotary embedding's frequencies."""
    timestep: float = 1000.0
    """The one timestep, as the network sees it (0 to 1000)."""
    faithful_timestep: float | None = None
    """The timestep of fidelity 1, in models that are trained to be asked for less invention; None: no such control."""
    fidelity_curve: float = 1.0
    """The timestep moves by fidelity to this power: measured after training, so that equal steps look equal."""
    sigma: float = 1.0
    """Step length of z_H = z_L - sigma * v."""
    decoder: PixelDecoderConfig | WanDecoderConfig = field(default_factory=PixelDecoderConfig)
    """The decoder's sizes. Wan's weights usually lie in a file of their own."""

    def __post_init__(self) -> None:
        for name in ("latent_channels", "dim", "depth", "heads", "ffn_dim", "freq_dim"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"model {name} is {value!r}; it must be a whole number of at least 1")
        for name in ("unshuffle", "patch"):
            value = getattr(self, name)
            if type(value) is not tuple or len(value) != 3 or any(type(v) is not int or v < 1 for v in value):
                raise ValueError(f"model {name} is {value!r}; it must be three whole numbers of at least 1")
        if type(self.context_length) is not int or self.context_length < 0:
            raise ValueError(f"model context_length is {self.context_length!r}; it must be 0 (none) or more")
        for name in ("rope_theta", "timestep", "sigma", "fidelity_curve"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"model {name} is {value!r}; it must be a finite number")
        faithful = self.faithful_timestep
        if faithful is not None and (type(faithful) not in (int, float) or not math.isfinite(faithful)):
            raise ValueError(f"model faithful_timestep is {faithful!r}; it must be a finite number, or none")
        for name in ("rope_theta", "fidelity_curve"):
            if getattr(self, name) <= 0:
                raise ValueError(f"model {name} is {getattr(self, name)}; it must be above 0")
        if not isinstance(self.decoder, PixelDecoderConfig | WanDecoderConfig):
            raise ValueError(f"model decoder is {self.decoder!r}; it must be the sizes of a pixel or Wan decoder")
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(f"model dim {self.dim} does not split into {self.heads} heads of an even size")
        if self.head_dim < 6:
            raise ValueError(f"model head size is {self.head_dim}; the 3D rotary embedding needs at least 6")
        if self.freq_dim % 2:
            raise ValueError(f"model freq_dim is {self.freq_dim}; it must be even")
        if isinstance(self.decoder, WanDecoderConfig):
            if self.unshuffle != (TIME, SPACE, SPACE) or self.latent_channels != self.decoder.latent_channels:
                raise ValueError(
                    f"model unshuffle is {self.unshuffle} with {self.latent_channels} latent channels; its Wan decoder needs "
                    f"{(TIME, SPACE, SPACE)} and {self.decoder.latent_channels}"
                )
        elif self.unshuffle[1] != self.unshuffle[2] or self.unshuffle[1] % 4:
            raise ValueError(
                f"model unshuffle is {self.unshuffle}; the pixel decoder needs square cells of a multiple of 4"
            )
        if self.patch[1] != self.patch[2]:
            raise ValueError(f"model patch is {self.patch}; its rows and columns must be equal (tiles are square)")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def pixel_multiple(self) -> tuple[int, int]:
        """Frame height and width must be multiples of this (padding's business, ``geometry``)."""
        return self.unshuffle[1] * self.patch[1], self.unshuffle[2] * self.patch[2]

    @property
    def token_numbers(self) -> int:
        """Numbers of the latent in one token."""
        return self.latent_channels * math.prod(self.patch)

    @property
    def frame_group(self) -> int:
        """Frames in one token's time step; the first frame counts for a whole group."""
        return self.unshuffle[0] * self.patch[0]

    def timestep_at(self, fidelity: float) -> float:
        """The timestep that asks for ``fidelity``: 0 (all detail that the model invents) to 1 (faithful to the input).

        ``timestep + fidelity ** fidelity_curve * (faithful_timestep - timestep)``: a conditional one-step restorer, whose
        modulation tells it where between perception and distortion to stand (the idea of CFSNet, arXiv 1904.00634, by
        the DiT's own means).

        Raises:
            ValueError: outside [0, 1], or above 0 for a model without the control.
        """
        if not 0 <= fidelity <= 1:
            raise ValueError(f"fidelity is {fidelity}; it must be from 0 (most detail) to 1 (most faithful)")
        if fidelity == 0:
            return self.timestep
        if self.faithful_timestep is None:
            raise ValueError(f"fidelity is {fidelity}, but model {self.name!r} was trained without it; set it to 0")
        return self.timestep + fidelity**self.fidelity_curve * (self.faithful_timestep - self.timestep)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; ``from_dict`` reads them back to an equal config."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> OasisConfig:
        """Build from ``to_dict``'s values. Raises ValueError that names unknown or missing fields."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(
                f"model config has unknown fields {unknown}; this checkpoint may need a newer version of OASIS"
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        try:
            if isinstance(data.get("decoder"), dict):
                values["decoder"] = _decoder(data["decoder"])
            return cls(**values)
        except TypeError as e:
            raise ValueError(f"model config is not usable: {e}") from None


def _decoder(data: dict[str, Any]) -> PixelDecoderConfig | WanDecoderConfig:
    """Sizes of the decoder that ``kind`` names; without one, of a pixel decoder."""
    if "kind" not in data:
        return PixelDecoderConfig(**data)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return WanDecoderConfig(**values)

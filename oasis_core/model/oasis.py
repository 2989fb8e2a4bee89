"""The whole network: pixel-unshuffle -> linear -> one DiT step -> decoder (paper figure 2)."""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn

from ..patchify import replicate_first, unshuffle_groups_last
from ..routing.spec import RoutingSpec
from .config import OasisConfig, PixelDecoderConfig
from .decoders import DecoderState, MissingDecoder, PixelDecoder, WanDecoder
from .dit import Decider, DiT


class OasisModel(nn.Module):
    """Upsampled low-quality pixels in, restored pixels out; weights as they come from a checkpoint."""

    def __init__(self, config: OasisConfig) -> None:
        super().__init__()
        self.config = config
        ft, fh, fw = config.unshuffle
        self.project = nn.Linear(3 * ft * fh * fw, config.latent_channels)
        self.dit = DiT(config)
        pixel = isinstance(config.decoder, PixelDecoderConfig)
        self.decoder: nn.Module = PixelDecoder(config) if pixel else MissingDecoder()
        """A Wan decoder comes from its own file and is put here; till then a ``MissingDecoder``."""
        self.loaded_as: str | None = None
        """What tells its weights from others' (``jobs.fingerprint``), where they are no longer as they were loaded."""

    def init_weights(self) -> None:
        """Start of training from scratch."""
        self.dit.init_weights()
        if isinstance(self.decoder, PixelDecoder):
            self.decoder.init_weights()

    def attach_decoder(self, decoder: nn.Module) -> None:
        """Decode with ``decoder`` from now on.

        Raises:
            ValueError: the model brings its own kind of decoder, or its latent is another one.
        """
        sizes = self.config.decoder
        if isinstance(sizes, PixelDecoderConfig):
            raise ValueError(f"model {self.config.name!r} has a decoder of its own and takes no other")
        if decoder.config.latent_channels != self.config.latent_channels:  # type: ignore[union-attr]
            raise ValueError(
                f"decoder is for {decoder.config.latent_channels} latent channels, the model has "  # type: ignore[union-attr]
                f"{self.config.latent_channels}; give a Wan 2.1 VAE"
            )
        self.decoder = decoder

    def decoder_state(self) -> DecoderState | None:
        """What to hand to every ``decode`` of one stream; None where decoding needs no memory.

        Raises:
            ValueError: the model has no decoder yet.
        """
        if isinstance(self.decoder, MissingDecoder):
            raise ValueError(self.decoder.remedy)
        return None if isinstance(self.decoder, PixelDecoder) else DecoderState()

    def encode(self, pixels: Tensor, first: bool = True) -> Tensor:
        """z_L ``(B, C, t, h, w)`` of pixels ``(B, 3, T, H, W)`` in [-1, 1]; H and W are multiples of the cell.

        ``first``: the pixels start the clip, so that their first frame stands for a whole group (T = 1 + group * k);
        otherwise T = group * k. Each latent frame depends on its own group alone, so a stream encodes group by group.
        """
        pixels = replicate_first(pixels, self.config.unshuffle[0]) if first else pixels
        cells = unshuffle_groups_last(pixels, self.config.unshuffle)
        return rearrange(self.project(cells), "b t h w c -> b c t h w")

    def restore(
        self,
        z_l: Tensor,
        routing: RoutingSpec,
        poll: Callable[[], None] | None = None,
        fidelity: float = 0.0,
        decide: Decider | None = None,
    ) -> Tensor:
        """The one step: z_H = z_L - sigma * v(z_L, timestep); shape and dtype of ``z_l``. ``decide``: as in ``DiT.forward``.

        Raises:
            ValueError: a fidelity that the model cannot be asked for (``OasisConfig.timestep_at``).
        """
        timestep = self.dit.timestep(fidelity, z_l.device)
        return z_l - self.config.sigma * self.dit(z_l, routing, poll, timestep=timestep, decide=decide)

    def decode(self, z_h: Tensor, pixels: Tensor, first: bool = True, state: DecoderState | None = None) -> Tensor:
        """Restored pixels of ``pixels``' shape, not clamped.

        Args:
            z_h: ``(B, C, t, h, w)``.
            pixels: the low-quality pixels of the same frames. ``first``: they start the clip, so that their first frame
                stands for a whole group: T = 1 + group * (t - 1); otherwise T = group * t.
            state: of this stream (``decoder_state``); None: the stream begins and ends here.

        Raises:
            ValueError: T does not fit t, or there is no decoder.
        """
        group = self.config.unshuffle[0]
        whole = replicate_first(pixels, group) if first else pixels
        if whole.shape[2] != group * z_h.shape[2]:
            raise ValueError(
                f"{pixels.shape[2]} frames do not fit {z_h.shape[2]} latent frames of {group} (first={first})"
            )
        if not isinstance(self.decoder, PixelDecoder):
            state = self.decoder_state() if state is None else state
            return self.decoder(z_h, state)[:, :, -pixels.shape[2] :]
        if self.decoder.residual:
            z_h = z_h - self.encode(whole, first=False)
        return self.decoder(z_h, whole)[:, :, whole.shape[2] - pixels.shape[2] :]

    def decode_ahead(self, z_h: Tensor, state: DecoderState, poll: Callable[[], None] | None) -> Tensor:
        """``decode`` by a decoder that plans its work itself (``WanDecoder``), and needs no low-quality pixels.

        ``poll``: called before each piece of that work.
        """
        assert isinstance(self.decoder, WanDecoder)
        pixels: Tensor = self.decoder(z_h, state, poll)
        return pixels

    def forward(self, pixels: Tensor, routing: RoutingSpec, timestep: Tensor | None = None) -> Tensor:
        """Restored pixels of a whole clip ``(B, 3, T, H, W)`` in [-1, 1]: training's path; ``pipeline`` streams.

        ``timestep`` is what ``DiT.timestep`` gives; None: fidelity 0.
        """
        z_l = self.encode(pixels)
        return self.decode(z_l - self.config.sigma * self.dit(z_l, routing, timestep=timestep), pixels)

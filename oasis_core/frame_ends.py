"""Both ends of the method: frames into z_L before the transformer, z_H into finished frames after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from einops import rearrange
from torch import Tensor

from .color import ColorCorrector
from .frame_groups import FrameGroup
from .geometry import Geometry, crop, plan_geometry, to_unit_range, upsample_and_pad
from .model import OasisModel
from .model.decoders import DecodePlan, DecoderState, PixelDecoder
from .progress import Poll
from .settings import UpscaleSettings
from .transfer import sent_together


class FrameEnds:
    """For one model and a job's settings; nothing is kept from call to call."""

    def __init__(self, model: OasisModel, settings: UpscaleSettings, chunk: int) -> None:
        """``chunk``: latent frames in one."""
        self.model, self.settings, self.chunk = model, settings, chunk

    def latents(self, geometry: Geometry, on: str | None = None) -> int:
        """Latent frames that are upsampled and decoded at a time. ``on``: the kind of device; None: where the model is."""
        if not isinstance(self.model.decoder, PixelDecoder):
            plan = getattr(self.model.decoder, "plan", None)
            return 1 if plan is None else plan.latents
        pixels = self.model.config.unshuffle[0] * geometry.pad_h * geometry.pad_w
        return min(self.chunk, self.settings.drawn_at_once(pixels, on or self.model.project.weight.device.type))

    def geometry(self, height: int, width: int) -> Geometry:
        """Sizes of this job for frames of ``height`` x ``width``. Raises ValueError where they cannot be had."""
        s = self.settings
        return plan_geometry(
            height, width, scale=s.scale, width=s.width, height=s.height, multiple=self.model.config.pixel_multiple
        )

    def encode(self, groups: Sequence[FrameGroup]) -> Tensor:
        """z_L ``(1, C, t, h, w)`` of groups that follow each other."""
        return self.model.encode(self.pixels(groups).to(self.model.project.weight.dtype), groups[0].first)

    def pixels(self, groups: Sequence[FrameGroup]) -> Tensor:
        """The groups' frames on the target grid, fp32 ``(1, 3, T, pad_h, pad_w)`` in [-1, 1] on the model's device."""
        frames = sent_together([group.frames for group in groups], self.model.project.weight.device)
        return upsample_and_pad(frames.float().clamp(0, 1), self.geometry(*frames.shape[1:3]))

    def at_once(self, group: FrameGroup) -> int:
        """Groups of that size in one call."""
        return self.latents(self.geometry(*group.frames.shape[1:3]))

    def run_length(self, group: FrameGroup) -> int:
        """Groups that a decoder with a memory is given at a time, from one like ``group`` on: a shot's first alone, where it
        does not take its tiles in turn (``DecodePlan.turn``)."""
        turn = min(self.chunk, getattr(self.model.decoder, "plan", DecodePlan()).turn)
        return turn or (1 if group.first else self.at_once(group))

    def decode(
        self, groups: Sequence[FrameGroup], z_h: Tensor, color: ColorCorrector, state: DecoderState | None
    ) -> Tensor:
        """Finished frames ``(n, out_h, out_w, 3)`` of groups that follow each other, where the model is."""
        pixels = self.pixels(groups)
        narrow = pixels.to(z_h.dtype)
        decoded = self.model.decode(z_h, narrow, first=groups[0].first, state=state)
        return self._finished(groups, pixels, narrow, decoded, color, len(groups) if state is None else 1)

    def decode_run(
        self, groups: Sequence[FrameGroup], z_h: Tensor, color: ColorCorrector, state: DecoderState, poll: Poll | None
    ) -> Iterator[Tensor]:
        """The same for some of the groups after the other; decoded in one go."""
        at_once = self.at_once(groups[0])
        if len(groups) <= at_once:
            yield self.decode(groups, z_h, color, state)
            return
        decoded, at = self.model.decode_ahead(z_h, state, poll), 0
        for start in range(0, len(groups), at_once):
            some = groups[start : start + at_once]
            pixels = self.pixels(some)
            given, at = decoded[:, :, at : at + pixels.shape[2]], at + pixels.shape[2]
            yield self._finished(some, pixels, pixels.to(z_h.dtype), given, color, 1)

    def _finished(
        self, groups: Sequence[FrameGroup], pixels: Tensor, narrow: Tensor, decoded: Tensor, color: ColorCorrector,
        at_once: int,
    ) -> Tensor:  # fmt: skip
        """``decoded`` in the groups' colours, cropped; ``narrow`` is ``pixels`` in the model's numbers."""
        geometry = self.geometry(*groups[0].frames.shape[1:3])
        # What the number format took from the input comes back: bf16 alone bands in 10 bits. In fp32, as ``pixels``.
        sr = (pixels - narrow).add_(decoded)
        del narrow, decoded
        count = sum(group.count for group in groups)  # only the last one may be filled up
        sr, reference = (crop(rearrange(x[0], "c t h w -> t h w c"), geometry)[:count] for x in (sr, pixels))
        # Beside a state, which is large, ``at_once`` is 1: working memory is a frame's.
        return color.correct(to_unit_range(sr), to_unit_range(reference), at_once)

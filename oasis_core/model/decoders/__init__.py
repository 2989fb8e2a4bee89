"""Latent to pixels."""

from .pixel import PixelDecoder
from .wan import DecodePlan, DecoderState, WanDecoder

__all__ = ["DecodePlan", "DecoderState", "PixelDecoder", "WanDecoder"]

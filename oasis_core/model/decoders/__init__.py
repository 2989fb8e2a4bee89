"""Latent to pixels."""

from .missing import MissingDecoder
from .pixel import PixelDecoder
from .wan import DecodePlan, DecoderState, WanDecoder

__all__ = ["DecodePlan", "DecoderState", "MissingDecoder", "PixelDecoder", "WanDecoder"]

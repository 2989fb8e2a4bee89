"""Latent to pixels."""

from .missing import MissingDecoder
from .pixel import PixelDecoder
from .taehv import TaehvDecoder
from .wan import DecodePlan, DecoderState, WanDecoder

__all__ = ["DecodePlan", "DecoderState", "MissingDecoder", "PixelDecoder", "TaehvDecoder", "WanDecoder"]

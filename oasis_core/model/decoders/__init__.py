"""Latent to pixels."""

from .missing import MissingDecoder
from .pixel import PixelDecoder
from .streaming import DecodePlan, DecoderState
from .taehv import TaehvDecoder
from .wan import WanDecoder

__all__ = ["DecodePlan", "DecoderState", "MissingDecoder", "PixelDecoder", "TaehvDecoder", "WanDecoder"]

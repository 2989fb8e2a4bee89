"""Latent to pixels."""

from .pixel import PixelDecoder

__all__ = ["PixelDecoder"]

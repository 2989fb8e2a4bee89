"""The OASIS network: configuration, DiT, decoders, and the one-step rule that joins them."""

from .config import OasisConfig, PixelDecoderConfig
from .oasis import OasisModel

__all__ = ["OasisConfig", "OasisModel", "PixelDecoderConfig"]

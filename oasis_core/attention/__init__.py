"""The three attention operations of routing, their slow reference, and the backends that run them fast."""

from .grid import TokenGrid
from .routed import routed_attention

__all__ = ["TokenGrid", "routed_attention"]

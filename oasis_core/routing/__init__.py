"""Which attention pattern each head uses: the specification, and how it is found."""

from .spec import HeadPattern, RoutingSpec

__all__ = ["HeadPattern", "RoutingSpec"]

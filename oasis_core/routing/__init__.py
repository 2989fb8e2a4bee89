"""Which attention pattern each head uses: the specification, and how it is found."""

from .extent import Extent
from .spec import HeadPattern, Pattern, RoutingSpec

__all__ = ["Extent", "HeadPattern", "Pattern", "RoutingSpec"]

"""The commands' names for what ``oasis_core.device`` does."""

from ..device import DTYPES, choose_device, choose_dtype, choose_format

__all__ = ["DTYPES", "choose_device", "choose_dtype", "choose_format"]

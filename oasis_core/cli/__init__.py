"""The ``oasis`` command."""

import os

from ..openmp import spinning

os.environ.update(spinning())  # before torch is loaded

from .main import main

__all__ = ["main"]

"""OASIS video super-resolution: one-step diffusion transformer with attention-specialisation routing (arXiv 2509.23980)."""

__version__ = "0.1.0"

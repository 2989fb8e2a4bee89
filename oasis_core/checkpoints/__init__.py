"""Checkpoints: safetensors files that need no side file (config, routing and licence live in their metadata)."""

from .read import EMBEDDED, Checkpoint, embedded_path, load_checkpoint, resolve
from .write import save_checkpoint

__all__ = ["EMBEDDED", "Checkpoint", "embedded_path", "load_checkpoint", "resolve", "save_checkpoint"]

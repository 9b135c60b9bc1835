"""Saving and resuming without pickle: safetensors files and one JSON manifest, published by one rename."""

from foretell.checkpoint.folder import Checkpoint, load_latest, save

__all__ = ["Checkpoint", "load_latest", "save"]

"""Saving and resuming without pickle: safetensors files and one JSON manifest, published by one rename."""

from foretell.checkpoint.folder import published
from foretell.checkpoint.load import Checkpoint, Opened, load_latest, open_latest
from foretell.checkpoint.pieces import Box, Described, Piece
from foretell.checkpoint.saver import Saver, save

__all__ = [
    "Box",
    "Checkpoint",
    "Described",
    "Opened",
    "Piece",
    "Saver",
    "load_latest",
    "open_latest",
    "published",
    "save",
]

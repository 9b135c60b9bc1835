"""The metadata of one architecture in a GGUF file, each value checked as it is read."""

from __future__ import annotations

import math
import re
from typing import Any

from foretell.errors import ModelError
from foretell.models.gguf.reader import Gguf


class Metadata:
    """What a file says of its architecture, and the sides of its tensors. Every error names the file and the key."""

    def __init__(self, file: Gguf, arch: str) -> None:
        self.file, self.arch = file, arch

    def wrong(self, what: str) -> ModelError:
        return ModelError(f"{self.file.path}: {what}")

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.metadata.get(f"{self.arch}.{key}", default)

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 on; a list of one a layer must be all the same."""
        value = self.get(key, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]
        if isinstance(value, list):
            raise self.wrong(f"{self.arch}.{key} changes from layer to layer ({value[:8]}); such models are not read")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(f"{self.arch}.{key} is {value!r}, a whole number from 1 on is needed")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise self.wrong(f"{self.arch}.{key} is {value!r}, a number above 0 is needed")
        # Files hold float32: 1e-5 is stored as 9.99999974e-06.
        return float(f"{value:.7g}") if isinstance(value, float) else float(value)

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        info = self.file.tensors.get(name)
        if info is None or len(info.shape) != dims:
            what = "is missing" if info is None else f"has the shape {list(info.shape)}"
            raise self.wrong(f"the tensor {name} {what}; a {self.arch} model needs it with {dims} dims")
        return info.shape

    def layers(self) -> int:
        """The number of layers, which must be that of the tensors: nothing is made because a file names a number."""
        told = self.count("block_count")
        there = {int(m[1]) for name in self.file.tensors if (m := re.match(r"blk\.(\d{1,6})\.", name))}
        if there != set(range(len(there))) or told != len(there):
            raise self.wrong(f"{self.arch}.block_count is {told:,}, the tensors are of {len(there):,} layers")
        return told

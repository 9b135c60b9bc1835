"""The hardware table: what a device can do at most, how devices are linked, what an hour costs.

Read from `hardware.toml` beside this file, or from a user's file of the same form. A table is checked when it is read:
an unknown key, a missing one and a negative figure are errors. Peaks are dense, bandwidths are those of one device in
one direction. What of a peak is reached in practice is no property of the data sheet: see `kernels.Constants`.
"""

from __future__ import annotations

import difflib
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from foretell.config import Table
from foretell.errors import PlanError

BUILT_IN = Path(__file__).with_name("hardware.toml")
FORMAT_VERSION = 1


class Rates(Table):
    """Peak dense FLOP/s by dtype; None where the device has no such unit."""

    float32: float = Field(gt=0)
    tf32: float | None = Field(None, gt=0)
    bfloat16: float = Field(gt=0)
    float8: float | None = Field(None, gt=0)


class Reached(Table):
    """Shares of the peak that good kernels were measured to reach: of products, and of fused attention in 16 bits."""

    product: float = Field(gt=0, le=1)
    product_float8: float | None = Field(None, gt=0, le=1)
    attention: float = Field(gt=0, le=1)


class Link(Table):
    """A way between devices: bytes per second of one device in one direction, and seconds before the first byte."""

    bytes_per_second: float = Field(gt=0)
    latency_seconds: float = Field(ge=0)
    devices: int = Field(1, gt=0)


class Hardware(Table):
    """One kind of machine. `node_link.devices` is the size of the domain that fast links join.

    compared: whether forecasts for it were compared with measured steps; where not, intervals are wider.
    """

    title: str
    devices_per_node: int = Field(gt=0)
    units: int = Field(gt=0)
    memory_bytes: float = Field(gt=0)
    memory_bytes_per_second: float = Field(gt=0)
    watts: float = Field(gt=0)
    node_watts: float = Field(gt=0)
    price_per_hour: float = Field(ge=0)
    failures_per_1000_device_days: float = Field(ge=0)
    compared: bool = False
    flops_per_second: Rates
    reached: Reached
    node_link: Link
    network_link: Link
    sources: tuple[str, ...] = ()

    def peak(self, dtype: str) -> float:
        """Peak dense FLOP/s of a dtype. Raises PlanError where the device has none."""
        value = getattr(self.flops_per_second, dtype, None)
        if value is None:
            known = [n for n in Rates.model_fields if getattr(self.flops_per_second, n)]
            raise PlanError(f"{self.title} has no products in {dtype}; it has {', '.join(known)}")
        return float(value)

    def product_rate(self, dtype: str) -> float:
        """FLOP/s that the best products of a dtype were measured to reach."""
        share = self.reached.product_float8 if dtype == "float8" else None
        return self.peak(dtype) * (share or self.reached.product)


def load(name: str, path: Path | None = None) -> Hardware:
    """The entry of that name, of a user's file or of the built-in table. Raises PlanError naming the nearest."""
    table = read(path or BUILT_IN)
    if path is not None and name not in table:
        table = read(BUILT_IN) | table
    if name not in table:
        begun = [known for known in sorted(table) if known.startswith(name.lower())]
        near = begun or difflib.get_close_matches(name.lower(), table, n=1, cutoff=0.3)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise PlanError(f"no hardware is called {name!r}{hint}. There are: {', '.join(sorted(table))}")
    return table[name]


@cache
def read(path: Path) -> dict[str, Hardware]:
    """Every entry of a hardware file by its name. Raises PlanError for what is no such file."""
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise PlanError(f"{path}: cannot be read: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise PlanError(f"{path}: not valid TOML: {e}") from None
    version = raw.pop("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise PlanError(f"{path}: format_version {version!r}; this Foretell reads {FORMAT_VERSION}")
    return {name: _entry(path, name, values) for name, values in raw.items()}


def _entry(path: Path, name: str, values: Any) -> Hardware:
    try:
        return Hardware.model_validate(values)
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), Hardware.model_fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise PlanError(f"{path}: [{name}] {key} is no key of a hardware entry{hint}") from None
        raise PlanError(f"{path}: [{name}] {key}: {first['msg'].lower()}") from None

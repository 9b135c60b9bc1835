"""What a run may cost: `10m`, `1h30m`, `90s`, or a number of FLOPs such as `1e15` or `2e17 FLOPs`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from foretell.errors import ConfigError

# A probe takes some 1e12 FLOPs; it is worth that where the run is many times larger.
WORTH_A_PROBE_SECONDS = 60.0
WORTH_A_PROBE_FLOPS = 5e12

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = r"(\d+(?:\.\d+)?)\s*(s|m|h|d)(?:ec|econds?|in|inutes?|ours?|r|rs|ays?)?"
_TIME = re.compile(rf"(?:{_PART}\s*)+", re.IGNORECASE)
_FLOPS = re.compile(r"(\d+(?:\.\d+)?(?:e\+?\d+)?)\s*(?:flops?)?", re.IGNORECASE)
_MONEY = re.compile(r"[$€¥]|usd|eur|cny|dollars?", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """Either seconds of training or FLOPs."""

    seconds: float | None = None
    flops: float | None = None

    @property
    def is_worth_a_probe(self) -> bool:
        """Whether the run is long enough to spend a short training on measuring the text first."""
        return (self.seconds or 0.0) >= WORTH_A_PROBE_SECONDS or (self.flops or 0.0) >= WORTH_A_PROBE_FLOPS


def parse_budget(text: str) -> Budget:
    """Read a budget. Raises ConfigError saying what one looks like."""
    cleaned = text.strip()
    if _TIME.fullmatch(cleaned):
        seconds = sum(float(n) * _SECONDS[unit.lower()] for n, unit in re.findall(_PART, cleaned, re.IGNORECASE))
        if seconds > 0:
            return Budget(seconds=seconds)
    elif m := _FLOPS.fullmatch(cleaned):
        flops = float(m[1])
        if 1e6 <= flops < math.inf:
            return Budget(flops=flops)
        raise ConfigError(
            f"budget `{text}` means {flops:g} FLOPs, which trains nothing; for time add a unit, as in {cleaned}m"
        )
    elif _MONEY.search(cleaned):
        raise ConfigError(
            f"budget `{text}`: money needs a priced machine, and this one has no price; give time or FLOPs"
        )
    raise ConfigError(f"budget `{text}` is not understood; write 90s, 10m, 1h30m, or FLOPs such as 1e15")

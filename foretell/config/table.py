"""What every table of the configuration is: frozen, and without unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from foretell.errors import ConfigError


class Table(BaseModel):
    """One table of the file: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    def needed(self, name: str) -> int:
        """A size that must be decided by now. Raises ConfigError when it is not."""
        value = getattr(self, name)
        if value is None:
            raise ConfigError(f"{name} is not set, and nothing has derived it; give it, or a --budget")
        return int(value)

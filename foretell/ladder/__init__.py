"""The ladder: small runs, the law fitted to them, and the forecast of a large run that the climb then scores."""

from foretell.ladder.climb import run

__all__ = ["run"]

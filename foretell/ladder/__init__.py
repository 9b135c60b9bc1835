"""The scaling ladder: small runs, the law through them, the forecast of the large one. See docs/scaling-laws.md."""

from foretell.ladder.answer import fit_table, pairs, target

__all__ = ["fit_table", "pairs", "target"]

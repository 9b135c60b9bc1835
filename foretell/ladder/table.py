"""Reads anybody's table of finished runs: a header, then one run a line, separated by commas, semicolons or tabs.

Columns are known by the names people use (params, N, tokens, D, val_loss, ...), or are told one by one:
`loss=loss_c4_val`. Numbers may carry a unit (1.4B, 300M, 4T) or grouped digits. A line without a loss is a run that has
not ended: it is left out and counted. Everything else that is not a positive number is an error with its line.

Not handled: quoting other than CSV's, several runs on a line, units of the loss (all rows must agree).
"""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from foretell.errors import ConfigError, DataError
from foretell.plan.law import Row

# What each quantity is called, in small letters without separators.
NAMES = {
    "parameters": ("parameters", "params", "n", "numparams", "numparameters", "nparams", "modelsize"),
    "tokens": ("tokens", "d", "numtokens", "ntokens", "tokennum", "trainingtokens", "traintokens"),
    "loss": ("loss", "l", "valloss", "validationloss", "finalloss", "evalloss", "bitsperbyte", "bpb"),
    "unique_tokens": ("uniquetokens", "u", "unique", "ntokensunique"),
    "seed": ("seed",),
    "accuracy": ("accuracy", "acc"),
    "bits_per_byte": ("bitsperbyte", "bpb"),
}
NEEDED = ("parameters", "tokens", "loss")
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_MOST_NAMED = 30  # columns listed in an error


@dataclass(frozen=True)
class Table:
    """The runs of a file. `accuracies`: of each row, None where it has none; `columns`: which were read as what.

    `left_out`: lines without a loss; `passed_over`: lines that a condition did not want. `bit`: one bit a byte in the
    unit of the losses, None where the table does not tell.
    """

    rows: list[Row]
    accuracies: list[float | None]
    columns: dict[str, str]
    left_out: int
    passed_over: int
    bit: float | None = None


def read(path: Path, columns: Mapping[str, str] | None = None, where: Mapping[str, str] | None = None) -> Table:
    """The runs in a file. columns: {quantity: its name in the file}; where: {column: value} a line must have.

    DataError for a column or number that is not there, ConfigError for a quantity that does not exist.
    """
    names, lines = _lines(path)
    chosen = _chosen(path, names, columns or {})
    for column in where or {}:
        if column not in names:
            raise DataError(f"{path}: no column {column!r} for --where; {_there_is(names, column)}")
    rows: list[Row] = []
    accuracies: list[float | None] = []
    left_out = passed_over = 0
    bit = 1.0 if _plain(chosen["loss"]) in NAMES["bits_per_byte"] else None
    for number, cells in lines:
        if not all(_same(cells.get(c, ""), v) for c, v in (where or {}).items()):
            passed_over += 1
            continue
        if cells.get(chosen["loss"], "").strip().lower() in {"", "nan", "none", "null"}:
            left_out += 1
            continue
        values = {q: _number(path, number, c, cells.get(c, ""), q) for q, c in chosen.items()}
        seed = values.get("seed")
        rows.append(
            Row(
                parameters=values["parameters"] or 0.0,
                tokens=values["tokens"] or 0.0,
                loss=values["loss"] or 0.0,
                unique_tokens=values.get("unique_tokens"),
                seed=None if seed is None else int(seed),
            )
        )
        accuracies.append(values.get("accuracy"))
        bits = values.get("bits_per_byte")
        if bits and bit is None:
            bit = rows[-1].loss / bits
    return Table(rows, accuracies, chosen, left_out, passed_over, bit)


def _lines(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header, and each line with its number and its cells."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 text: {e.reason} at byte {e.start:,}") from None
    head = text.split("\n", 1)[0]
    separator = max(",;\t", key=head.count)
    reader = csv.reader(text.splitlines(), delimiter=separator)
    names = [n.strip() for n in next(reader, [])]
    if not any(names):
        raise DataError(f"{path} is empty: its first line must name the columns")
    if doubled := sorted({n for n in names if n and names.count(n) > 1}):
        raise DataError(f"{path}: two columns are named {doubled[0]!r}")
    found = []
    for cells in reader:
        if not any(c.strip() for c in cells):
            continue
        if len(cells) != len(names):
            raise DataError(f"{path}, line {reader.line_num}: {len(cells)} cells under {len(names)} columns")
        found.append((reader.line_num, dict(zip(names, cells, strict=True))))
    return names, found


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).lower()


def _chosen(path: Path, names: list[str], told: Mapping[str, str]) -> dict[str, str]:
    """Which column each quantity is read from."""
    chosen = {}
    for quantity, column in told.items():
        if quantity not in NAMES:
            near = difflib.get_close_matches(quantity, NAMES, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(NAMES)}"
            raise ConfigError(f"--columns {quantity}={column}: no quantity {quantity!r}{hint}")
        if column not in names:
            raise DataError(f"{path}: no column {column!r}; {_there_is(names, column)}")
        chosen[quantity] = column
    for quantity, known in NAMES.items():
        if quantity in chosen:
            continue
        for name in known:
            if found := [n for n in names if _plain(n) == name and n not in chosen.values()]:
                chosen[quantity] = found[0]
                break
        if quantity in NEEDED and quantity not in chosen:
            raise DataError(
                f"{path}: no column for {quantity}; name it with --columns {quantity}=COLUMN. {_there_is(names)}"
            )
    return chosen


def _there_is(names: list[str], wanted: str = "") -> str:
    near = difflib.get_close_matches(wanted, names, 1)
    more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    listed = f"the table has {', '.join(names[:_MOST_NAMED])}{more}"
    return f"the nearest is {near[0]!r}; {listed}" if near else listed


def _same(cell: str, wanted: str) -> bool:
    """Equal as text, or as numbers."""
    if cell.strip() == wanted.strip():
        return True
    try:
        return float(cell) == float(wanted)
    except ValueError:
        return False


def number(text: str) -> float | None:
    """A number such as 7e9, 1.4B, 300M, 4T or 1,300,000; None where the text is none."""
    plain = re.sub(r"(?<=\d)[,_](?=\d{3}(\D|$))", "", text.strip())
    found = re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([KMBGT]?)", plain, re.I)
    if not found:
        return None
    value = float(found[1]) * UNITS[found[2].upper()]
    return value if math.isfinite(value) else None


def _number(path: Path, line: int, column: str, cell: str, quantity: str) -> float | None:
    """A cell as a number; None only where an optional quantity is blank."""
    if not cell.strip() and quantity not in NEEDED:
        return None
    value = number(cell)
    if value is None:
        raise DataError(f"{path}, line {line}: {column} ({quantity}) is {cell!r}, not a number")
    if value <= 0 and quantity not in {"seed", "accuracy"}:
        raise DataError(f"{path}, line {line}: {column} ({quantity}) is {cell.strip()}; it must be above 0")
    return value

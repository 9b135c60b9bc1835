"""Back-tests of the forecast on public tables: fit the runs of at most C/30, C/100, C/200, forecast the run of C.

    python benchmarks/law_backtests.py FOLDER [--docs docs/scaling-laws.md] [--out FILE.json] [--unseen CSV ...]

FOLDER holds the tables (docs/scaling-laws.md names their sources): gadre_c4_rpj.csv, olmo_ladder_final.csv,
porian_owt2_isoflop.csv, datablations_contour.csv. A back-test is taken where the ladder could be meant to reach the
target, judged by where the runs stand and never by their losses: at least 10 runs of at least 3 sizes, which span at
least as much compute as lies between them and the target, 30 to 300 times, and the target's tokens a parameter within
three times of what the runs had. Several losses of one run are several back-tests, so they are not independent.

The widening of the interval (posterior.CALIBRATION) is chosen here. The column `left out` is its honest test: each
group of tables is judged by the widening that the other groups want. `--unseen` tables (params, tokens, loss) are
judged by the stored one and choose nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np

from foretell.errors import ForetellError
from foretell.ladder import table as tables
from foretell.plan import law, posterior

RATIOS = (30, 100, 200)
FURTHEST = 300
FEWEST, SIZES, NEAR = 10, 3, 3.0
MOST_EPOCHS = 16  # beyond, runs learn their text by heart, which no law here describes
# Validation sets of running English text. The others of Gadre's table: code, Penn Treebank, German beside English.
RUNNING_TEXT = ("c4_val", "paloma_c4", "falcon", "openlm", "redpajama")
HOLDS = 0.9
MARK = "<!-- {} of benchmarks -->"


@dataclass(frozen=True)
class Case:
    """One back-test: the table's group and name, the runs that are fitted, the run that is forecast."""

    group: str
    name: str
    rows: tuple[law.Row, ...]
    target: law.Row
    ratio: float


@dataclass(frozen=True)
class Outcome:
    """`error`: log measured / forecast. `wanted`: the widening at which the interval would just hold it.

    `low`, `high`: log bounds over the forecast at a widening of 1, so that others are multiples.
    """

    case: Case
    error: float
    wanted: float
    low: float
    high: float

    def half_width(self, stretch: float) -> float:
        """Half of the interval over the forecast value."""
        return (math.exp(stretch * self.high) - math.exp(stretch * self.low)) / 2


def compute(row: law.Row) -> float:
    return 6 * row.parameters * row.tokens


def cases(group: str, name: str, rows: Sequence[law.Row]) -> Iterator[Case]:
    """The back-tests that a table allows; the same runs for the same target count once."""
    seen = set()
    for target in rows:
        for ratio in RATIOS:
            small = tuple(r for r in rows if compute(r) <= compute(target) / ratio * (1 + 1e-6))
            if len(small) < FEWEST or len({r.parameters for r in small}) < SIZES:
                continue
            amounts = [compute(r) for r in small]
            reach = compute(target) / max(amounts)
            share = [r.tokens / r.parameters for r in small]
            own = target.tokens / target.parameters
            if (
                reach <= FURTHEST
                and max(amounts) / min(amounts) >= reach
                and min(share) / NEAR <= own <= max(share) * NEAR
                and (target, len(small)) not in seen
            ):
                seen.add((target, len(small)))
                yield Case(group, name, small, target, reach)


def outcome(case: Case) -> Outcome:
    """Forecast one case at a widening of 1."""
    constant = law.REPEAT if law.repeats([*case.rows, case.target]) else None
    table = np.array([[r.parameters, law.worth(r.tokens, r.unique_tokens, constant), r.loss] for r in case.rows])
    data = law.worth(case.target.tokens, case.target.unique_tokens, constant)
    mixture = posterior.average(table, case.target.parameters, data, stretch=1.0)
    value, low, high = (posterior.quantile(mixture, q) for q in (0.5, 0.05, 0.95))
    error = math.log(case.target.loss) - value
    return Outcome(
        case, error, error / (high - value) if error > 0 else error / (low - value), low - value, high - value
    )


def public(folder: Path) -> Iterator[tuple[str, str, list[law.Row]]]:
    """The tables of the folder: group, name, runs."""

    def lines(name: str) -> list[dict[str, str]]:
        with (folder / name).open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    gadre = lines("gadre_c4_rpj.csv")
    for data in ("c4_original", "rpj"):
        for column in [c for c in gadre[0] if c.startswith("loss_")]:
            own = [r for r in gadre if r["dataset"] == data]
            kind = "" if any(w in column for w in RUNNING_TEXT) else ", foreign text"
            rows = [law.Row(float(r["params"]), float(r["tokens"]), float(r[column])) for r in own]
            yield f"Gadre {data}{kind}", column.removeprefix("loss_"), rows
    olmo = lines("olmo_ladder_final.csv")
    for column in [c for c in olmo[0] if c.endswith(("/ce", "_bpb"))]:
        kind = "OLMo ladder" if column.endswith("/ce") else "OLMo ladder, task answers"
        yield kind, column, [law.Row(float(r["N"]), float(r["D"]), float(r[column])) for r in olmo if r[column]]
    porian = [r for r in lines("porian_owt2_isoflop.csv") if r["kind"] == "isoflop_point"]
    for name in dict.fromkeys(r["experiment"] for r in porian):
        own = [r for r in porian if r["experiment"] == name]
        rows = [law.Row(float(r["n"]), float(r["tokens"]), float(r["loss"])) for r in own]
        yield "Porian", name.removeprefix("owt2|"), rows
    repeated = [r for r in lines("datablations_contour.csv") if float(r["epochs"]) <= MOST_EPOCHS]
    yield (
        "Muennighoff, ends and points on the way",
        f"at most {MOST_EPOCHS} epochs",
        [
            law.Row(float(r["num_params"]), float(r["token_num"]), float(r["openLM_loss"]), unique_of(r))
            for r in repeated
        ],
    )


def unique_of(row: dict[str, str]) -> float:
    """Unique tokens of a row of datablations: tokens over epochs (its `tokens_per_epoch` says 1.5e9 everywhere)."""
    return float(row["token_num"]) / float(row["epochs"])


def counted(group: str) -> bool:
    """Whether a group counts for the bars: losses on running text. The others are shown."""
    return "," not in group  # what stands after it says why not


def widening(outcomes: Sequence[Outcome]) -> float:
    """The factor at which HOLDS of the cases hold, every group with the same weight."""
    number: dict[str, int] = defaultdict(int)
    for o in outcomes:
        number[o.case.group] += 1
    ordered = sorted((o.wanted, 1 / number[o.case.group]) for o in outcomes)
    summed = np.cumsum([w for _, w in ordered])
    return ordered[int(np.searchsorted(summed, HOLDS * summed[-1]))][0]


def line(name: str, outcomes: Sequence[Outcome], stretch: float, left_out: Sequence[float] | None) -> str:
    """One row of the table in Markdown."""
    errors = np.array([abs(math.expm1(o.error)) for o in outcomes])
    held = np.mean([o.wanted <= stretch for o in outcomes])
    width = np.median([o.half_width(stretch) for o in outcomes])
    cells = [
        name,
        str(len(outcomes)),
        f"{100 * np.median(errors):.2f}%",
        f"{100 * np.percentile(errors, 90):.1f}%",
        f"{100 * held:.0f}%",
        ""
        if left_out is None
        else f"{100 * np.mean([o.wanted <= s for o, s in zip(outcomes, left_out, strict=True)]):.0f}%",
        f"{100 * width:.1f}%",
    ]
    return "| " + " | ".join(cells) + " |"


def report(outcomes: Sequence[Outcome], unseen: Sequence[Outcome]) -> tuple[str, dict[str, object]]:
    """The table, and what it says in numbers."""
    core = [o for o in outcomes if counted(o.case.group)]
    groups = list(dict.fromkeys(o.case.group for o in core))
    without = {g: widening([o for o in core if o.case.group != g]) for g in groups}
    stretch = posterior.CALIBRATION
    head = ["back-tests of", "number", "median error", "90% of errors", "held", "left out", "median half-width"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for group in groups:
        own = [o for o in core if o.case.group == group]
        lines.append(line(group, own, stretch, [without[group]] * len(own)))
        names = list(dict.fromkeys(o.case.name for o in own))
        if group == "Porian":
            lines += [
                line(f"- {n.replace('|', ' ')}", [o for o in own if o.case.name == n], stretch, None) for n in names
            ]
    lines.append(line("**all of the above**", core, stretch, [without[o.case.group] for o in core]))
    others = [o for o in outcomes if not counted(o.case.group)]
    for group in dict.fromkeys(o.case.group for o in others):
        lines.append(line(f"not counted: {group}", [o for o in others if o.case.group == group], stretch, None))
    for name in dict.fromkeys(o.case.name for o in unseen):
        lines.append(line(f"unseen: {name}", [o for o in unseen if o.case.name == name], stretch, None))
    figures = {
        "cases": len(core),
        "held": float(np.mean([o.wanted <= stretch for o in core])),
        "held_left_out": float(np.mean([o.wanted <= without[o.case.group] for o in core])),
        "lowest_held": min(float(np.mean([o.wanted <= stretch for o in core if o.case.group == g])) for g in groups),
        "median_half_width": float(np.median([o.half_width(stretch) for o in core])),
        "widening": widening(core),
        "stored_widening": stretch,
        "widening_without": without,
    }
    return "\n".join(lines), figures


def write(page: Path, name: str, text: str) -> None:
    """Put the text between the two marks of that name in a page."""
    old = page.read_text(encoding="utf-8")
    start, end = MARK.format(f"start {name}"), MARK.format(f"end {name}")
    before, _, rest = old.partition(start)
    _, _, after = rest.partition(end)
    if not (rest and after):
        raise ForetellError(f"{page} has no `{start}` and `{end}`")
    page.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--docs", type=Path, help="page whose table is renewed")
    parser.add_argument("--out", type=Path, help="JSON with every back-test")
    parser.add_argument("--unseen", type=Path, nargs="*", default=[], help="tables that choose nothing")
    arguments = parser.parse_args()
    found = [c for group, name, rows in public(arguments.folder) for c in cases(group, name, rows)]
    fresh = [c for path in arguments.unseen for c in cases("unseen", path.stem, tables.read(path).rows)]
    with Pool() as pool:
        outcomes = pool.map(outcome, [*found, *fresh], chunksize=4)
    text, figures = report(outcomes[: len(found)], outcomes[len(found) :])
    print(text)
    print(json.dumps(figures, indent=1))
    if arguments.docs:
        write(arguments.docs, "table", text)
    if arguments.out:
        every = [
            {
                "group": o.case.group,
                "name": o.case.name,
                "parameters": o.case.target.parameters,
                "tokens": o.case.target.tokens,
                "rows": len(o.case.rows),
                "ratio": o.case.ratio,
                "measured": o.case.target.loss,
                "error": math.expm1(o.error),
                "half_width": o.half_width(posterior.CALIBRATION),
                "held": o.wanted <= posterior.CALIBRATION,
            }
            for o in outcomes
        ]
        arguments.out.write_text(json.dumps({**figures, "back_tests": every}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

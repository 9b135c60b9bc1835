"""Published fits and extrapolations of scaling laws, made again from their tables.

    python benchmarks/law_reproductions.py FOLDER [--docs docs/scaling-laws.md] [--chinchilla CSV]

FOLDER holds the tables and expected.json (docs/scaling-laws.md names their sources). --chinchilla: the 245 runs that
Besiroglu et al. (2024) read off figure 4 of Hoffmann et al. (params, tokens, loss), which are not ours to pass on.
Prints one line a figure: theirs, ours, and whether it is reproduced, that is within the tolerance named.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import law_backtests
import numpy as np

from foretell.ladder import table as tables
from foretell.plan import accuracy, law

Line = tuple[str, str, str, str]
C4_VAL = "loss_c4_val_shard-{0000000..0000010}"


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def judged(close: bool) -> str:
    return "yes" if close else "**no**"


def constants(folder: Path, expected: dict[str, Any]) -> Iterator[Line]:
    """The four fits of expected.json: each constant within half a bootstrap standard deviation."""
    gadre, olmo = folder / "gadre_c4_rpj.csv", folder / "olmo_ladder_final.csv"
    sources = {
        "gadre c4_original, loss_c4_val": (gadre, {"loss": C4_VAL}, {"dataset": "c4_original"}),
        "gadre rpj, loss_c4_val": (gadre, {"loss": C4_VAL}, {"dataset": "rpj"}),
        "olmo ladder 16 runs, c4_en-validation/ce": (olmo, {"loss": "c4_en-validation/ce"}, {"target": "0"}),
        "olmo ladder 16 runs, pile-validation/ce": (olmo, {"loss": "pile-validation/ce"}, {"target": "0"}),
    }
    for name, (path, columns, where) in sources.items():
        theirs = expected["fit_constants"][name]["reference_fit"]
        ours = law.fit(tables.read(path, columns, where).rows)
        found = {k: getattr(ours, k) for k in ("E", "A", "B", "alpha", "beta")}
        close = all(abs(found[k] - v) <= 0.5 * theirs["bootstrap_sd"][k] for k, v in theirs["fit"].items())
        shown = [", ".join(f"{k} {values[k]:.5g}" for k in found) for values in (theirs["fit"], found)]
        yield name.replace("|", " "), shown[0], shown[1], judged(close)


def gadre_protocol(folder: Path) -> Iterator[Line]:
    """Five runs of the RedPajama table, the tied law, two targets 280 and 392 times as dear."""
    own = [r for r in lines(folder / "gadre_c4_rpj.csv") if r["dataset"] == "rpj"]

    def pick(size: float, multiplier: float) -> law.Row:
        row = next(
            r
            for r in own
            if abs(float(r["params"]) / size - 1) < 0.1 and float(r["chinchilla_multiplier"]) == multiplier
        )
        return law.Row(float(row["params"]), float(row["tokens"]), float(row[C4_VAL]))

    rows = [pick(s, 1) for s in (1.06e7, 7.9e7, 1.54e8, 4.12e8)] + [pick(1.06e7, 16)]
    robust = law.fit(rows, form="tied")
    for name, target, theirs in (("1.4B on 921B", pick(1.44e9, 32), 0.7103), ("6.9B on 138B", pick(6.9e9, 1), 0.732)):
        plain = 100 * (squares(rows, target) / target.loss - 1)
        error = 100 * (law.loss(robust, target.parameters, target.tokens) / target.loss - 1)
        shown = f"{plain:+.2f}% by least squares as theirs; {error:+.2f}% by `law.fit`"
        yield f"Gadre, 5 runs: {name}", f"{theirs:.2f}% off", shown, judged(abs(abs(plain) - theirs) < 0.05)


def squares(rows: list[law.Row], target: law.Row) -> float:
    """The tied law by least squares of the loss itself, at the target."""

    def terms(row: law.Row, exponent: float) -> list[float]:
        return [1.0, (row.parameters / 1e8) ** -exponent, (row.tokens / 1e10) ** -exponent]

    best = (math.inf, 0.0)
    for exponent in np.linspace(0.02, 1.0, 981):
        x, y = np.array([terms(r, exponent) for r in rows]), np.array([r.loss for r in rows])
        solved = np.linalg.lstsq(x, y, rcond=None)[0]
        best = min(best, (float(np.sum((x @ solved - y) ** 2)), float(solved @ terms(target, exponent))))
    return best[1]


def olmo(folder: Path, expected: dict[str, Any]) -> Iterator[Line]:
    """The 16 runs of the OLMo ladder to 7B on 4T tokens: the plain law, the coupled one, and the forecast."""
    path = folder / "olmo_ladder_final.csv"
    names = {
        "c4": "c4_en-validation/ce",
        "pile": "pile-validation/ce",
        "dolma_common-crawl": "dolma_common-crawl-validation/ce",
        "dolma_stack": "dolma_stack-validation/ce",
    }
    for short, column in names.items():
        rows = tables.read(path, {"loss": column}, {"target": "0"}).rows
        target = tables.read(path, {"loss": column}, {"target": "1"}).rows[0]
        theirs = expected["extrapolation"]["olmo ladder 16 runs -> 7B-4T"][f"{short} err_pct"]
        plain, coupled = (
            100 * (law.loss(law.fit(rows, form=f), target.parameters, target.tokens) / target.loss - 1)
            for f in ("chinchilla", "coupled")
        )
        found = law.forecast(rows, target.parameters, target.tokens)
        shown = f"{plain:+.2f}%; coupled {coupled:+.2f}%, forecast {100 * (found['value'] / target.loss - 1):+.2f}%"
        yield f"OLMo ladder to 7B-4T, {short}", f"{theirs:+.2f}%", shown, judged(abs(plain - theirs) < 0.1)


def olmo_tasks(folder: Path) -> Iterator[Line]:
    """Task loss to accuracy at the target (OLMo's step 2), on final runs alone; theirs also saw runs on the way."""
    rows = lines(folder / "olmo_ladder_final.csv")
    published = {r["Task"]: r for r in lines(folder / "olmo_published_step2_main.csv")}
    for task, theirs in published.items():
        name = task.removesuffix("_5shot")
        loss, score = f"downstream_bpb/{name}_rc_5shot_bpb", f"downstream/{name}_rc_5shot_len_norm"
        if loss not in rows[0] or score not in rows[0]:
            continue
        ladder = [(float(r[loss]), float(r[score])) for r in rows if r["target"] == "0" and r[loss] and r[score]]
        target = next(r for r in rows if r["target"] == "1")
        curve = accuracy.fit([p[0] for p in ladder], [p[1] for p in ladder])
        actual, found = float(target[score] or "nan"), accuracy.accuracy(curve, float(target[loss]))
        off = f"{100 * (found / actual - 1):+.1f}%"
        close = abs(found / actual - 1) < abs(float(theirs["Rel Error"])) + 0.03
        yield f"OLMo step 2, {name}", f"{100 * float(theirs['Rel Error']):+.1f}%", off, judged(close)


def porian(folder: Path) -> Iterator[Line]:
    """The exponent of N*(C) in five experiments: from the authors' optima, and from parabolas of our own."""
    rows = lines(folder / "porian_owt2_isoflop.csv")
    for theirs in lines(folder / "porian_owt2_fit_expected.csv"):
        own = [r for r in rows if r["experiment"] == theirs["experiment"]]
        optima = [r for r in own if r["kind"] == "optimum" and r["n"]]
        slope = np.polyfit(np.log([float(r["flops"]) for r in optima]), np.log([float(r["n"]) for r in optima]), 1)[0]
        budgets, best = [], []
        for flops in sorted({float(r["flops"]) for r in optima}):
            points = [r for r in own if r["kind"] == "isoflop_point" and float(r["flops"]) == flops]
            if (found := lowest(points)) is not None:
                budgets.append(math.log(flops))
                best.append(found)
        parabolas = float(np.polyfit(budgets, best, 1)[0])
        wanted = float(theirs["n_exponent"])
        name = theirs["experiment"].removeprefix("owt2|").replace("|", " ")
        shown = f"{slope:.4f}; own parabolas {parabolas:.4f}"
        yield f"Porian, exponent of N*(C): {name}", f"{wanted:.4f}", shown, judged(abs(slope - wanted) < 0.02)


def lowest(points: list[dict[str, str]]) -> float | None:
    """Log size at the minimum of a parabola through the five points around the best one; None where it is at an end."""
    ordered = sorted((float(p["n"]), float(p["loss"])) for p in points)
    centre = min(range(len(ordered)), key=lambda i: ordered[i][1])
    near = ordered[max(0, centre - 2) : centre + 3]
    if len(near) < 5:
        return None
    size, loss = np.log([n for n, _ in near]), np.array([v for _, v in near])
    square, straight, _ = np.polyfit(size - size.mean(), loss, 2)
    return float(size.mean() - straight / square / 2) if square > 0 else None


def repeats(folder: Path) -> Iterator[Line]:
    """R_D* on the repeated-data runs, to the number of epochs up to which the law is meant."""
    every = lines(folder / "datablations_contour.csv")
    for most in (4, 16, 64):
        rows = [
            law.Row(float(r["num_params"]), float(r["token_num"]), float(r["openLM_loss"]), law_backtests.unique_of(r))
            for r in every
            if float(r["epochs"]) <= most
        ]
        fitted = law.fit(rows, form="tied")
        shown = f"R_D* {fitted.repeat or 0.0:.1f}, alpha = beta {fitted.alpha:.3f}"
        yield f"Muennighoff, at most {most} epochs", "R_D* 15.4, .353", shown, "other runs, see below"


def chinchilla(path: Path) -> Iterator[Line]:
    """Besiroglu et al. (2024): 240 of the 245 runs, and what the five left out do to beta."""
    rows = sorted(tables.read(path).rows, key=lambda r: r.loss)
    theirs = {"E": (1.8172, 0.03), "A": (482.01, 124.58), "B": (2085.43, 1293.23), "alpha": (0.3478, 0.02)}
    theirs["beta"] = (0.3658, 0.02)
    ours = law.fit(rows[:-5])
    found = {k: getattr(ours, k) for k in theirs}
    close = all(abs(found[k] - value) <= sd for k, (value, sd) in theirs.items())
    shown = [", ".join(f"{k} {v:.5g}" for k, v in d.items()) for d in ({k: v[0] for k, v in theirs.items()}, found)]
    yield "Besiroglu, 240 runs of Chinchilla", shown[0], shown[1], judged(close)
    every = law.fit(rows)
    yield "the same, all 245 runs", "beta .453", f"beta {every.beta:.4f}", judged(abs(every.beta - 0.453) < 0.001)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--expected", type=Path, help="expected.json; beside the folder when not given")
    parser.add_argument("--docs", type=Path, help="page whose table is renewed")
    parser.add_argument("--chinchilla", type=Path)
    arguments = parser.parse_args()
    expected = json.loads((arguments.expected or arguments.folder.parent / "expected.json").read_text(encoding="utf-8"))
    found = [
        *constants(arguments.folder, expected),
        *gadre_protocol(arguments.folder),
        *olmo(arguments.folder, expected),
        *olmo_tasks(arguments.folder),
        *porian(arguments.folder),
        *repeats(arguments.folder),
        *(chinchilla(arguments.chinchilla) if arguments.chinchilla else ()),
    ]
    text = "\n".join(
        [
            "| figure | theirs | ours | reproduced |",
            "| --- | --- | --- | --- |",
            *(f"| {' | '.join(r)} |" for r in found),
        ]
    )
    print(text)
    if arguments.docs:
        law_backtests.write(arguments.docs, "reproductions", text)


if __name__ == "__main__":
    main()

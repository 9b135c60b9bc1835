"""`foretell ladder run`: train the rungs, forecast the target, write that down, and climb to it if asked.

Every rung is an ordinary run, trained by THE loop and resumed like one, so a ladder that was killed goes on where it
was, and nothing finished is trained again. The lengths of one size and seed are a chain: each goes on from a copy of
the checkpoint at which the shorter one began to decay. Chains depend on nothing but the design, so several processes
may work on one ladder: each takes a chain that nobody holds (`data/claims.py`). The execution path (dtype, attention,
no compiling) is decided once, by a trial at the target's shape, and is the same on all rungs and the target.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foretell import config as run_config
from foretell.checkpoint import files
from foretell.config import RunConfig, Table
from foretell.data import Data
from foretell.data.claims import Claims
from foretell.errors import ConfigError, Interrupted
from foretell.ladder import design, folder
from foretell.ladder.design import Rung
from foretell.ladder.folder import Ladder
from foretell.ladder.foretold import climbed, foretold, scored
from foretell.train import begin, decide, go_on
from foretell.train.branch import branch

Display = Callable[[dict[str, Any]], None]
# What the display hears of a rung's own training: not its forecast and its scores, which the ladder tells in a line.
_HEARD = ("start", "step", "eval")
# How often it is looked whether others have finished what they hold.
_LOOK_SECONDS = 1.0
# What is a target's own: size, length, and what follows from them.
_OF_A_TARGET = {
    "model": {"hidden_size", "num_hidden_layers", "intermediate_size", "head_dim", "num_attention_heads"}
    | {"num_key_value_heads", "moe_intermediate_size"},
    "train": {"steps", "tokens", "budget", "seed", "micro_batch_size", "loss_chunk_tokens"}
    | {"save_every", "keep", "eval_every", "eval_tokens"},
    "ladder": set(run_config.LadderConfig.model_fields),
}
# What `transfer.py` decides for every run, where whoever began the ladder did not.
_RULED = {"lr", "embedding_lr", "global_batch_tokens", "warmup_steps"}


def run(
    config: RunConfig,
    data: Data,
    out: Path,
    *,
    machine: dict[str, Any],
    climb: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Train what is missing of the ladder in `out`, forecast the config's run, and with `climb` train and score it.

    Returns fit, rungs, forecast, compute_ratio, and once climbed measured, error_percent and held. Raises ConfigError
    where the folder holds a ladder of another text or recipe, Interrupted when a signal came: all is saved then.
    """
    show = display or (lambda event: None)
    ladder = _designed(config, data, Path(out), machine, show)
    _check(ladder, config, data)
    target = design.settled(_of_ladder(config, ladder), data.corpus, machine)
    _train_all(ladder, data, machine, show)
    found = folder.rows(ladder)
    folder.write_table(ladder, found)
    foretelling = foretold(ladder, target, data.corpus, found)
    show({"event": "forecast", **foretelling})
    if climb:
        with _told_how_to_go_on(ladder, " --climb"):
            climbed(ladder, target, data, foretelling, machine=machine, display=show)
    return scored(ladder, foretelling, found)


def _designed(config: RunConfig, data: Data, out: Path, machine: dict[str, Any], show: Display) -> Ladder:
    """The folder's ladder, or a new one for this target. Raises ConfigError where the folder holds something else."""
    stored = folder.read_design(out)
    if stored is not None:
        return stored
    if out.exists() and (not out.is_dir() or any(p.name[0] != "." for p in out.iterdir())):
        raise ConfigError(f"{out} exists already and is no ladder; choose another --name")
    if config.train.compile == "on":
        raise ConfigError("train.compile=on: rungs are too short to be worth compiling, and all must run alike")
    target = design.settled(run_config.updated(config, train={"compile": "off"}), data.corpus, machine)
    rungs = design.rungs(target, config.train)
    is_open = "auto" in (target.train.dtype, target.train.attention)
    target, _ = decide(target, data, machine, show, trials=is_open)
    ruled = {k: getattr(config.train, k) for k in sorted(_RULED) if getattr(config.train, k) is not None}
    ladder = Ladder(out, target, ruled, rungs, data.index["fingerprint"])
    out.mkdir(parents=True, exist_ok=True)
    folder.write_design(ladder, datetime.now(UTC).isoformat(timespec="seconds"))
    return ladder


def _check(ladder: Ladder, config: RunConfig, data: Data) -> None:
    """Raises ConfigError where what is asked for now is not what the ladder was made with."""
    if data.index["fingerprint"] != ladder.fingerprint:
        raise ConfigError(
            f"{ladder.folder} was trained on other data (fingerprint {ladder.fingerprint[:12]}) than is given now "
            f"({data.index['fingerprint'][:12]}); give the same data, or choose another --name"
        )
    made = run_config.updated(ladder.base, train={k: ladder.given.get(k) for k in _RULED})
    changed = []
    for name, table in config:
        if isinstance(table, Table) and name != "data":
            for key in sorted(table.model_fields_set - _OF_A_TARGET.get(name, set())):
                old, new = getattr(getattr(made, name), key), getattr(table, key)
                if new is not None and new != "auto" and old != new:
                    changed.append(f"{name}.{key}: {'unset' if old is None else old} then, {new} now")
    if changed:
        raise ConfigError(
            f"{ladder.folder} was made otherwise: " + "; ".join(changed) + ". Leave that out, or choose another --name."
        )


def _of_ladder(config: RunConfig, ladder: Ladder) -> RunConfig:
    """The config of a target: what the ladder has in common, with this target's own size and length."""
    raw = ladder.base.model_dump(exclude_none=True)
    for name, keys in _OF_A_TARGET.items():
        own = getattr(config, name)
        given = {k: getattr(own, k) for k in keys & own.model_fields_set}
        raw[name] = {k: v for k, v in raw[name].items() if k not in keys | _RULED} | given
    raw["train"] |= ladder.given
    return run_config.validate(raw)


def _train_all(ladder: Ladder, data: Data, machine: dict[str, Any], show: Display) -> None:
    """Until all rungs are finished, here or in other processes that work on the same ladder."""
    claims = Claims(ladder.folder / ".claims")
    chains: dict[tuple[int, int], list[Rung]] = {}
    for rung in ladder.rungs:
        chains.setdefault((rung.hidden_size, rung.seed), []).append(rung)
    waiting = False
    while left := [c for c in chains if not all(_is_finished(ladder, r) for r in chains[c])]:
        claims.free_the_lost()
        for width, seed in left:
            with claims.held(f"w{width}-s{seed}") as held:
                if held is not None:
                    _train_chain(ladder, chains[width, seed], data, machine, show)
                    break
        else:
            if not waiting:
                show({"event": "waiting", "left": len(left)})
            waiting = True
            time.sleep(_LOOK_SECONDS)


def _train_chain(ladder: Ladder, chain: list[Rung], data: Data, machine: dict[str, Any], show: Display) -> None:
    """The lengths of one size and seed, one after the other."""
    for rung in chain:
        if _is_finished(ladder, rung):
            continue
        done = [r for r in ladder.rungs if _is_finished(ladder, r)]
        whole = sum(map(_own_flops, ladder.rungs))
        share = sum(map(_own_flops, done)) / whole
        show({"event": "rung", **rung.record(), "done": len(done), "of": len(ladder.rungs), "share": share})
        with _told_how_to_go_on(ladder, ""):
            _train(ladder, rung, data, machine, show)
        finished = folder.read_json(ladder.run_folder(rung.name) / "measured.json") or {}
        show({"event": "rung finished", "name": rung.name, **{k: finished[k] for k in ("loss", "bits_per_byte")}})
        folder.write_table(ladder, folder.rows(ladder))
        _drop_checkpoints(ladder, chain)


def _train(ladder: Ladder, rung: Rung, data: Data, machine: dict[str, Any], show: Display) -> None:
    """One rung, from where it stands, or from where the one before it in the chain began to decay."""

    def heard(event: dict[str, Any]) -> None:
        if event["event"] in _HEARD:
            show(event)

    own = ladder.run_folder(rung.name)
    config = design.run_of(ladder.base, rung)
    begin(config, data, own, 1, machine=machine, resume=True, display=heard, trials=False)
    if rung.origin is not None:
        origin = next(r for r in ladder.rungs if r.name == rung.origin)
        branch(own, ladder.run_folder(origin.name), origin.trunk_steps)
    go_on(own, data, resume=True, display=heard)


def _is_finished(ladder: Ladder, rung: Rung) -> bool:
    return (ladder.run_folder(rung.name) / "measured.json").exists()


def _own_flops(rung: Rung) -> float:
    """FLOPs of a rung's own steps; those of the trunk before are counted with the rung that it goes on from."""
    return rung.flops if rung.origin is None else rung.flops / rung.steps * (rung.steps - rung.trunk_steps / 2)


def _drop_checkpoints(ladder: Ladder, chain: list[Rung]) -> None:
    """Remove checkpoints that no rung goes on from any more."""
    for rung, following in zip(chain, [*chain[1:], None], strict=True):
        if _is_finished(ladder, rung) and (following is None or _is_finished(ladder, following)):
            files.remove(ladder.run_folder(rung.name) / "checkpoints")


@contextmanager
def _told_how_to_go_on(ladder: Ladder, options: str) -> Iterator[None]:
    try:
        yield
    except Interrupted as e:
        raise Interrupted(
            f"interrupted; everything is saved. Go on with the same command: foretell ladder run --name "
            f"{ladder.folder.name} --out {ladder.folder.parent}{options} ...",
            e.exit_code - 128,
        ) from None

"""`foretell train`: from a config and prepared data to a run folder. Forecast, then the loop, then the measurement.

Order of decisions, each written into config.toml so that the folder repeats the run: what the text is like (a short
probe), how large the model is (`plan`), which execution path is fastest (a trial), how many steps fit (`plan` again).
The number of steps is fixed before the first one; the clock does not end the run, except for a guard at 1.25 times a
budget.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from foretell import config as run_config
from foretell import plan, runtime
from foretell.checkpoint import files
from foretell.config import RunConfig
from foretell.data import Data
from foretell.distributed import record
from foretell.distributed.mesh import join_alone
from foretell.distributed.placed import Placed
from foretell.errors import ConfigError
from foretell.plan import layout
from foretell.plan.rows import MULTIPLE
from foretell.train import export, loop, objectives, preference, trial, tune
from foretell.train import log as run_log
from foretell.train.alone import Alone, Team
from foretell.train.loop import Display, Job
from foretell.vectors import embedding, wordmap

GUARD = 1.25
# Below this many seconds a run is not worth a probe or a trial.
WORTH_PROBING_SECONDS = 60.0
RESULT_FIELDS = (
    *("run", "model", "steps", "tokens", "seconds", "tokens_per_second", "mfu", "loss", "perplexity", "train_loss"),
    *("bits_per_byte", "resumed_from", "stopped"),
)


def train(
    config: RunConfig,
    data: Data,
    run: Path,
    *,
    machine: dict[str, Any],
    resume: bool = False,
    allow_drift: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Train in the folder `run`; returns the fields of `foretell train --json`.

    machine: the record of `foretell.calibrate`. resume: go on where the folder stands, or start where it is empty.
    Raises ConfigError when the folder exists and resume is off, or when a resume would change the execution path.
    """
    begin(config, data, run, 1, machine=machine, resume=resume, allow_drift=allow_drift, display=display)
    return go_on(run, data, resume=resume, display=display)


def begin(
    config: RunConfig,
    data: Data,
    run: Path,
    processes: int,
    *,
    machine: dict[str, Any],
    resume: bool = False,
    allow_drift: bool = False,
    display: Display | None = None,
    trials: bool = True,
) -> None:
    """Make the folder `run` ready for `go_on` in so many processes: every decision made and written into it.

    trials: whether the text is probed and execution paths are tried, where the run is long enough for that.
    """
    run, show = Path(run), display or (lambda event: None)
    torch.set_num_threads(runtime.threads())
    _claim(run, resume)
    if (run / "measured.json").exists():
        return
    if (run / "config.toml").exists():
        config = _stored_config(run, config, data, {**machine, "processes": processes}, allow_drift)
        tune.check(config, data)
        _check(config, data, processes)
        forecast = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    else:
        config = tune.settled(objectives.lasting(objectives.fitting(config, data), data))
        tune.check(config, data)
        config, forecast = decide(_divided(config, processes), data, machine, show, processes, trials)
        embedding.start(config.train.init_embedding, data.tokenizer, config.model)  # what is wrong is said here
        if config.train.init_embedding is not None:
            wordmap.keep(Path(config.train.init_embedding), run)
        _write_folder(run, config, forecast, data, {**machine, "processes": processes})
    show({"event": "plan", "plan": forecast, "config": config})


def go_on(run: Path, data: Data, *, resume: bool, display: Display | None = None) -> dict[str, Any]:
    """Train what `begin` made ready, in this process or, where several were started, together with the others."""
    run, show = Path(run), display or (lambda event: None)
    torch.set_num_threads(runtime.threads())
    if (run / "measured.json").exists():
        stored = json.loads((run / "measured.json").read_text(encoding="utf-8"))
        return {k: stored.get(k) for k in RESULT_FIELDS} | {"run": str(run), "model": str(run / "model")}
    config = run_config.load(run / "config.toml")
    if runtime.world_size() == 1 and not _is_plain(config, 1):
        join_alone()
    forecast, machine = (json.loads((run / n).read_text(encoding="utf-8")) for n in ("plan.json", "machine.json"))
    team = _team(config, embedding.start(config.train.init_embedding, data.tokenizer, config.model))
    job = _job(config, data, run, machine, forecast, team.told(secrets.token_hex(8)))
    if config.train.objective == "dpo":
        show({"event": "evaluating", "split": "train"})
        job = replace(job, reference=preference.reference(team, config, data, run))
    runtime.reset_peak_memory()
    outcome = loop.run(team, job, resume=resume, display=show)
    peak = int(team.maxima(torch.tensor([runtime.peak_memory_bytes()]))[0])
    show({"event": "evaluating", "split": "valid"})
    measured = _measured(run, config, job, team, forecast, outcome, peak)
    scores = None
    if data.index["splits"].get("test", {}).get("tokens"):
        show({"event": "evaluating", "split": "test"})
        scores = _scores(team, job, "test", config)
    if team.rank == 0:
        export.model(run, config, data, team)
        if scores is not None:
            _write_json(run / "eval.json", {"split": "test", **scores})
            show({"event": "scores", "split": "test", "scores": scores})
        _write_json(run / "measured.json", measured)
    team.agreed(0)  # nobody leaves before the folder is whole
    return {k: measured.get(k) for k in RESULT_FIELDS}


def _divided(config: RunConfig, processes: int) -> RunConfig:
    """The config with [parallel] complete for so many processes. Raises ConfigError where it means another number."""
    d = layout.degrees(config.parallel, processes)
    if _is_plain(config, processes):
        return config
    if config.train.compile == "on":
        which = f"on {processes} processes" if processes > 1 else "with parallel.strict or parallel.offload"
        raise ConfigError(f"train.compile=on cannot be had {which} yet; leave it out")
    return run_config.updated(config, parallel={"dp_shard": d.dp_shard}, train={"compile": "off"})


def _is_plain(config: RunConfig, processes: int) -> bool:
    """Whether a run is of one process without anything of `distributed`."""
    return processes == 1 and not (config.parallel.strict or config.parallel.offload)


def _check(config: RunConfig, data: Data, processes: int) -> None:
    """Raises ConfigError or DataError for what cannot be learned or divided so."""
    c = config.train
    d = layout.degrees(config.parallel, processes)
    objectives.check(config, data)
    sequences = c.needed("global_batch_tokens") // c.context
    layout.check(d, config.parallel, config.model, c.context, sequences, c.needed("micro_batch_size"))


def _team(config: RunConfig, start: embedding.Start | None) -> Team:
    c = config.train
    if _is_plain(config, runtime.world_size()):
        model = tune.begun(config)
        if model is None:
            drawn = trial.built(config.model, c.dropout or 0.0, c.seed, c.attention, start)
            model = tune.adapted(drawn, config)
        return Alone(model)
    return Placed(
        config.model,
        config.parallel,
        c.context,
        seed=c.seed,
        dropout=c.dropout or 0.0,
        kernel=c.attention,
        dtype=runtime.dtype(c.dtype),
        start=start,
        weights=tune.initial(config),
        adapt=partial(tune.adapted, config=config),
    )


def decide(
    config: RunConfig,
    data: Data,
    machine: dict[str, Any],
    show: Display,
    processes: int = 1,
    trials: bool = True,
) -> tuple[RunConfig, dict[str, Any]]:
    """Every open choice closed: sizes, path, steps. Returns the complete config and its forecast.

    trials: whether text and shape may be tried first. Raises ConfigError where what was chosen cannot be divided among
    so many processes as [parallel] says.
    """
    objectives.check(config, data)
    text = data.corpus
    config = plan.with_recipe(config, data.index["fingerprint"])
    # A config that fixes its length, such as that of a finished run, is kept: its budget only sets the guard.
    fixed = config.train.steps or config.train.tokens
    budget = plan.parse_budget(config.train.budget) if config.train.budget and not fixed else None
    measured_probe = None
    worth = budget.is_worth_a_probe if budget else _seconds(config, text, machine, processes) > WORTH_PROBING_SECONDS
    by_law = config.train.base is None and config.train.objective == "next_token"
    if trials and worth and by_law:  # the probe is for the law
        show({"event": "probing"})
        measured_probe = trial.probe(data)
        show({"event": "probe", **measured_probe})
    if budget is not None:
        config = plan.size_for_budget(budget, machine=machine, corpus=text, probe=measured_probe, config=config)
    config = objectives.drawn(tune.counted(plan.completed(config, text, machine)), data)
    first = plan.plan(config, machine=machine, corpus=text, probe=measured_probe, processes=processes)
    seconds = float(first["seconds"]["value"])
    measured_trial = None
    if trials and seconds > WORTH_PROBING_SECONDS / 2:
        show({"event": "trying", "seconds": seconds})
        config, measured_trial = trial.choose_path(config, data, machine, seconds)
        if config.train.compile == "on":  # then all rows have one shape
            config = objectives.drawn(config, data)
        show({"event": "trial", **measured_trial})
    else:
        dtype = "float32" if config.train.dtype == "auto" else config.train.dtype
        compiled = "off" if config.train.compile == "auto" else config.train.compile
        attention = "sdpa" if config.train.attention == "auto" else config.train.attention
        config = run_config.updated(config, train={"dtype": dtype, "compile": compiled, "attention": attention})
    if budget is not None and budget.seconds is not None and measured_trial is not None:
        config = plan.steps_for_budget(
            budget, machine=machine, corpus=text, probe=measured_probe, trial=measured_trial, config=config
        )
    runtime.reset_peak_memory()
    here = {**machine, "process_bytes": _held_bytes(config, machine, measured_trial)}
    _check(config, data, processes)
    known = {"corpus": text, "probe": measured_probe, "trial": measured_trial}
    forecast = plan.plan(config, machine=here, processes=processes, **known)
    return config, {**forecast, "created": datetime.now(UTC).isoformat(timespec="seconds")}


def _held_bytes(config: RunConfig, machine: dict[str, Any], tried: dict[str, Any] | None) -> float:
    """What this process holds before the run: at least what the record says of one.

    A compiled trial has left both behind already, with the compiler that the forecast of a compiled run adds.
    """
    now = runtime.resident_memory_bytes()
    if tried is not None and config.train.compile == "on":
        return now - plan.COMPILER_BYTES
    return max(now, float(machine.get("process_bytes", 0)))


def _seconds(config: RunConfig, text: dict[str, Any], machine: dict[str, Any], processes: int) -> float:
    """The forecast before anything was tried."""
    first = plan.plan(plan.completed(config, text, machine), machine=machine, corpus=text, processes=processes)
    return float(first["seconds"]["value"])


def _claim(run: Path, resume: bool) -> None:
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run} is a file; a run needs a folder")
    if not resume and run.exists() and any(run.iterdir()):
        raise ConfigError(f"{run} exists already; go on with it by --resume, or choose another --name")
    run.mkdir(parents=True, exist_ok=True)


def _stored_config(run: Path, given: RunConfig, data: Data, machine: dict[str, Any], allow_drift: bool) -> RunConfig:
    """The folder's own config, after checking that nothing that decides the numbers has changed."""
    stored = run_config.load(run / "config.toml")
    drift: list[str] = []
    changes: dict[str, dict[str, Any]] = {}
    for name, table in given:
        if isinstance(table, run_config.Table):
            for key in sorted(table.model_fields_set):
                old, new = getattr(getattr(stored, name), key), getattr(table, key)
                if new is not None and new != "auto" and old != new:
                    drift.append(f"{name}.{key}: {old} then, {new} now")
                    changes.setdefault(name, {})[key] = new
    record = json.loads((run / "machine.json").read_text(encoding="utf-8"))
    for fact in ("processor", "threads", "torch"):
        if record.get(fact) != machine.get(fact):
            drift.append(f"{fact}: {record.get(fact)} then, {machine.get(fact)} now")
    if record.get("processes", 1) != machine["processes"]:
        drift.append(f"processes: {record.get('processes', 1)} then, {machine['processes']} now")
    saved = json.loads((run / "data.json").read_text(encoding="utf-8"))
    if saved["fingerprint"] != data.index["fingerprint"]:
        raise ConfigError(
            f"{run} was trained on other data (fingerprint {saved['fingerprint'][:12]}) than is given now "
            f"({data.index['fingerprint'][:12]}); give the same data, or choose another --name"
        )
    if drift and not allow_drift:
        raise ConfigError(
            f"{run} cannot be resumed bit for bit: " + "; ".join(drift) + ". Accept this with --allow-drift."
        )
    if not drift:
        return stored
    stored = run_config.updated(stored, **changes)
    _write_json(run / "machine.json", machine)
    files.write_atomic(run / "config.toml", run_config.dumps(stored).encode())
    return stored


def _write_folder(run: Path, config: RunConfig, forecast: dict[str, Any], data: Data, machine: dict[str, Any]) -> None:
    """plan.json before the run. config.toml comes last: where it is, the folder can be resumed."""
    _write_json(run / "plan.json", {"format_version": run_config.FORMAT_VERSION, **forecast})
    _write_json(run / "machine.json", machine)
    keys = ("fingerprint", "tokenizer", "splits", "funnel", "text_xz_bits_per_byte", "bytes_per_token", "unique_tokens")
    found = {k: data.index[k] for k in keys} | {k: data.index.get(k) for k in ("conversations", "task")}
    _write_json(run / "data.json", found | {"corpus": data.corpus, "prepared": str(data.path)})
    files.write_atomic(run / "config.toml", run_config.dumps(config).encode())


def prepared(run: Path) -> Path:
    """The prepared text that a run was begun with."""
    return Path(json.loads((run / "data.json").read_text(encoding="utf-8"))["prepared"])


def _write_json(path: Path, value: dict[str, Any]) -> None:
    files.write_atomic(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def _job(
    config: RunConfig, data: Data, run: Path, machine: dict[str, Any], forecast: dict[str, Any], session: str
) -> Job:
    budget = plan.parse_budget(config.train.budget) if config.train.budget else None
    limit = budget.seconds * GUARD if budget is not None and budget.seconds is not None else None
    return Job(
        config=config.train,
        data=data,
        folder=run,
        packing=config.data.packing,
        dtype=runtime.dtype(config.train.dtype),
        compiled=config.train.compile == "on" and runtime.world_size() == 1,  # it may have begun on one process
        flops_per_token=forecast["flops_per_token"],
        peak_flops_per_second=plan.peak_flops_per_second(machine),
        limit_seconds=limit,
        session=session,
        multiple=MULTIPLE if config.parallel.tp > 1 else 1,  # as the forecast of what ranks send has it
        start=config.model.decoder_start_token_id,
    )


def _scores(team: Team, job: Job, split: str, config: RunConfig) -> dict[str, Any]:
    """A whole split scored, in windows of [evaluate], else of the training's context."""
    e = config.evaluate
    context = (e.context if team.crew is None else None) or config.train.context  # a crew's windows are the training's
    return loop.scored(team, job, split, e.max_tokens, context=context, stride=e.stride)


def _communicated(run: Path) -> dict[str, float]:
    """Bytes that the first rank communicated in the step that was recorded; nothing where none was."""
    file = run / "collectives" / "rank-00000.json"
    return {"comm_step_bytes": float(sum(c.bytes for c in record.read(file)))} if file.exists() else {}


def _measured(
    run: Path,
    config: RunConfig,
    job: Job,
    team: Team,
    forecast: dict[str, Any],
    outcome: dict[str, Any],
    peak_bytes: int,
) -> dict[str, Any]:
    """measured.json: the forecast's fields as they came out, and the result of the verb."""
    c = config.train
    scores = _scores(team, job, "valid", config)
    steps = [e for e in run_log.read(run / "log.jsonl") if e["event"] == "step"]
    rates = sorted(e["tokens_per_second"] for e in steps)
    median_rate = rates[len(rates) // 2]
    last = [e["loss"] for e in steps[-max(1, len(steps) // 20) :] if e["loss"] is not None]
    return {
        "run": str(run),
        "model": str(run / "model"),
        "steps": outcome["steps"],
        "tokens": outcome["tokens"],
        "seconds": outcome["seconds"],
        "step_seconds": c.global_batch_tokens / median_rate,
        "tokens_per_second": outcome["tokens"] / outcome["seconds"],
        "mfu": median_rate * forecast["flops_per_token"] / forecast["peak_flops_per_second"],
        "flops_per_token": forecast["flops_per_token"],
        "flops_total": forecast["flops_per_token"] * outcome["tokens"],
        "memory_bytes": {"peak": peak_bytes},
        **_communicated(run),
        "parameters": {"total": plan.parameters(config.model)["total"]},
        "loss": scores["loss"],
        "perplexity": scores["perplexity"],
        "bits_per_byte": scores.get("bits_per_byte"),
        "train_loss": sum(last) / len(last) if last else None,
        "skipped_steps": sum("skipped" in e for e in steps),
        "recomputed_steps": sum("recomputed" in e for e in steps),
        "resumed_from": outcome["resumed_from"],
        "stopped": outcome["stopped"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "validation": scores,
    }

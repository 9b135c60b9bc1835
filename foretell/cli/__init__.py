"""The verbs. The only place that sees the whole config; each verb calls one function of the package it is named after.

Imports that bring torch stay inside the verbs, so that `foretell --help` answers at once. stdout is for results (one
JSON object with --json), stderr for progress. Exit codes: 0 done, 2 the user can mend it, 3 a check failed, 130 and 143
interrupted with everything saved.
"""

from __future__ import annotations

import io
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from foretell import __version__, errors
from foretell.cli import asking, finetuning, forecasting, talking
from foretell.cli.ladder import ladder_app
from foretell.cli.options import Base, Json, Out, Quiet, RunToml, console, emit, fail, read_config, with_options
from foretell.cli.tokenizer import tokenizer_app
from foretell.cli.vectors import vectors_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Foretell: train a language model you own, and know beforehand what it will cost and how good it will be.",
)

app.add_typer(ladder_app, name="ladder")
app.add_typer(vectors_app, name="vectors")
app.add_typer(tokenizer_app, name="tokenizer")


def main() -> None:
    """The `foretell` command."""
    if _trains(sys.argv[1:]) and not {"--help", "-h"} & set(sys.argv):
        from foretell import runtime

        runtime.tune_process()
    as_json = "--json" in sys.argv
    _take_any_text()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        # Without standalone mode a verb's typer.Exit comes back as its code, and so does Ctrl-C.
        code = app(standalone_mode=False)
        if code == 130:
            raise KeyboardInterrupt
    except errors.ForetellError as e:
        fail(str(e), e.exit_code, as_json)
    except typer.Exit as e:
        code = e.exit_code
    except (typer.Abort, KeyboardInterrupt):
        fail("interrupted", 130, as_json)
    except _Terminated:
        fail("ended by SIGTERM", 143, as_json)
    except BrokenPipeError:
        sys.stderr.close()
        code = 141
    except OSError as e:  # a full disk, a folder that may not be written
        fail(f"{e.filename}: {e.strerror}" if e.filename else str(e), 2, as_json)
    except Exception as e:
        # typer's own usage errors carry their exit code and know how to show themselves.
        if hasattr(e, "show") and hasattr(e, "exit_code"):
            e.show()
            sys.exit(2)
        raise
    sys.exit(code)


def _trains(words: list[str]) -> bool:
    alone = (["train"], ["finetune"], ["demo"], ["calibrate"])
    return words[:1] in alone or words[:2] in (["ladder", "run"], ["vectors", "train"])


class _Terminated(BaseException):
    """SIGTERM came; like KeyboardInterrupt no `except Exception` may hold it up."""


def _terminated(signum: int, frame: object) -> None:
    raise _Terminated


def _take_any_text() -> None:
    """A character that the terminal's encoding does not have is spelled out, a byte that is none is kept; no error."""
    for stream, way in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=way)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def demo(
    budget: Annotated[str, typer.Option(help="Training time.")] = "4m",
    out: Out = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The main job, forecast to report, on the text every Python installation carries. Nothing is downloaded."""
    from foretell import demo as main_job
    from foretell.cli.display import Display

    with Display(console(), quiet) as display:
        result = main_job.demo(budget, out, name, display)
    emit(result, as_json, lambda r: r["closing"])


@app.command()
def prepare(
    sources: Annotated[list[str], typer.Argument(help="Files, folders, globs, - for stdin, hf://name; key=value.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
    base: Annotated[
        Path | None, typer.Option("--base", help="In tokens, and the chat template, of this model, to go on from it.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core when not given.")] = None,
    engine: Annotated[str, typer.Option(help="processes, or ray: workers on a Ray cluster.")] = "processes",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn text into a tokenizer and token shards, with a funnel of what was kept, dropped and why."""
    from foretell import config, data
    from foretell.cli.display import Display

    overrides = [s for s in sources if re.match(r"\w+\.\w+=", s) and not Path(s).exists()]
    c = config.load(None, overrides)
    for key in overrides:
        if not key.startswith(("tokenizer.", "data.")) or key.startswith("data.source="):
            raise errors.ConfigError(f"`{key}` has no effect here: prepare reads [tokenizer], [data] and plain sources")
    if engine not in ("processes", "ray"):
        raise errors.ConfigError(f"--engine {engine}: there are processes and ray")
    kept = [s for s in sources if s not in overrides]
    if base is not None:
        from foretell.cli.steps import with_base

        c = with_base(str(base), c, out.parent, kept)
    with Display(console(), quiet) as display:
        where: Literal["processes", "ray"] = "ray" if engine == "ray" else "processes"
        result = data.prepare(kept, out, c.tokenizer, c.data, workers=workers, progress=display.prepare, engine=where)
    emit(result, as_json, data.render_funnel)


app.command()(forecasting.plan)


@app.command()
def train(
    arguments: RunToml = None,
    source: Annotated[str | None, typer.Option("--data", help="Text, or a prepared folder.")] = None,
    budget: Annotated[str | None, typer.Option(help="10m, 2h, 90s, or 1e15 FLOPs: sizes the model by itself.")] = None,
    base: Base = None,
    ladder: Annotated[
        Path | None,
        typer.Option("--ladder", help="A finished ladder's folder: its law decides, not the one that ships."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder; from the data when not given.")] = None,
    out: Out = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run of that name.")] = False,
    allow_drift: Annotated[bool, typer.Option("--allow-drift", help="Resume on another execution path.")] = False,
    processes: Annotated[int, typer.Option("--nproc", min=1, help="Processes here, divided as [parallel] says.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines on which this same command is started.")] = 1,
    rendezvous: Annotated[str | None, typer.Option(help="With --nodes: HOST:PORT of one of them.")] = None,
    max_restarts: Annotated[int, typer.Option(min=0, help="With --nproc: how often to start anew when one dies.")] = 3,
    begin_only: Annotated[
        bool, typer.Option("--begin-only", help="Decide, write the run folder, train nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Forecast, then train, then compare. Ctrl-C saves; --resume goes on bit for bit."""
    from foretell import runtime
    from foretell.cli.display import Display
    from foretell.cli.steps import Processes, train_and_report, work

    if runtime.is_worker():
        with Display(console(), quiet or runtime.rank() > 0) as display:
            work(out / (name or ""), Path(source) if source else None, display)
        return
    c = with_options(read_config(arguments), source, budget, ladder, base)
    with Display(console(), quiet) as display:
        where = Processes(processes, nodes, rendezvous, max_restarts, begin_only)
        result = train_and_report(c, out, name, resume, allow_drift, display, where)
    emit(result, as_json, lambda r: r["closing"])


@app.command()
def launch(
    kind: Annotated[str, typer.Argument(metavar="slurm|torchrun|ray", help="What the cluster is run by.")],
    arguments: RunToml = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    processes: Annotated[int, typer.Option("--nproc", min=1, help="Processes on each: its accelerators, say.")] = 1,
    name: Annotated[str | None, typer.Option(help="Name of the run folder; that of RUN.toml when not given.")] = None,
    out: Out = Path("runs"),
    time: Annotated[str | None, typer.Option(help="slurm: time limit, such as 24:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="slurm: partition.")] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Submit it (slurm: sbatch, ray: the job) as well.")] = False,
) -> None:
    """A script that trains RUN.toml on a cluster, to stdout. The folder must be one that all machines see."""
    import subprocess

    from foretell.cli import scripts

    if kind not in scripts.SCRIPTS:
        raise errors.ConfigError(f"launch {kind}: there are {', '.join(scripts.SCRIPTS)}")
    if submit and kind == "torchrun":
        raise errors.ConfigError("--submit: torchrun has no queue; start the script on each machine")
    read_config(arguments)  # what is wrong in it is said here, not in a queue
    words = arguments or []
    named = name or next((Path(w).stem for w in words if w.endswith(".toml")), None)
    if named is None:
        raise errors.ConfigError("the run needs a --name, the same on all machines")
    script = scripts.SCRIPTS[kind](scripts.Launch(words, named, str(out), nodes, processes, time, partition))
    print(script, end="")
    if submit:
        command = ["sbatch"] if kind == "slurm" else ["bash", "-s"]
        try:
            subprocess.run(command, input=script, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as e:
            raise errors.ForetellError(f"{' '.join(command)}: {e}") from None


app.command()(forecasting.verify)
app.command()(finetuning.finetune)
for _verb in (asking.translate, asking.summarize, asking.ask, talking.chat, asking.classify):
    app.command()(_verb)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run folder, a Hugging Face folder, an adapter's, or a GGUF file.")],
    source: Annotated[list[str] | None, typer.Option("--data", help="Text to score; may be given again.")] = None,
    context: Annotated[int | None, typer.Option(help="Window in tokens; the model's when not given.")] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens between windows; context when not given.")] = None,
    source_key: Annotated[str | None, typer.Option(help="Pairs: key or column of the source.")] = None,
    target_key: Annotated[str | None, typer.Option(help="Pairs: key or column of the target.")] = None,
    task: Annotated[str | None, typer.Option(help="A task of finetune's, or lm-eval:TASK[,TASK...].")] = None,
    target_language: asking.To = None,
    beams: asking.Beams = None,
    instruction: asking.Instruction = None,
    max_new_tokens: asking.Longest = None,
    features: asking.Features = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --task: the first so many examples.")] = None,
    answers: Annotated[Path | None, typer.Option(help="With --task: a file for the answers, JSON lines.")] = None,
    compare: Annotated[Path | None, typer.Option(help="With --task: whose answers to compare with MODEL's.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Of lm-eval: examples before each question.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Perplexity, bits per byte and next-token accuracy on text, each with an interval; with --task a task's scores.

    With --compare two runs', or two files of answers, item by item: the difference, and how likely chance has made it.
    An encoder is asked for hidden tokens, an encoder-decoder for targets of pairs, or for what was cut out of a text.
    """
    if compare is not None:
        asking.compare(model, compare, task, target_language, as_json)
        return
    if not source:
        raise errors.ConfigError("nothing to score: give --data FILE")
    from rich.markup import escape

    from foretell import evaluate as scoring
    from foretell.cli import scores
    from foretell.cli.display import Display

    if task is not None and not task.startswith("lm-eval:"):
        scores.refuse("no effect but on --task lm-eval:...", shots=shots)
        changes = {"target_language": target_language, "beams": beams}
        changes |= {"instruction": instruction, "max_new_tokens": max_new_tokens}
        asking.evaluate(
            model, task, source, changes, limit, (source_key, target_key), features, answers, as_json, quiet
        )
        return
    with Display(console(), quiet) as display:
        display.say(f"  [dim]scoring {escape(', '.join(source))} …[/]")
    if task is not None:
        alone = {"context": context, "stride": stride, "source_key": source_key, "target_key": target_key}
        scores.refuse("no effect with --task lm-eval:...", **alone, features=features, answers=answers)
        emit(scores.task(model, task, source, limit, shots), as_json, scores.render)
        return
    scores.refuse("no effect without --task", limit=limit, shots=shots, features=features, answers=answers)
    emit(scores.text(model, source, context, stride, (source_key, target_key)), as_json, scoring.render)


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="A run folder, a Hugging Face folder, an adapter's, or a GGUF file.")],
    prompt: Annotated[str | None, typer.Option(help="Text to go on from; asked for when not given.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest completion.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest; 0 all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the likeliest that sum to p.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Only those at least p times the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End at this text; may be given again.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
    as_json: Json = False,
) -> None:
    """Complete a prompt, streaming; without --prompt, ask for prompts until an empty line.

    An encoder-decoder takes the prompt for a source, and writes its target.
    """
    from foretell.cli.steps import answer_source, complete, load_model
    from foretell.config.model import ENCODERS

    if as_json and prompt is None:
        raise errors.ConfigError("generate --json needs a --prompt")
    loaded, tokenizer = load_model(model)
    if loaded.config.model_type in ENCODERS:
        draw = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        answer_source(
            loaded, tokenizer, prompt, {**draw, "min_p": min_p, "seed": seed}, as_json, stop, repetition_penalty
        )
        return
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": tuple(stop or ()),
        "seed": seed,
    }
    if as_json:
        from foretell import generate as completing

        emit(completing.generate(loaded, tokenizer, [prompt or ""], **options)[0], as_json)
    else:
        complete(loaded, tokenizer, prompt, options)


@app.command()
def embed(
    model: Annotated[Path, typer.Argument(help="A run folder or a Hugging Face folder of an encoder.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT...]", help="Texts.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A text a line, in UTF-8.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the vectors here: .npy or .safetensors.")] = None,
    as_json: Json = False,
) -> None:
    """A vector for each text, of length 1: a line of JSON each, or a file with --out."""
    from foretell import embed as embedding
    from foretell.cli.options import print_json
    from foretell.cli.steps import load_model

    given = [*(texts or []), *(embedding.lines(file) if file is not None else [])]
    if not given:
        raise errors.ConfigError("nothing to embed: give texts, or --file with a text a line")
    if out is not None and out.suffix not in embedding.SUFFIXES:
        raise errors.ConfigError(f"--out {out}: vectors are written as {' or '.join(embedding.SUFFIXES)}")
    loaded, tokenizer = load_model(model)
    found = embedding.embed(loaded, tokenizer, given)
    if found.cut:
        print(f"foretell: {found.cut:,} texts are longer than the model reads; they were cut", file=sys.stderr)
    result: dict[str, Any] = {"texts": len(given), "dimensions": found.vectors.shape[1], "cut": found.cut}
    if out is not None:
        embedding.write(found.vectors, out)
        emit({**result, "out": str(out)}, as_json, lambda r: f"{r['texts']:,} x {r['dimensions']:,} in {r['out']}")
    elif as_json:
        emit({**result, "vectors": found.vectors.tolist()}, as_json)
    else:
        for text, vector in zip(given, found.vectors.tolist(), strict=True):
            print_json({"text": text, "vector": vector})


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, several are compared; or a ladder's, or vectors'.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; RUN/report.html when not given.")] = None,
    as_json: Json = False,
) -> None:
    """Write the page of a run, a ladder or word vectors: self-contained, opens offline, in English and Chinese."""
    from foretell import report as pages

    path = pages.write(runs, out)
    emit({"report": str(path)}, as_json, lambda r: r["report"])


app.command()(forecasting.calibrate)

"""What several verbs do on the way: find the machine record, the prepared text, the model."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretell import config, errors
from foretell.cli.display import Display
from foretell.config import RunConfig

if TYPE_CHECKING:
    from foretell.data import Data
    from foretell.data.claims import Claims


def machine(display: Display) -> dict[str, Any]:
    """The record of this machine, measured now where there is none yet."""
    from foretell import calibrate

    if calibrate.stored() is None:
        display.say("  [dim]measuring this machine, once …[/]")
    return {**calibrate.record(), "lessons": lessons()}


def lessons_path() -> Path:
    """Where what earlier runs on this machine taught is kept, beside its record."""
    from foretell import runtime

    return runtime.cache_dir() / f"lessons-{runtime.machine_key()}.json"


def lessons() -> dict[str, Any]:
    """What `foretell verify --recalibrate` kept; nothing where it never ran."""
    try:
        kept = json.loads(lessons_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept["lessons"] if isinstance(kept, dict) and kept.get("format_version") == 1 else {}


def sources_of(c: RunConfig) -> list[str]:
    """The texts the config names. Raises ConfigError where it names none."""
    source = c.data.source
    if source is None:
        raise errors.ConfigError("no text to train on: give --data FOLDER, or data.source in the config")
    return [source] if isinstance(source, str) else source


def prepared(c: RunConfig, out: Path, display: Display) -> Any:
    """The prepared data of `c.data.source`: opened where it is prepared already, else prepared beside the runs."""
    from rich.markup import escape

    from foretell import data
    from foretell.data.objectives import SPECIAL

    sources = sources_of(c)
    if c.train.objective in SPECIAL and c.tokenizer.objective is None:
        c = config.updated(c, tokenizer={"objective": c.train.objective})
    if len(sources) == 1 and (Path(sources[0]) / "index.json").exists():
        opened = data.open_data(Path(sources[0]))
        for late in _late_settings(opened, c):
            display.say(f"  [yellow]no effect on text that is prepared already:[/] {escape(late)}")
        return opened
    if c.train.base is not None:
        c = with_base(c.train.base, c, out / "data", sources)
    key = json.dumps([sources, c.tokenizer.model_dump(), c.data.model_dump(exclude={"source", "packing"})])
    folder = out / "data" / f"{label(sources)}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    display.say(escape(f"preparing {', '.join(sources)} in {folder}"))
    named = any(Path(s).absolute().is_relative_to(out.absolute()) for s in sources)
    apart = None if named else out  # runs in the text's own folder would change the text with every run
    data.prepare(sources, folder, c.tokenizer, c.data, progress=display.prepare, without=apart)
    return data.open_data(folder)


def with_base(base: str, c: RunConfig, folder: Path, sources: list[str]) -> RunConfig:
    """The config with tokenizer and chat template of a model that is to be gone on from.

    folder: where the tokenizer is written. Raises ConfigError where another one was asked for.
    """
    return _with_template_of(base, _with_tokenizer_of(base, c, folder), sources)


def _with_tokenizer_of(base: str, c: RunConfig, folder: Path) -> RunConfig:
    from foretell.models import source

    asked = sorted(c.tokenizer.model_fields_set - {"objective"})
    if any(getattr(c.tokenizer, key) != type(c.tokenizer).model_fields[key].default for key in asked):
        raise errors.ConfigError(
            f"tokenizer.{asked[0]} has no effect with a base, whose tokenizer is kept; leave it out"
        )
    own = source.open(Path(base)).tokenizer
    file = folder / f"tokenizer-{own.digest[:16]}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        own.save(file)
    return config.updated(c, tokenizer={"path": str(file)})


def _with_template_of(base: str, c: RunConfig, sources: list[str]) -> RunConfig:
    """The config with the chat template of a model that the run goes on from, where there are conversations."""
    from foretell.data import conversations, readers
    from foretell.models import source
    from foretell.tokenizer import chat

    kind = c.data.format or conversations.recognised(readers.expand([s for s in sources if s != "-"]).entries)
    if kind not in ("chat", "preference"):
        return c
    brought = source.open(Path(base)).chat
    keys: dict[str, Any] = {"format": kind}
    if c.data.chat_template is None:
        own = chat.recognise(brought.template, brought.bos, brought.eos)
        keys |= {"chat_template": own.name, "chat_bos": own.bos, "chat_eos": own.eos}
        if c.data.chat_system is None:
            keys["chat_system"] = own.system
    return config.updated(c, data=keys)


def _late_settings(opened: Any, c: RunConfig) -> list[str]:
    """What the config asks of a text that is in tokens already, and so cannot have. Nothing is silently ignored."""
    own, wanted, asked = opened.index["tokenizer"], c.tokenizer, c.data
    late = []
    if wanted.kind != own["kind"] and "kind" in wanted.model_fields_set:
        late.append(f"tokenizer.kind={wanted.kind} (it is {own['kind']})")
    if wanted.vocab_size not in (None, own["vocab_size"]):
        late.append(f"tokenizer.vocab_size={wanted.vocab_size:,} (it is {own['vocab_size']:,})")
    late += [f"tokenizer.path={wanted.path}"] if wanted.path else []
    for key in ("valid_fraction", "test_fraction", "split", "text_key", "source_key", "target_key"):
        if getattr(asked, key) != type(asked).model_fields[key].default:
            late.append(f"data.{key}={getattr(asked, key)}")
    return late


def label(sources: list[str]) -> str:
    """A folder name from the first source: letters, digits and dashes, Chinese ones too."""
    stem = Path(sources[0].removeprefix("hf://")).name.split(".")[0] if sources[0] != "-" else "stdin"
    return re.sub(r"[^\w-]+", "-", stem).strip("-") or "run"


def _free_of_data(name: str) -> str:
    """Text in a folder called data is common, and that name is taken among the runs, by prepared text."""
    return "data-run" if name == "data" else name


def work(run: Path, source: Path | None, display: Display) -> None:
    """One worker of `foretell train --nproc N`: trains together with the others what their parent made ready."""
    from foretell import data, runtime
    from foretell.distributed import launch, mesh
    from foretell.distributed.watch import Beat
    from foretell.train import go_on
    from foretell.train import prepared as prepared_of

    if runtime.worker_report() is not None:  # under a launcher of ours
        runtime.end_with_parent()
    if launch.ended_before():
        return
    with Beat() as beat:
        mesh.join()
        try:
            go_on(run, data.open_data(source or prepared_of(run)), resume=True, display=beat.hearing(display))
            mesh.leave()
        except errors.ForetellError as e:
            launch.leave_reason(e)


@dataclass(frozen=True)
class Processes:
    """Where a run trains: so many processes on each of so many machines, which meet at `rendezvous` (HOST:PORT)."""

    here: int = 1
    machines: int = 1
    rendezvous: str | None = None
    max_restarts: int = 3
    begin_only: bool = False

    @property
    def total(self) -> int:
        return self.here * self.machines


def train_and_report(
    c: RunConfig,
    out: Path,
    name: str | None,
    resume: bool,
    allow_drift: bool,
    display: Display,
    processes: Processes = Processes(),
) -> dict[str, Any]:
    """`foretell train`: prepare, measure, train, report. Returns train's fields, the report's path, a closing line."""
    from foretell import report
    from foretell.train import train

    if resume and name is None and c.data.source is None:
        raise errors.ConfigError("--resume needs the --name of the run to go on with")
    if processes.machines > 1 and not (name and processes.rendezvous):
        raise errors.ConfigError(f"--nodes {processes.machines} needs --name and --rendezvous, the same on each")
    run = out / (name or _free_of_data(label(sources_of(c))))
    if resume and c.data.source is None and (run / "config.toml").exists():
        stored = config.load(run / "config.toml")
        c = config.updated(c, data=stored.data.model_dump(), tokenizer=stored.tokenizer.model_dump())
        if stored.train.base is not None and c.train.base is None:
            c = config.updated(c, train={"base": stored.train.base})
    if run.name == "data":
        raise errors.ConfigError(f"{run} is where prepared text is kept; choose another --name")
    if processes.machines == 1 and not resume and run.exists() and any(run.iterdir()):
        raise errors.ConfigError(f"{run} exists already; go on with it by --resume, or choose another --name")
    data = prepared(c, out, display)
    here = machine(display) | ({"machines": processes.machines} if processes.machines > 1 else {})
    options: dict[str, Any] = {"machine": here, "resume": resume, "allow_drift": allow_drift}
    if processes.total == 1 and not processes.begin_only:
        result = train(c, data, run, display=display, **options)
    else:
        result = _train_on_many(c, data, run, processes, display, options)
        if processes.begin_only:
            return {"run": str(run), "closing": f"{run} is ready; train it by --resume, or with `foretell launch`"}
    page = report.write([run])
    return {**result, "report": str(page), "closing": report.closing(run)}


def _train_on_many(
    c: RunConfig, data: Data, run: Path, processes: Processes, display: Display, options: dict[str, Any]
) -> dict[str, Any]:
    """Begin the run, on one machine, and train it in the processes of this one together with those of the others."""
    from foretell.data import claims
    from foretell.distributed import launch
    from foretell.train import begin, go_on

    with ExitStack() as stack:
        if processes.machines > 1:
            folder = run.parent / f".{run.name}.launch"
            shared = claims.Claims(folder)
            shared.free_the_lost()
            held = stack.enter_context(shared.held("begin"))
            if held is None:
                display.say("  [dim]another machine begins the run …[/]")
                _wait_for_begin(shared, run)
            else:
                stack.callback(shutil.rmtree, folder)
                begin(c, data, run, processes.total, display=display, **options)
                held.note(1)
        else:
            begin(c, data, run, processes.total, display=display, **options)
        if processes.begin_only:
            return {}
        display.say(f"  [dim]{processes.total} processes …[/]")
        words = ["train", "--name", run.name, "--out", str(run.parent), "--data", str(data.path)]
        nodes = launch.Nodes(processes.machines, processes.rendezvous or "localhost:0", f"foretell-{run.name}")
        command = launch.command(*words, *["--quiet"] * display.quiet)
        if not (run / "measured.json").exists():
            launch.run(command, processes.here, processes.max_restarts, run, display.say, nodes)
    return go_on(run, data, resume=True)


def _wait_for_begin(shared: Claims, run: Path) -> None:
    """Until the machine that begins the run says that it has."""
    while (found := shared.all().get("begin")) is not None:
        if found[1].get("done"):
            return
        time.sleep(0.2)
    raise errors.ForetellError(f"{run}: the machine that was to begin the run has ended; see what it says")


def load_model(path: Path) -> tuple[Any, Any]:
    """The model and tokenizer of a run folder, a Hugging Face folder, an adapter's folder or a GGUF file."""
    from foretell import runtime
    from foretell.models import source

    model, tokenizer = source.load(path)
    return model.to(runtime.device()), tokenizer


# A model may write what it read: control characters would reach the terminal as commands. Shown as Unicode's pictures.
_VISIBLE = (
    {c: 0x2400 + c for c in range(32) if chr(c) not in "\n\t"}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
)


def visible(text: str) -> str:
    """Text for a terminal, without control characters but newline and tab."""
    return text.translate(_VISIBLE)


def complete(model: Any, tokenizer: Any, prompt: str | None, options: dict[str, Any]) -> None:
    """`foretell generate`: one prompt, or one after another from the terminal."""
    from foretell import generate

    interactive = prompt is None
    while True:
        if interactive:
            print("> " if sys.stdin.isatty() else "", end="", file=sys.stderr, flush=True)
            prompt = sys.stdin.readline().rstrip("\n")
            if not prompt:
                return
        if cut := generate.tokens_cut(model, tokenizer, prompt or ""):
            print(f"foretell: the first {cut:,} tokens of the prompt do not fit and are not seen", file=sys.stderr)
        show = visible if sys.stdout.isatty() else str
        print(show(prompt or ""), end="", flush=True)
        for piece in generate.stream(model, tokenizer, prompt or "", **options):
            print(show(piece), end="", flush=True)
        print()
        if not interactive:
            return


def answer_source(
    model: Any,
    tokenizer: Any,
    source: str | None,
    options: dict[str, Any],
    as_json: bool,
    stop: list[str] | None,
    repetition_penalty: float,
) -> None:
    """`foretell generate` with an encoder-decoder: the target of one source."""
    from foretell import generate
    from foretell.cli.options import emit
    from foretell.models.seq2seq import Seq2Seq

    if not isinstance(model, Seq2Seq):
        raise errors.ModelError("an encoder does not go on with a text; it gives vectors: foretell embed")
    if source is None or stop or repetition_penalty != 1.0:
        raise errors.ConfigError("an encoder-decoder wants --prompt, and has no --stop and no --repetition-penalty")
    show = visible if sys.stdout.isatty() else str
    emit(generate.answer(model, tokenizer, [source], **options)[0], as_json, lambda r: show(r["completion"]))

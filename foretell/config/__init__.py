"""The configuration of a run: one frozen pydantic model per TOML table, `key=value` overrides, nearest-key errors.

Why one file: a run is its config. `config.toml` in a run folder is this model written out, with every value that was
derived or measured filled in, so that the same file repeats the run. The module imports neither torch nor numpy,
because `foretell plan` and `foretell --help` read it. It does not decide sizes: `plan` does (see `foretell.plan`).
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError

from foretell.config.model import ModelConfig as ModelConfig
from foretell.config.model import RopeScaling as RopeScaling
from foretell.config.model import Sizes as Sizes
from foretell.config.table import Table as Table
from foretell.errors import ConfigError

FORMAT_VERSION = 1
Objective = Literal[
    "next_token",
    "masked",
    "span_corruption",
    "seq2seq",
    "fill_in_the_middle",
    "prefix",
    "answers",
    "dpo",
    "labels",
    "spans",
]
TaskKind = Literal["translation", "summarization", "qa", "dialogue", "generation", "classification"]


class TokenizerConfig(Table):
    """`[tokenizer]`."""

    kind: Literal["bpe", "bytes", "wordpiece", "word"] = Field(
        "bpe", description="byte-level BPE, plain UTF-8 bytes, BERT's WordPiece (uncased), or whole words"
    )
    vocab_size: int | None = Field(None, gt=256, description="size of a trained one; fitted to the corpus when unset")
    path: str | None = Field(
        None, description="a tokenizer.json, .model, .tiktoken or vocab.txt to use instead of training one"
    )
    objective: Literal["masked", "span_corruption", "fill_in_the_middle"] | None = Field(
        None, description="add the tokens that this objective needs, such as [MASK]"
    )


class DataConfig(Table):
    """`[data]`."""

    source: str | list[str] | None = Field(None, description="files, folders, globs, hf://name, or a prepared folder")
    valid_fraction: float = Field(0.05, gt=0, lt=0.5, description="share of the text held out for validation")
    test_fraction: float = Field(0.05, ge=0, lt=0.5, description="share of the text held out for the final test")
    split: Literal["auto", "hash", "tail", "name"] = Field(
        "auto", description="by document, the end of the text, or files by name: train..., valid... or dev..., test..."
    )
    text_key: str | None = Field(None, description="key or column that holds the text; recognised when unset")
    source_key: str | None = Field(
        None, description="key, or column by name or number from 1, of a pair's source; JSON lines, CSV, TSV"
    )
    target_key: str | None = Field(None, description="the same of its target; every record is then a pair")
    format: Literal["text", "chat", "preference", "labels", "spans"] | None = Field(
        None,
        description="texts, conversations or preferences, recognised when unset; texts with labels, questions with "
        "answers (docs/data.md)",
    )
    labels: list[str] | None = Field(None, description="the labels that texts may have; unset: theirs")
    stride: int | None = Field(
        None, gt=0, description="tokens from one window over a long context to the next; half of what one holds"
    )
    chat_template: str | None = Field(None, description="of conversations, by name, such as chatml; that of the base")
    chat_system: str | None = Field(None, description="what the system says where a conversation does not say it")
    chat_bos: str | None = Field(None, description="the mark before a conversation, where its template has one")
    chat_eos: str | None = Field(None, description="the mark behind an answer, where its template leaves it open")
    packing: Literal["across", "within"] = Field("across", description="attention across document boundaries, or not")
    languages: list[str] | None = Field(None, description="keep documents in these, such as en and zh; unset: all")
    quality: bool = Field(False, description="drop what the rules of quality take for no prose")
    near_duplicates: float | None = Field(
        None, gt=0, le=1, description="drop texts whose shingles overlap this much with an earlier one's; 0.8 is usual"
    )
    decontaminate: list[str] | None = Field(None, description="files of evaluation text: drop documents that hold it")
    personal_data: Literal["keep", "mask", "drop"] = Field(
        "keep", description="e-mail, phone, card and ID numbers, keys: mask them, or drop documents with them"
    )


class TrainConfig(Table):
    """`[train]`. `steps`, `tokens` or a budget fixes the length; the forecast derives the others."""

    steps: int | None = Field(None, gt=0, description="optimiser steps")
    tokens: int | None = Field(None, gt=0, description="training tokens; steps = tokens / global_batch_tokens")
    epochs: float | None = Field(None, gt=0, description="passes over the rows of the text; tokens follow from it")
    budget: str | None = Field(None, description="10m, 2h, 90s or 1e15 FLOPs: the forecast sizes the run")
    ladder: str | None = Field(
        None, description="a finished ladder's folder: its law sizes the run, its recipe trains it"
    )
    context: int = Field(256, gt=1, description="tokens a sequence, T")
    micro_batch_size: int | None = Field(None, gt=0, description="sequences at once on one device")
    global_batch_tokens: int | None = Field(None, gt=0, description="tokens an optimiser step")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="compute type; auto measures")
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile; auto measures whether it pays")
    attention: Literal["auto", "sdpa", "products"] = Field(
        "auto", description="kernel that trains: torch's fused one, or batched products; auto measures"
    )
    loss_chunk_tokens: int | None = Field(None, gt=0, description="tokens a cross-entropy chunk; unset: from memory")
    objective: Objective = Field("next_token", description="what is learned (docs/train.md)")
    base: str | None = Field(
        None, description="model to go on from: a run folder, a Hugging Face folder, an adapter's, a GGUF file"
    )
    base_digest: str | None = Field(None, description="SHA-256 of the base's files; derived")
    freeze: list[str] | None = Field(None, description="patterns of parameter names that do not learn")
    dpo_beta: float = Field(0.1, gt=0, description="dpo: how far the model is held to its base")
    trained_parameters: int | None = Field(None, gt=0, description="numbers that learn, where not all do; derived")
    added_parameters: int | None = Field(None, gt=0, description="numbers of adapters among them; derived")
    adapted: list[str] | None = Field(None, description="products that have adapters; derived")
    row_tokens: float | None = Field(
        None, gt=0, description="of a row's `context` tokens, how many are computed, where the text decides; derived"
    )
    row_source: float | None = Field(None, gt=0, description="the same of its source; derived")
    row_scored: float | None = Field(None, gt=0, description="of these, how many are asked for; derived")
    most_scored: int | None = Field(None, gt=0, description="most that a micro-batch asks for; derived")
    optimizer: Literal["muon", "adamw", "sgd"] = Field(
        "muon", description="muon: matrices by Muon, the rest by AdamW; with a base adamw"
    )
    lr: float | None = Field(None, gt=0, description="peak learning rate of the matrices; unset: a rule")
    embedding_lr: float | None = Field(None, gt=0, description="with muon: peak rate of everything AdamW updates")
    weight_decay: float = Field(
        0.01, ge=0, description="weight decay of the matrices: decoupled, with sgd in the gradient"
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="momentum of SGD and Muon")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW, first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW, second moment")
    schedule: Literal["wsd", "cosine", "constant"] = Field(
        "wsd", description="after warm-up: stable and decay, or cosine"
    )
    warmup_fraction: float = Field(0.02, ge=0, lt=1, description="share of the steps that warm up")
    warmup_steps: int | None = Field(None, ge=0, description="steps that warm up, whatever the length of the run")
    decay_fraction: float = Field(0.5, ge=0, le=1, description="wsd: share of the steps that decay to zero")
    decay_shape: Literal["linear", "sqrt"] = Field("linear", description="wsd: of the decay; sqrt falls sooner")
    balance_step: float | None = Field(
        None, gt=0, description="peak step of the experts' biases where model.balance is bias; 0.1 / num_experts"
    )
    grad_clip: float = Field(1.0, ge=0, description="gradient norm at which gradients are scaled down; 0 never")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="of the residual branches and the embedding; unset: by the epochs of the run"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each target that all tokens have alike; 0.1 is usual in translation"
    )
    init_embedding: str | None = Field(None, description="a folder of vectors from which the embedding table begins")
    seed: int = Field(0, ge=0, description="of weights, data order and dropout")
    save_every: int | None = Field(None, gt=0, description="steps between checkpoints; unset: about one a minute")
    keep: int = Field(2, gt=0, description="checkpoints kept")
    eval_every: int | None = Field(None, gt=0, description="steps between validations; unset: about 10 in a run")
    eval_tokens: int | None = Field(None, gt=0, description="validation tokens each time; unset: 1% of the run's")


class LoraConfig(Table):
    """`[lora]`: low-rank adapters (Hu et al., 2021) learn in place of the weights. Unset rank: none."""

    rank: int | None = Field(None, gt=0, description="rank r of each adapter; 16 is usual")
    alpha: float | None = Field(None, gt=0, description="what an adapter adds is scaled by alpha / rank; 2 x rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into an adapter")
    targets: list[str] | None = Field(
        None, description="products that have one, such as q_proj; unset: all of attention, feed-forward"
    )


class TaskConfig(Table):
    """`[task]`: what a model is tuned for (docs/tasks.md); set by `foretell finetune`, kept with the model."""

    kind: TaskKind | None = Field(None, description="the application; unset: none")
    source_language: str | None = Field(None, description="of what is given, such as en: ISO 639-1")
    target_language: str | None = Field(None, description="of what is wanted, such as zh")
    both_ways: bool = Field(False, description="translation: either language into the other, told apart by a tag")
    instruction: str | None = Field(None, description="what a decoder is asked; unset: the task's own, by language")
    max_new_tokens: int | None = Field(None, gt=0, description="longest answer; unset: by the task")
    beams: int | None = Field(None, gt=0, description="hypotheses of a search; unset: 4 of encoder-decoders, else 1")
    length_penalty: float = Field(1.0, description="a hypothesis counts log-likelihood / length to this power")


class ParallelConfig(Table):
    """`[parallel]`: over how many processes what is divided. Their product is the number of processes."""

    dp_replicate: int = Field(1, gt=0, description="copies of the model, each with its part of the batch")
    dp_shard: int | None = Field(
        None, gt=0, description="FSDP2: processes that share one copy; unset: all that are left"
    )
    tp: int = Field(1, gt=0, description="tensor and sequence parallelism, inside layers")
    pp: int = Field(1, gt=0, description="pipeline stages")
    cp: int = Field(1, gt=0, description="context parallelism: parts of a sequence")
    ep: int = Field(1, gt=0, description="expert parallelism; a divisor of dp_shard")
    schedule: Literal["1f1b", "gpipe", "interleaved", "zero-bubble"] = Field("1f1b", description="of the pipeline")
    context_exchange: Literal["auto", "ulysses", "gather", "ring"] = Field(
        "auto", description="what cp sends: heads, or all keys and values; auto: ulysses where it can"
    )
    recompute: Literal["none", "selective", "full"] = Field("none", description="activations formed again in backward")
    offload: bool = Field(False, description="weights, gradients and optimiser's state in the host's memory")
    reduce: Literal["float32", "bfloat16", "int8"] = Field(
        "float32", description="what gradients travel as between copies; int8 with error feedback"
    )
    local_steps: int = Field(1, gt=0, description="steps between meetings of the copies; above 1: DiLoCo")
    outer_lr: float = Field(0.7, gt=0, description="DiLoCo: rate of the outer step")
    outer_momentum: float = Field(0.9, ge=0, lt=1, description="DiLoCo: Nesterov momentum of the outer step")
    strict: bool = Field(False, description="the same bits for 1, 2, 4, ... copies")
    virtual_shards: int = Field(4, gt=0, description="strict: parts of the batch that are added in a fixed order")


class ClusterConfig(Table):
    """`[cluster]`: the machines that a run is planned for. Unset: this one, as it was measured."""

    hardware: str | None = Field(None, description="an entry of plan/hardware.toml, such as h100-sxm, or of `table`")
    nodes: int = Field(1, gt=0, description="machines")
    gpus_per_node: int | None = Field(None, gt=0, description="devices of each; unset: all that such a node has")
    table: str | None = Field(None, description="a hardware table of your own, in the form of plan/hardware.toml")
    software: Literal["pytorch", "megatron"] = Field(
        "pytorch", description="whose speed: that of plain PyTorch, which this trains with, or of Megatron-LM"
    )
    price_per_hour: float | None = Field(None, ge=0, description="US dollars a device and hour; unset: the table's")
    checkpoint_seconds: float = Field(10.0, gt=0, description="for which a checkpoint holds training up")
    restart_seconds: float = Field(300.0, gt=0, description="from a failure until training goes on")


class EvaluateConfig(Table):
    """`[evaluate]`."""

    context: int | None = Field(None, gt=1, description="window in tokens; the model's context when unset")
    stride: int | None = Field(None, gt=0, description="tokens between windows; context when unset")
    max_tokens: int | None = Field(None, gt=0, description="tokens of a split scored after a run; unset: all")


class LadderConfig(Table):
    """`[ladder]`: the small runs from which the run of the other tables is forecast."""

    ratio: float = Field(30.0, gt=1, description="FLOPs of the target over those of the largest rung")
    rung_flops: float | None = Field(None, gt=0, description="FLOPs of the largest rung; unset: the target's / ratio")
    sizes: int = Field(5, ge=3, description="model sizes")
    widths: list[int] | None = Field(None, min_length=3, description="hidden sizes of the rungs; unset: by the target")
    horizons: int = Field(3, ge=3, description="lengths of each size, each twice the one before")
    repeats: int = Field(2, ge=0, description="further seeds of the size in the middle")
    seeds: int = Field(1, ge=1, description="seeds of every size")
    decay_fraction: float = Field(0.2, gt=0, le=0.5, description="share of every run, and of the target, that decays")


class RunConfig(Table):
    """The whole file."""

    format_version: int = FORMAT_VERSION
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    lora: LoraConfig = LoraConfig()
    task: TaskConfig = TaskConfig()
    parallel: ParallelConfig = ParallelConfig()
    cluster: ClusterConfig = ClusterConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    ladder: LadderConfig = LadderConfig()


def load(path: Path | None = None, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a TOML file (or start from the defaults) and apply `table.key=value` overrides in order."""
    raw: dict[str, Any] = {}
    where = "the command line"
    if path is not None:
        where = str(path)
        try:
            raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file") from None
        except OSError as e:
            raise ConfigError(f"{path}: cannot be read: {e.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path}: not valid TOML: {e}") from None
        version = raw.get("format_version", FORMAT_VERSION)
        if type(version) is not int or version < 1:
            raise ConfigError(f"{path}: format_version {version!r} is none; this Foretell writes {FORMAT_VERSION}")
        if version > FORMAT_VERSION:
            raise ConfigError(
                f"{path}: format_version {version} is newer than {FORMAT_VERSION}, the newest this Foretell reads"
            )
    for override in overrides:
        _set(raw, override)
    return validate(raw, where)


def validate(raw: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Check a plain mapping. Raises ConfigError naming every wrong key, its value and the nearest known key."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as e:
        raise ConfigError("\n".join(_explain(err, where) for err in e.errors())) from None


def updated(config: RunConfig, **tables: Mapping[str, Any]) -> RunConfig:
    """A copy with some keys of some tables replaced: `updated(config, train={"steps": 10})`. Validated again."""
    # What nobody set stays unset: a resume compares only what was asked for.
    raw = config.model_dump(exclude_unset=True)
    for name, changes in tables.items():
        raw[name] = {**raw.get(name, {}), **changes}
    return validate(raw)


def dumps(config: RunConfig) -> str:
    """The config as TOML. Unset keys are left out: TOML has no null."""
    lines = [f"format_version = {config.format_version}"]
    for name, table in config:
        if isinstance(table, Table):
            values = {k: v for k, v in table if v is not None}
            lines += ["", f"[{name}]", *(f"{k} = {_toml(v)}" for k, v in values.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:.1f}"
    if isinstance(value, Table | dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in dict(value).items() if v is not None) + "}"
    # JSON strings, numbers, booleans and lists are TOML too, but TOML wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _set(raw: dict[str, Any], override: str) -> None:
    key, eq, text = override.partition("=")
    parts = key.strip().split(".")
    if not eq or len(parts) != 2 or not all(parts):
        raise ConfigError(f"`{override}` is not an override; write table.key=value, for example train.lr=3e-3")
    table = raw.setdefault(parts[0], {})
    if not isinstance(table, dict):
        raise ConfigError(f"`{parts[0]}` is a value, not a table")
    table[parts[1]] = _value(text.strip(), _holds_text(*parts))


def _value(text: str, holds_text: bool) -> Any:
    """What is written after the =: TOML, or a bare word. Where text belongs, a folder named 2024 stays its name."""
    try:
        parsed = tomllib.loads(f"v = {text}")
    except tomllib.TOMLDecodeError:
        return text
    whole = len(parsed) == 1  # a line break could begin another key
    return parsed["v"] if whole and (not holds_text or isinstance(parsed["v"], str | list)) else text


def _holds_text(table: str, key: str) -> bool:
    default = RunConfig.model_fields[table].default if table in RunConfig.model_fields else None
    field = type(default).model_fields.get(key) if isinstance(default, Table) else None
    return field is not None and str in get_args(field.annotation)


def _explain(err: Any, where: str) -> str:
    place = ".".join(str(p) for p in err["loc"])
    if err["type"] == "extra_forbidden":
        table = RunConfig.model_fields.get(str(err["loc"][0]))
        inside = table is not None and len(err["loc"]) > 1 and isinstance(table.default, Table)
        known = list(type(table.default).model_fields) if inside and table else list(RunConfig.model_fields)
        near = difflib.get_close_matches(str(err["loc"][-1]), known, n=1, cutoff=0.0)[0]
        prefix = ".".join(str(p) for p in err["loc"][:-1])
        return f"{where}: unknown key `{place}`; nearest: `{prefix + '.' if prefix else ''}{near}`"
    return f"{where}: `{place}` = {err['input']!r}: {err['msg']}"

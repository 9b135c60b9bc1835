"""Hugging Face model folders, in and out: config.json, model.safetensors, tokenizer.json.

`save` writes what transformers, vLLM and llama.cpp load without conversion; `load` reads such a folder, from us or from
others: one safetensors file or several with an index, tied or untied, float32 from float32, bfloat16, float16 or
float64. Formats: https://github.com/huggingface/safetensors and the models of transformers (`configs.py`, `names.py`).
A mixture of experts whose choice is biased is none of theirs; it has a `model_type` of its own, so that nobody computes
it wrongly.

Nothing of a folder is executed and nothing is allocated because a file says so: the shapes that config.json implies are
compared with the headers of the weight files, which the safetensors library has compared with the files' sizes, before
a tensor is made. Not handled: quantised weights, pickled weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foretell import tokenizer as tokenizers
from foretell.config import ModelConfig
from foretell.errors import ConfigError, ModelError
from foretell.models import folders
from foretell.models.decoder import Decoder
from foretell.models.encoder import Encoder
from foretell.models.hf import configs, encoders, names
from foretell.models.model import Model, made
from foretell.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# As transformers cuts by default: above this a model is written in several files.
SHARD_BYTES = 5_000_000_000
_TENSORS_OF_A_LAYER = 9  # at least
# Buffers that some folders hold and no model needs.
_SPARE = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
_NUMBERS = ("embeddings.position_ids",)  # the numbers 0, 1, 2, ... as integers
# Weights that say nothing more, or that serve none of what is done here: a tied table again, a table of sines, BERT's
# head for whether two sentences follow each other, and what leads to it.
_HEAD_NAMES = ("cls.predictions.", "classifier.", "qa_outputs.")
_ALSO = {
    "bert": ("pooler.", "bert.pooler.", "cls.seq_relationship.", "cls.predictions.decoder."),
    "marian": (*("model.encoder.embed_", "model.decoder.embed_", "lm_head."),),
    "t5": (
        *("encoder.embed_tokens.", "decoder.embed_tokens.", "lm_head."),
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.",
    ),
}


def read(path: Path) -> ModelConfig:
    """The `[model]` table of a config.json. ModelError for what the models here do not do."""
    raw = configs.read_json(path)
    kind = raw.get("model_type")
    reads = encoders.table if isinstance(kind, str) and kind in encoders.KINDS else configs.table
    return reads(raw, str(path))


class Chat(NamedTuple):
    """What a model brings along for conversations: its template's source and the marks around a text, if it has any."""

    template: str | None = None
    bos: str = ""
    eos: str = ""


class Opened(NamedTuple):
    """A folder whose weights are not read yet. stored: a weight by its name there, in float32.

    rules: how weights are called (`names.py`). bare: an encoder without its head.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    rules: str
    bare: bool
    stored: Callable[[str], Tensor]
    files: tuple[Path, ...]


def load(folder: Path) -> tuple[Model, Tokenizer]:
    """The model, in float32, on the CPU, in evaluation mode, and its tokenizer. ModelError says what does not fit."""
    found = open(folder)
    return built(found.config, found.rules, found.stored, bare=found.bare, path=folder), found.tokenizer


def open(folder: Path) -> Opened:
    """The folder, its config, tokenizer and the shapes of its weights checked. ModelError says what does not fit."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; give a run folder or a Hugging Face folder")
    config = read(folder / "config.json")
    try:
        own = tokenizers.load(folder)
    except ConfigError as e:
        raise ModelError(str(e)) from None
    if own.vocab_size > (config.vocab_size or 0):
        raise ModelError(
            f"{folder}: the tokenizer has {own.vocab_size:,} ids, the model's vocab_size is {config.vocab_size:,}; "
            "take the tokenizer.json that belongs to the model"
        )
    return _checked(folder, config, own)


def _checked(folder: Path, config: ModelConfig, own: Tokenizer) -> Opened:
    """The model is made without memory first, so that shapes are compared before any is."""
    place = _places(folder)
    layers = config.num_hidden_layers or 0
    if layers * (_TENSORS_OF_A_LAYER + 3 * ((config.num_experts or 1) - 1)) > len(place):
        each = f" of {config.num_experts:,} experts" if config.num_experts else ""
        raise ModelError(
            f"{folder}: num_hidden_layers is {layers:,}{each}, but the weights are only {len(place):,} tensors"
        )
    if config.model_type == "t5" and "lm_head.weight" in place and not _is_twice(place, "lm_head.weight"):
        config = config.model_copy(update={"tie_word_embeddings": False})
    bare = config.model_type == "bert" and not any(n.startswith(_HEAD_NAMES) for n in place)
    if bare:  # of a head that config.json names there is nothing
        config = config.model_copy(update={"head": None, "labels": None, "tie_word_embeddings": True})
    try:
        model = _unmade(config, bare)
    except (RuntimeError, OverflowError) as e:  # sides whose product overflows
        raise ModelError(f"{folder}/config.json: sizes that cannot be: {str(e).splitlines()[0]}") from None
    rules = names.dialect(config, bare and "embeddings.word_embeddings.weight" in place)
    wanted = names.shapes(rules, dict(model.named_parameters()))
    _check_shapes(folder, wanted, place, config)
    opened: dict[Path, Any] = {}

    def stored(name: str) -> Tensor:
        file = place[name][0]
        if file not in opened:
            opened[file] = safe_open(file, framework="pt").__enter__()
        return opened[file].get_tensor(name).float()

    files = (folder / "config.json", *sorted({file for file, _ in place.values()}))
    return Opened(config, own, rules, bare, stored, files)


def built(
    config: ModelConfig,
    rules: str,
    stored: Callable[[str], Tensor],
    *,
    bare: bool = False,
    path: Path,
    dropout: float = 0.0,
    kernel: str = "sdpa",
) -> Model:
    """The whole model on the CPU, in evaluation mode, of weights under the names of a folder.

    path: named in the ModelError where a weight is of another shape.
    """
    with torch.device("meta"):
        model = Encoder(config, dropout, kernel, has_head=False) if bare else made(config, dropout, kernel)
    model.load_state_dict(weights(rules, dict(model.named_parameters()), stored, path), strict=False, assign=True)
    if config.tie_word_embeddings and not bare:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.config = config
    if isinstance(model, Decoder):
        model.model.fill_tables(config.max_position_embeddings or 1)
    return model.requires_grad_(True).eval()


def weights(rules: str, parameters: dict[str, Any], stored: Callable[[str], Tensor], path: Path) -> dict[str, Tensor]:
    """A weight for each of `parameters`, whose shapes count. ModelError where a stored one has another."""
    state = names.back(rules, parameters, stored)
    for name, p in parameters.items():
        if state[name].shape != p.shape:
            raise ModelError(f"{path}: {name} is {list(state[name].shape)}, its config wants {list(p.shape)}")
    return state


def _is_twice(place: dict[str, tuple[Path, tuple[int, ...]]], name: str) -> bool:
    """Whether the weight of that name is T5's shared table once more."""
    if place[name][1] != place.get("shared.weight", (None, ()))[1]:
        return False
    both = []
    for n in (name, "shared.weight"):
        with safe_open(place[n][0], framework="pt") as opened:
            both.append(opened.get_tensor(n))
    return torch.equal(*both)


def _unmade(config: ModelConfig, bare: bool = False) -> Model:
    """The model without memory for its weights. bare: an encoder without its head."""
    with torch.device("meta"):
        return Encoder(config, has_head=False) if bare else made(config)


def _shapes(config: ModelConfig, bare: bool) -> dict[str, tuple[int, ...]]:
    """The weights of a folder by name; a tied table is there once."""
    return names.shapes(names.dialect(config, bare), dict(_unmade(config, bare).named_parameters()))


def _check_shapes(
    folder: Path,
    wanted: dict[str, tuple[int, ...]],
    place: dict[str, tuple[Path, tuple[int, ...]]],
    config: ModelConfig,
) -> None:
    spare = {"lm_head.weight"} if config.tie_word_embeddings else set[str]()  # some save the tied table twice
    also = _ALSO.get(config.model_type, ())
    unknown = [n for n in place if n not in wanted and n not in spare and not n.endswith(_SPARE)]
    unknown = [n for n in unknown if not n.startswith(also)] if also else unknown
    missing = [n for n in wanted if n not in place]
    if missing or unknown:
        parts = [f"{len(m):,} {what} ({m[0]})" for m, what in ((missing, "missing"), (unknown, "unknown")) if m]
        raise ModelError(f"{folder}: the weights are not those of this config.json: {', '.join(parts)}")
    for name, shape in wanted.items():
        if place[name][1] != shape:
            raise ModelError(f"{folder}: {name} is {list(place[name][1])}, config.json wants {list(shape)}")


def _places(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Of every tensor of the folder, its file and its shape. Reads headers only."""
    place: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    if name.endswith(_NUMBERS):
                        continue
                    if name in place:
                        raise ModelError(f"{folder}: {name} stands in {place[name][0].name} and in {file.name}")
                    part = opened.get_slice(name)
                    if part.get_dtype() not in {"F64", "F32", "F16", "BF16"}:
                        raise ModelError(
                            f"{file}: {name} is {part.get_dtype()}; quantised weights cannot be read, only F64, F32, "
                            "F16 and BF16"
                        )
                    place[name] = (file, tuple(part.get_shape()))
        except (SafetensorError, OSError) as e:
            raise ModelError(f"{file}: not a whole safetensors file: {e}") from None
    return place


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        also = f"; {pickled[0]} is a pickle, which Foretell never opens: convert it to safetensors" if pickled else ""
        raise ModelError(f"{folder}: no {WEIGHTS} and no {INDEX}{also}")
    listed = configs.read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(n, str) for n in listed.values()):
        raise ModelError(f"{folder / INDEX}: no weight_map of tensor and file names")
    names = sorted(set(listed.values()))
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{folder / INDEX}: {name!r} is not the name of a file in this folder")
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: {name} is missing; {INDEX} names {len(names)} files")
    return [folder / name for name in names]


def save(
    model: Model,
    tokenizer: Tokenizer,
    folder: Path,
    state: dict[str, Tensor] | None = None,
    brought: Chat | None = None,
) -> None:
    """Write the folder, whole or not at all; one that is there is replaced. Weights are stored as float32.

    state: the model's weights, where they are not as it has them. brought: the chat template to hand on.
    """
    state = model.state_dict() if state is None else state
    bare = isinstance(model, Encoder) and not model.has_head
    if model.config.tie_word_embeddings and not bare:
        del state["lm_head.weight"]
    write(model.config, state.items(), tokenizer, folder, bare=bare, brought=brought)


def write(
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    tokenizer: Tokenizer,
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    bare: bool = False,
    brought: Chat | None = None,
) -> None:
    """Write the folder from named weights, of which no more than a file's are held in memory.

    Whole or not at all; one that is there is replaced. Weights are stored as float32: in one file, or, from
    `shard_bytes` on, in several with an index. bare: an encoder without its head. brought: the chat template to hand
    on. Raises ModelError where names or shapes are not the config's.
    """
    wanted = _shapes(config, bare)
    parts = names.out(names.dialect(config, bare), tensors)
    with folders.replaced(Path(folder)) as partial:
        written = _write_weights(parts, wanted, partial, shard_bytes)
        if missing := [n for n in wanted if n not in written]:
            raise ModelError(f"{folder}: {len(missing):,} of {len(wanted):,} weights are missing ({missing[0]})")
        tokenizer.save(partial / "tokenizer.json")
        for name, value in _descriptions(config, tokenizer, bare, brought).items():
            (partial / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _write_weights(
    tensors: Iterable[tuple[str, Tensor]], wanted: dict[str, tuple[int, ...]], partial: Path, shard_bytes: int
) -> dict[str, str]:
    """Write the weight files; returns the file of each tensor. They are named last: names say how many there are."""
    shard: dict[str, Tensor] = {}
    of_tensor: dict[str, int] = {}
    number = size = total = 0

    def flush() -> None:
        save_file(shard, partial / f"{number}", metadata={"format": "pt"})
        shard.clear()

    for name, t in tensors:
        if name not in wanted or tuple(t.shape) != wanted[name] or name in of_tensor:
            expected = "given twice" if name in of_tensor else f"{list(wanted[name])}" if name in wanted else "unknown"
            raise ModelError(f"{name} is {list(t.shape)}; for this config it is {expected}")
        weight = t.detach().to("cpu", torch.float32).contiguous()
        if shard and size + weight.nbytes > shard_bytes:
            flush()
            number, size = number + 1, 0
        shard[name], of_tensor[name] = weight, number
        size, total = size + weight.nbytes, total + weight.nbytes
    flush()
    count = number + 1
    names = [WEIGHTS] if count == 1 else [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    for n, name in enumerate(names):
        (partial / f"{n}").rename(partial / name)
    placed = {name: names[n] for name, n in of_tensor.items()}
    if count > 1:
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return placed


def _descriptions(c: ModelConfig, tokenizer: Tokenizer, bare: bool, brought: Chat | None) -> dict[str, dict[str, Any]]:
    """The JSON files of the folder by name."""
    known = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eot_id, "pad_token_id": tokenizer.eot_id}
    chat = brought or Chat()
    if (end := tokenizer.inner.token_to_id(chat.eos)) is not None:  # what ends an answer, where that is another
        known["eos_token_id"] = end
    ends = {k: v for k, v in known.items() if v is not None}
    of_id = {v: k for k, v in tokenizer.inner.get_vocab(with_added_tokens=True).items()}
    config = encoders.described(c, bare) if c.model_type in encoders.KINDS else configs.described(c)
    start = {}
    if "decoder_start_token_id" in config:
        begins = c.decoder_start_token_id
        start["decoder_start_token_id"] = tokenizer.eot_id if begins is None else begins
    return {
        "config.json": {**config, **ends, **start},
        "generation_config.json": {"_from_model_config": True, **ends, **start},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": c.max_position_embeddings,
            "clean_up_tokenization_spaces": False,
            **{k.removesuffix("_id"): of_id[v] for k, v in ends.items()},
            **({"chat_template": chat.template} if chat.template else {}),
        },
    }

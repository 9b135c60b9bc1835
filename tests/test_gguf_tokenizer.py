"""Tokenizers of GGUF files: the ids that llama.cpp's and transformers' have."""

import json
from pathlib import Path
from typing import Any

import gguf as peer
import pytest
import sentencepiece
import transformers

from foretell.errors import ModelError
from foretell.models import gguf
from foretell.tokenizer import Tokenizer, bytelevel, chat, train_bpe
from tests.test_gguf import gemma, smollm2  # noqa: F401
from tests.tiny import CHINESE, ENGLISH

TEXTS = [
    "The capital of France is Paris, isn't it? They'll say so.",
    "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。",
    "🐺🦊 family 👨‍👩‍👧‍👦, flag 🇨🇳, café, naïve, Straße, İstanbul",
    "def f(x: int) -> int:\n\n    return x**2  # 12345 + 3.14\n\tif x:\r\n        pass\n",
    "  leading, double  and   triple spaces, trailing   ",
    "\n\n\n\t\t \n x",
    "<|im_start|> <s> </s> <bos> are text",
    "ﬁ ½ Ⅳ ﾊﾝｶｸ ＡＢＣ ٣٤٥ १२३ é",
]


def write_tokenizer(path: Path, architecture: str, model: str, tokens: list[str], **more: Any) -> gguf.Gguf:
    w = peer.GGUFWriter(path, architecture)
    w.add_tokenizer_model(model)
    w.add_token_list(tokens)
    for key, value in more.items():
        if isinstance(value, int) and key == "tokenizer_pre":
            w.add_uint32("tokenizer.ggml.pre", value)
        else:
            getattr(w, f"add_{key}")(value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return gguf.read(path)


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "tekken", "gpt-4o", "gpt-2", "smollm"])
def test_byte_level_ids_are_those_of_transformers(pre: str, tmp_path: Path) -> None:
    """The file carries merges that were learned with our own pattern; what is compared is how they are used."""
    own = train_bpe([ENGLISH * 30, CHINESE * 30, *TEXTS * 3], 900).inner
    spec = json.loads(own.to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].__getitem__)
    types = [3 if t == "<|endoftext|>" else 1 for t in tokens]
    merges = [" ".join(m) for m in spec["merges"]]
    path = tmp_path / "t.gguf"
    file = write_tokenizer(
        path, "qwen2", "gpt2", tokens, tokenizer_pre=pre, token_types=types, token_merges=merges, eos_token_id=0
    )
    ours = gguf.tokenizer(file)
    assert ours.eot_id == 0
    assert ours.bos_id is None
    if pre == "smollm":  # transformers has no such name, and cuts by GPT-2's alone: digits would stay together
        split = bytelevel.named("smollm", "")[0]
        assert split[0] == r"\p{N}"
        return
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ours.encode(text)) == text


def train_sentencepiece(folder: Path, **options: Any) -> Path:
    text = folder / "text.txt"
    text.write_text("\n".join([ENGLISH, CHINESE, *TEXTS] * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "m"), minloglevel=2, hard_vocab_limit=False, **options
    )
    return folder / "m.model"


def test_scored_ids_are_those_of_sentencepiece(tmp_path: Path) -> None:
    """As the converters write Llama 2's: pieces, scores and types of a SentencePiece BPE with byte fallback."""
    model = train_sentencepiece(
        tmp_path, model_type="bpe", vocab_size=700, byte_fallback=True, remove_extra_whitespaces=False,
        normalization_rule_name="identity",
    )  # fmt: skip
    sp = sentencepiece.SentencePieceProcessor(model_file=str(model))
    n = sp.get_piece_size()
    types = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in range(n)]
    file = write_tokenizer(
        tmp_path / "t.gguf", "llama", "llama", [sp.id_to_piece(i) for i in range(n)],
        token_scores=[sp.get_score(i) for i in range(n)], token_types=types, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    ours = gguf.tokenizer(file)
    assert (ours.bos_id, ours.eot_id) == (1, 2)
    for text in [*TEXTS, ENGLISH, CHINESE]:
        assert ours.encode(text) == sp.encode(text), text
        assert ours.decode(ours.encode(text)) == text


WRONG = [
    ("t5", {}, "kind 't5'; gpt2, llama and bert are read"),
    ("bert", {}, r"no \[UNK\], \[CLS\], \[SEP\] among its 3 tokens"),
    ("gpt2", {"tokenizer_pre": "klingon", "token_merges": ["a b"]}, "'klingon', which is not known; known are gpt-2"),
    ("gpt2", {"tokenizer_pre": 7, "token_merges": ["a b"]}, "pattern 7, which is not known"),
    ("gpt2", {"tokenizer_pre": "gpt-2"}, "merges is missing"),
    ("gpt2", {"tokenizer_pre": "gpt-2", "token_merges": ["a c"]}, "merge 0 .*'a c', is none of its tokens"),
    ("llama", {"token_scores": [0.0]}, "scores has 1 entries for 3 tokens"),
    ("gpt2", {"tokenizer_pre": "gpt-2", "token_merges": ["a b"], "eos_token_id": 3}, "eos_token_id is 3"),
]


@pytest.mark.parametrize(("model", "more", "message"), WRONG, ids=[m for *_, m in WRONG])
def test_tokenizers_that_cannot_be(model: str, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write_tokenizer(tmp_path / "t.gguf", "llama", model, ["a", "b", "ab"], **more)
    with pytest.raises(ModelError, match=message):
        gguf.tokenizer(file)


def test_a_file_without_one(tmp_path: Path) -> None:
    w = peer.GGUFWriter(tmp_path / "t.gguf", "llama")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    with pytest.raises(ModelError, match="there is no tokenizer"):
        gguf.tokenizer(gguf.read(tmp_path / "t.gguf"))


def of_transformers(path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def same_after_saving(own: Tokenizer, folder: Path) -> None:
    from foretell import tokenizer

    own.save(folder / "tokenizer.json")
    again = tokenizer.load(folder)
    assert again.bos_id == own.bos_id
    for text in TEXTS:
        assert again.encode(text) == own.encode(text)


@pytest.mark.slow
def test_smollm2_cuts_as_its_makers_do(tmp_path: Path) -> None:
    path = smollm2()
    file = gguf.read(path)
    ours, theirs = gguf.tokenizer(file), of_transformers(path)
    for text in TEXTS[:5]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    # Published ids of its own tokenizer.json, which sets digits apart before all else.
    assert ours.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert ours.encode("  multiple   spaces") == [216, 2701, 256, 5600]
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text
    same_after_saving(ours, tmp_path)
    template = chat.recognise(file.metadata["tokenizer.chat_template"])
    assert (template.name, template.system) == (
        "chatml", "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    )  # fmt: skip
    messages = [{"role": "user", "content": "What is a wolf? 狼🐺"}]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat.encode(ours, chat.render(template, messages, answer=True))[0] == ids


@pytest.mark.slow
def test_gemma3_cuts_as_transformers_does(gemma: Path, tmp_path: Path) -> None:  # noqa: F811
    ours, theirs = gguf.tokenizer(gguf.read(gemma)), of_transformers(gemma)
    assert ours.bos_id == 2
    for text in [*TEXTS, ENGLISH, CHINESE]:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode_special(text).ids == ids, text
        assert (ours.encode(text) == ids) != ("<bos>" in text), text  # marks inside a text stay text
        assert ours.decode(ours.encode(text)) == text
    same_after_saving(ours, tmp_path)

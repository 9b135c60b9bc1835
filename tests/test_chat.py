"""Chat templates: the text that transformers renders, answers marked, contents that cannot forge a turn."""

import re
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from foretell import tokenizer
from foretell.errors import ConfigError
from foretell.tokenizer import chat
from tests.tiny import CHINESE, ENGLISH

# The templates as the models carry them.
ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
CHATML = (
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SOURCES = {
    "chatml": "{% for message in messages %}" + CHATML,
    "chatml of SmolLM2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
        "{% endif %}" + CHATML
    ),
    "chatml of Qwen2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}" + CHATML
    ),
    "llama-2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}" + ALTERNATE +
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama-3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] "
        "| trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "llama-3.1": (
        "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
        "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
        "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
        "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{{- 'Cutting Knowledge Date: December 2023\n' }}"
        "{{- 'Today Date: ' + date_string + '\n\n' }}{{- system_message }}{{- '<|eot_id|>' }}"
        "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        "+ message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}" + ALTERNATE +
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}"
        "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}" + ALTERNATE + "{% if (message['role'] == 'assistant') %}"
        "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "gemma3": (
        "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
        "{%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}"
        "{%- else -%}{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}"
        "{%- for message in loop_messages -%}" + ALTERNATE + "{%- if (message['role'] == 'assistant') -%}"
        "{%- set role = 'model' -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}"
        "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}"
        "{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"
    ),
}  # fmt: skip
WITHOUT_SYSTEM = ("mistral", "gemma")
MARKS = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>"),
]


@pytest.fixture(scope="module")
def own() -> tokenizer.Tokenizer:
    trained = tokenizer.train_bpe([ENGLISH * 30, CHINESE * 30], 400).inner
    trained.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in MARKS])
    return tokenizer.wrap(trained)


@pytest.fixture(scope="module")
def peer(own: tokenizer.Tokenizer) -> transformers.PreTrainedTokenizerFast:
    inner = tokenizers.Tokenizer.from_str(own.inner.to_str())
    inner.encode_special_tokens = False
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def conversation(system: bool, turns: int) -> list[chat.Message]:
    said = ["What is the wolf?", " Grey.\n", "狼是什么？", "灰色的🐺。", "  And then? ", "The end."]
    talk = [{"role": "assistant" if n % 2 else "user", "content": said[n]} for n in range(turns)]
    return [{"role": "system", "content": "Be kind.\nBe short."}] * system + talk


@pytest.mark.parametrize("turns", [1, 2, 3, 6])
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_texts_and_ids_are_those_of_transformers(
    name: str,
    escaped: bool,
    system: bool,
    turns: int,
    own: tokenizer.Tokenizer,
    peer: transformers.PreTrainedTokenizerFast,
) -> None:
    """`escaped`: line breaks as templates have them in files, a backslash and an n."""
    source = SOURCES[name].replace("\n", "\\n") if escaped else SOURCES[name]
    template = chat.recognise(source, "<s>", "</s>")
    assert template.name == name.split()[0]
    messages = conversation(system, turns)
    if system and name in WITHOUT_SYSTEM:
        with pytest.raises(ConfigError, match="system"):
            chat.render(template, messages)
        return
    for answer in (False, True):
        theirs = peer.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=answer)
        ours = chat.render(template, messages, answer)
        assert ours.text == theirs
        assert "".join(piece for piece, _ in ours.parts) == ours.text
        assert chat.encode(own, ours)[0] == peer(theirs, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", SOURCES)
def test_answers_are_what_the_assistant_says(name: str, own: tokenizer.Tokenizer) -> None:
    template = chat.recognise(SOURCES[name], "<s>", "</s>")
    messages = conversation(False, 6)
    rendered = chat.render(template, messages)
    ends = {"chatml": "<|im_end|>", "llama-3": "<|eot_id|>", "llama-3.1": "<|eot_id|>", "llama-2": " </s>"}
    end = {**ends, "mistral": "</s>"}.get(template.name, "<end_of_turn>")
    strips = template.name not in ("chatml", "mistral")
    said = [m["content"].strip() if strips else m["content"] for m in messages if m["role"] == "assistant"]
    said = [" " + s for s in said] if template.name == "llama-2" else said
    assert [rendered.text[a:b] for a, b in rendered.answers] == [s + end for s in said]
    ids, mask = chat.encode(own, rendered)
    answered = own.inner.decode([i for i, kept in zip(ids, mask, strict=True) if kept], skip_special_tokens=False)
    assert answered.replace(" ", "") == "".join(s + end for s in said).replace(" ", "")


@given(content=st.lists(st.sampled_from([*MARKS, "a", "\n", "狼", " "]), min_size=1, max_size=8).map("".join))
def test_a_content_cannot_end_its_message(content: str) -> None:
    inner = tokenizer.byte_tokenizer().inner
    inner.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in MARKS])
    own = tokenizer.wrap(inner)
    rendered = chat.render(chat.named("chatml"), [{"role": "user", "content": content}], answer=True)
    ids, mask = chat.encode(own, rendered)
    start, end = (own.inner.token_to_id(m) for m in ("<|im_start|>", "<|im_end|>"))
    assert [i for i in ids if i > 255] == [start, end, start]
    inside = ids[ids.index(start) + 1 : ids.index(end)]
    assert bytes(inside).decode() == "user\n" + content
    assert len(mask) == len(ids)
    assert not any(mask)


STRANGE = [
    "{{ messages }}",
    SOURCES["chatml"] + "{% if enable_thinking %}<think>{% endif %}",
    SOURCES["chatml"].replace("message['content']", "message['content'] | trim"),
    SOURCES["mistral"].replace(" [/INST]", "[/INST]"),
    SOURCES["llama-3.1"] + "{{ strftime_now('%d') }}",
    SOURCES["chatml"] + " " * 300_000,
]


@pytest.mark.parametrize("source", STRANGE, ids=range(len(STRANGE)))
def test_an_unknown_template_is_an_error_that_names_the_known(source: str) -> None:
    with pytest.raises(ConfigError, match=r"none that is known; choose one of chatml, llama-3\.1"):
        chat.recognise(source)


@pytest.mark.parametrize("name", ["plain", "llama-2"])
def test_an_answer_goes_on_from_the_prompt_token_by_token(name: str) -> None:
    """A word and the space before it are one token of most tokenizers: it is the answer's, or it is never learned."""
    own = tokenizer.train_bpe(["Assistant: The wolf. [/INST] The wolf.\n" * 40], 300)
    template = chat.named(name, eos="<|endoftext|>")
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The wolf."}]
    prompt, _ = chat.encode(own, chat.render(template, messages[:1], answer=True))
    ids, mask = chat.encode(own, chat.render(template, messages))
    assert ids[: len(prompt)] == prompt
    assert mask.index(True) == len(prompt)
    assert own.decode(ids[len(prompt) :][:2]) == " The wolf"


def test_templates_by_name() -> None:
    plain = chat.render(chat.named("plain", eos="<|endoftext|>"), conversation(True, 2), answer=True)
    assert plain.text == (
        "System: Be kind.\nBe short.\nUser: What is the wolf?\nAssistant:  Grey.\n<|endoftext|>\nAssistant:"
    )
    with pytest.raises(ConfigError, match="there are chatml"):
        chat.named("chat-ml")
    with pytest.raises(ConfigError, match="no chat template; choose one of"):
        chat.recognise(None)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no message"),
        ([{"role": "tool", "content": "x"}], "message 0: a role of system"),
        ([{"role": "user"}], "message 0"),
        ([{"role": "user", "content": "x"}] * 2, "message 2 is of user"),
    ],
)
def test_conversations_that_are_none(messages: list[chat.Message], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chat.render(chat.named("gemma3"), messages)


def test_nothing_of_the_renderer_runs_a_template() -> None:
    source = Path(chat.__file__).read_text(encoding="utf-8")
    assert "jinja" not in source


@given(st.lists(st.sampled_from(["\n", "U", "User", "ser:", ":", "Assistant:", "\nUser:", "word ", "a"]), max_size=12))
def test_an_answer_ends_where_another_speaks_however_it_comes_in_pieces(pieces: list[str]) -> None:
    own, text = chat.named("plain"), "".join(pieces)
    wanted = re.split(r"\n(?:System|User|Assistant):", text)[0]
    assert "".join(chat.first_turn(own, pieces)) == wanted
    assert list(chat.first_turn(chat.named("chatml"), pieces)) == [p for p in pieces if p]

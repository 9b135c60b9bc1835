"""Chat templates: messages to the text a model was tuned on, and where in it the assistant's answers are.

A model's own template is a program in a template language. It is never run: it comes with the model, from anywhere.
`recognise` compares it with a fixed list by the pieces of text it must and must not have, and `render` is a few lines
of our own for each. A template that is not on the list is an error that names those that are; one can be chosen by
name.

A message is {"role": "system" | "user" | "assistant", "content": text}. What a message says cannot end it: `encode`
makes special tokens only of the template's own marks, and spells those inside a content as ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from foretell.errors import ConfigError
from foretell.tokenizer import Tokenizer

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
# The source of chatml, for models that come without a template.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA31_HEAD = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
_LONGEST_TEMPLATE = 1 << 18


@dataclass(frozen=True)
class Template:
    """A template of the list: its name, the system message it gives where none is given, the marks around a text."""

    name: str
    system: str | None = None
    bos: str = ""
    eos: str = ""

    @property
    def next_turns(self) -> tuple[str, ...]:
        """Text that begins another's turn where no token ends an answer: what stands behind it is no part of it."""
        return tuple(f"\n{role.capitalize()}:" for role in ROLES) if self.name == "plain" else ()


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. `answers`: character spans [start, end) of what the assistant says, with its end mark.

    `parts`: the same text in pieces, each with whether a message says it (True) or the template (False).
    """

    text: str
    answers: list[tuple[int, int]]
    parts: list[tuple[str, bool]]


def recognise(source: str | None, bos: str = "", eos: str = "") -> Template:
    """The template of the list that a model's own (its source) is. `bos` and `eos`: the model's, where it writes them.

    Raises ConfigError, naming the list, for one that is none of them.
    """
    if not source:
        raise ConfigError(f"the model has no chat template; choose one of {', '.join(TEMPLATES)}")
    if len(source) <= _LONGEST_TEMPLATE:
        text = source.replace("\\n", "\n").replace('"', "'")
        for name, (_, wanted, unwanted) in TEMPLATES.items():
            if wanted and all(w in text for w in wanted) and not any(u in text for u in unwanted):
                system = _default_system(text) if name == "chatml" else None
                return Template(name, system, bos, eos)
    raise ConfigError(
        f"the model's chat template ({len(source):,} characters, beginning {source[:60]!r}) is none that is known; "
        f"choose one of {', '.join(TEMPLATES)} if it is like it"
    )


def named(name: str, bos: str = "", eos: str = "", system: str | None = None) -> Template:
    """The template of that name. ConfigError names the list where there is none."""
    if name not in TEMPLATES:
        raise ConfigError(f"there is no chat template {name!r}; there are {', '.join(TEMPLATES)}")
    return Template(name, system, bos, eos)


def render(template: Template, messages: Sequence[Message], answer: bool = False) -> Rendered:
    """The conversation as the template writes it; with `answer`, up to where the assistant begins to speak.

    Raises ConfigError for roles that are unknown, or in an order that the template does not have.
    """
    for n, m in enumerate(messages):
        if m.get("role") not in ROLES or not isinstance(m.get("content"), str):
            raise ConfigError(f"message {n}: a role of {', '.join(ROLES)} and a content are needed, it is {m!r}")
    if not messages:
        raise ConfigError("there is no message")
    text, answers, parts, start = "", [], list[tuple[str, bool]](), None
    for piece, said, speaks in TEMPLATES[template.name][0](template, list(messages), answer):
        if speaks and start is None:
            start = len(text)
        elif not speaks and start is not None:
            answers.append((start, len(text)))
            start = None
        text += piece
        parts.append((piece, said))
    if start is not None:
        answers.append((start, len(text)))
    return Rendered(text, answers, parts)


def encode(tokenizer: Tokenizer, rendered: Rendered) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and of each whether it belongs to an answer (the tokens whose loss is trained on)."""
    special = {t.content for t in tokenizer.inner.get_added_tokens_decoder().values() if t.special}
    forged = any(said and any(s in piece for s in special) for piece, said in rendered.parts)
    ids, mask, place = list[int](), list[bool](), 0
    for piece, marks in _stretches(rendered.parts) if forged else [(rendered.text, True)]:
        encoded = tokenizer.encode_special(piece) if marks else tokenizer.inner.encode(piece, add_special_tokens=False)
        ids += encoded.ids
        mask += [_inside(place + a, place + b, rendered.answers) for a, b in encoded.offsets]
        place += len(piece)
    return ids, mask


def _stretches(parts: list[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """Neighbouring pieces of one kind as one, with whether marks in it are the template's own."""
    text, own = "", True
    for piece, said in parts:
        if said == own and text:
            yield text, own
            text = ""
        text, own = text + piece, not said
    if text:
        yield text, own


def _inside(start: int, end: int, spans: list[tuple[int, int]]) -> bool:
    return start < end and any(a <= start and end <= b for a, b in spans)


# A piece of a conversation: its text, whether a message says it, whether it is part of an answer.
Piece = tuple[str, bool, bool]


def _mark(text: str) -> Piece:
    return text, False, False


def _say(m: Message, end: str, strip: bool = False) -> Iterator[Piece]:
    """What a message says, and the mark that ends it; in the assistant's, both are the answer."""
    speaks = m["role"] == "assistant"
    yield (m["content"].strip() if strip else m["content"]), True, speaks
    yield end, False, speaks


def _chatml(t: Template, messages: list[Message], answer: bool) -> Iterator[Piece]:
    if t.system is not None and messages[0]["role"] != "system":
        yield _mark(f"<|im_start|>system\n{t.system}<|im_end|>\n")
    for m in messages:
        yield _mark(f"<|im_start|>{m['role']}\n")
        yield from _say(m, "<|im_end|>")
        yield _mark("\n")
    if answer:
        yield _mark("<|im_start|>assistant\n")


def _llama3(t: Template, messages: list[Message], answer: bool) -> Iterator[Piece]:
    yield _mark(t.bos)
    for m in messages:
        yield _mark(f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n")
        yield from _say(m, "<|eot_id|>", strip=True)
    if answer:
        yield _mark("<|start_header_id|>assistant<|end_header_id|>\n\n")


def _llama31(t: Template, messages: list[Message], answer: bool) -> Iterator[Piece]:
    system, rest = _system_apart(messages)
    yield _mark(f"{t.bos}<|start_header_id|>system<|end_header_id|>\n\n{_LLAMA31_HEAD}")
    yield system.strip(), True, False
    yield _mark("<|eot_id|>")
    yield from _llama3(replace(t, bos=""), rest, answer)


def _llama2(t: Template, messages: list[Message], answer: bool) -> Iterator[Piece]:
    system, rest = _system_apart(messages)
    _alternate(t, rest)
    for n, m in enumerate(rest):
        if m["role"] == "assistant":
            yield " ", False, True  # the prompt ends before it: a token of the answer begins with it
            yield from _say(m, f" {t.eos}", strip=True)
            continue
        yield _mark(f"{t.bos}[INST] ")
        if n == 0 and system:
            yield _mark("<<SYS>>\n")
            yield system, True, False
            yield _mark("\n<</SYS>>\n\n")
            yield m["content"].rstrip(), True, False
        else:
            yield m["content"].strip(), True, False
        yield _mark(" [/INST]")


def _mistral(t: Template, messages: list[Message], answer: bool) -> Iterator[Piece]:
    _alternate(t, messages)
    yield _mark(t.bos)
    for m in messages:
        if m["role"] == "assistant":
            yield from _say(m, t.eos)
            continue
        yield _mark("[INST] ")
        yield from _say(m, " [/INST]")


def _gemma(t: Template, messages: list[Message], answer: bool) -> Iterator[Piece]:
    """Gemma 3 puts a system message before the first user's; Gemma 1 and 2 have none."""
    system, rest = _system_apart(messages)
    if t.name == "gemma" and messages[0]["role"] == "system":
        raise ConfigError("the chat template gemma has no system message; gemma3 has")
    _alternate(t, rest)
    yield _mark(t.bos)
    for n, m in enumerate(rest):
        yield _mark(f"<start_of_turn>{'model' if m['role'] == 'assistant' else 'user'}\n")
        if n == 0 and messages[0]["role"] == "system":
            yield system + "\n\n", True, False
        yield from _say(m, "<end_of_turn>", strip=True)
        yield _mark("\n")
    if answer:
        yield _mark("<start_of_turn>model\n")


def _plain(t: Template, messages: list[Message], answer: bool) -> Iterator[Piece]:
    """For models that were never tuned: the roles in words, and the end of text behind an answer.

    The space before an answer is the answer's: most tokenizers make one token of it and of the word behind.
    """
    yield _mark(t.bos)
    for m in messages:
        yield _mark(f"{m['role'].capitalize()}:")
        yield " ", False, m["role"] == "assistant"
        yield from _say(m, t.eos if m["role"] == "assistant" else "")
        yield _mark("\n")
    if answer:
        yield _mark("Assistant:")


def _system_apart(messages: list[Message]) -> tuple[str, list[Message]]:
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return "", messages


def _alternate(t: Template, messages: list[Message]) -> None:
    for n, m in enumerate(messages):
        wanted = "assistant" if n % 2 else "user"
        if m["role"] != wanted:
            raise ConfigError(
                f"the chat template {t.name} has user and assistant in turn; message {n + 1} is of {m['role']}"
            )


def first_turn(own: Template, pieces: Iterable[str]) -> Iterator[str]:
    """The pieces of an answer up to where the text begins another's turn. What may be such a beginning waits."""
    held = ""
    for piece in pieces:
        held += piece
        ends = [at for mark in own.next_turns if (at := held.find(mark)) >= 0]
        if ends:
            yield held[: min(ends)]
            return
        waits = max((n for mark in own.next_turns for n in range(1, len(mark)) if held.endswith(mark[:n])), default=0)
        said, held = held[: len(held) - waits], held[len(held) - waits :]
        if said:
            yield said
    if held:
        yield held


def _default_system(text: str) -> str | None:
    """The system message that a chatml template brings along, plain text between its marks."""
    found = re.search(r"<\|im_start\|>system\n([^{}<>'|]{1,2000})<\|im_end\|>", text)
    return found[1] if found else None


# By name: what writes it; the pieces its source must have, and must not have. The first that fits is taken.
_Writer = Callable[[Template, list[Message], bool], Iterator[Piece]]
TEMPLATES: dict[str, tuple[_Writer, tuple[str, ...], tuple[str, ...]]] = {
    "chatml": (
        _chatml,
        ("'<|im_start|>'", "<|im_end|>", "<|im_start|>assistant\n"),
        ("<think>", "enable_thinking", "<|vision", "| trim", "strip()", "bos_token"),
    ),
    "llama-3.1": (
        _llama31,
        ("<|start_header_id|>", "Cutting Knowledge Date: December 2023", "26 Jul 2024", "<|eot_id|>"),
        ("strftime_now",),
    ),
    "llama-3": (
        _llama3,
        ("'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'", "| trim + '<|eot_id|>'", "bos_token"),
        ("Cutting Knowledge Date",),
    ),
    "llama-2": (
        _llama2,
        (
            "'<<SYS>>\n'",
            "'\n<</SYS>>\n\n'",
            "bos_token + '[INST] '",
            ".strip() + ' [/INST]'",
            ".strip() + ' ' + eos_token",
        ),
        (),
    ),
    "mistral": (
        _mistral,
        ("bos_token", "'[INST] ' + message['content'] + ' [/INST]'", "message['content'] + eos_token"),
        ("<<SYS>>", "tools", "| trim"),
    ),
    "gemma3": (
        _gemma,
        (
            "bos_token",
            "'<start_of_turn>' + role + '\n'",
            "first_user_prefix",
            "<end_of_turn>\n",
            "<start_of_turn>model\n",
        ),
        (),
    ),
    "gemma": (
        _gemma,
        ("bos_token", "'<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n'"),
        ("first_user_prefix",),
    ),
    "plain": (_plain, (), ()),
}

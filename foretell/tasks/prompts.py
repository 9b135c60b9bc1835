"""How an example is put to a decoder: messages, the last of them the user's, and the answer that is wanted.

The same words are trained on and asked with. They are in the language of the task, English or Chinese, and
`task.instruction` takes their place. A prompt that is too long loses the end of its source, or the oldest turns of a
dialogue, never the instruction, the question or what the system says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from foretell.config import TaskConfig
from foretell.tasks.examples import Example, Message
from foretell.tokenizer import Tokenizer, chat
from foretell.tokenizer.chat import Template

LANGUAGES = {"en": "English", "zh": "Chinese", "de": "German", "fr": "French", "es": "Spanish", "ja": "Japanese"}
_ZH = {"en": "英文", "zh": "中文", "de": "德文", "fr": "法文", "es": "西班牙文", "ja": "日文"}
_INSTRUCTIONS = {
    "summarization": {"en": "Summarize in one sentence:", "zh": "用一句话概括："},
    "classification": {"en": "Name the category of this text:", "zh": "说出下面文本的类别："},
    "qa": {"en": "Answer from the passage, in as few words as possible.", "zh": "根据上文用尽量少的字回答。"},
}
NO_ANSWER = {"en": "no answer", "zh": "没有答案"}


def language(task: TaskConfig) -> str:
    """The language that a model is spoken to in: zh where what is wanted is Chinese, else en."""
    return "zh" if (task.target_language or task.source_language) == "zh" and task.kind != "translation" else "en"


def instruction(task: TaskConfig) -> str:
    """What stands before, of qa behind, what is given."""
    if task.instruction is not None:
        return task.instruction
    if task.kind == "translation":
        to = task.target_language or "en"
        return f"Translate into {LANGUAGES.get(to, to)}:"
    return _INSTRUCTIONS.get(task.kind or "", {}).get(language(task), "")


def asked(example: Example, task: TaskConfig) -> list[Message]:
    """The messages that ask for the example's answer."""
    if task.kind == "dialogue":
        return list(example.messages[:-1])
    told = instruction(task)
    if task.kind == "qa":
        text = f"{example.context}\n\n{told}\n{example.source}"
    else:
        text = f"{told}\n\n{example.source}" if told else example.source
    return [{"role": "user", "content": text}]


def answer(example: Example, task: TaskConfig) -> str:
    """What is wanted: the first reference; of qa a phrase where there is no answer to be had."""
    return example.targets[0] if example.targets else NO_ANSWER[language(task)]


def tagged(text: str, task: TaskConfig) -> str:
    """A source of an encoder-decoder: where it translates both ways, with the tag of the language that is wanted."""
    return f">>{task.target_language}<< {text}" if task.both_ways else text


def fitted(example: Example, task: TaskConfig, own: Template, tokenizer: Tokenizer, most: int) -> Example:
    """The example as it fits a prompt of `most` tokens; itself where it does."""
    for _ in range(32):
        excess = _length(tokenizer, own, asked(example, task)) - most
        if excess <= 0:
            return example
        shorter = _shorter(example, task, excess, tokenizer)
        if shorter == example:
            return example
        example = shorter
    return example


def windows(example: Example, own: Template, tokenizer: Tokenizer, most: int) -> Iterator[list[Message]]:
    """The turns of a dialogue as conversations of at most `most` tokens, each with what the system says.

    Every turn is in one; a turn and its answer that alone are longer stay together, and are cut when trained on.
    """
    system = [m for m in example.messages[:1] if m["role"] == "system"]
    current: list[Message] = []
    for turn in _turns(example.messages[len(system) :]):
        if current and _length(tokenizer, own, [*system, *current, *turn], answer=False) > most:
            yield [*system, *current]
            current = []
        current = [*current, *turn]
    if any(m["role"] == "assistant" for m in current):
        yield [*system, *current]


def _turns(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Stretches of messages, each up to and with an answer."""
    stretch: list[Message] = []
    for m in messages:
        stretch.append(m)
        if m["role"] == "assistant":
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _length(tokenizer: Tokenizer, own: Template, messages: Sequence[Message], answer: bool = True) -> int:
    return len(chat.encode(tokenizer, chat.render(own, messages, answer))[0])


def _shorter(example: Example, task: TaskConfig, excess: int, tokenizer: Tokenizer) -> Example:
    """Without the oldest turns, or without the last `excess` tokens of the text (of qa, of the passage)."""
    if task.kind == "dialogue":
        messages = list(example.messages)
        first = 1 if messages[0]["role"] == "system" else 0
        kept = messages[first:-1]
        if len(kept) <= 1:
            return example
        rest = kept[1:]
        while len(rest) > 1 and rest[0]["role"] != "user":
            rest = rest[1:]
        return example._replace(messages=(*messages[:first], *rest, messages[-1]))
    text = example.context if task.kind == "qa" else example.source
    ids = tokenizer.encode(text)
    cut = tokenizer.decode(ids[: max(1, len(ids) - excess)]).rstrip("\ufffd")
    if len(cut) >= len(text):
        cut = text[: max(1, len(text) - max(1, excess))]
    return example._replace(context=cut) if task.kind == "qa" else example._replace(source=cut)


def back(task: TaskConfig) -> TaskConfig:
    """The task the other way round."""
    return task.model_copy(update={"source_language": task.target_language, "target_language": task.source_language})

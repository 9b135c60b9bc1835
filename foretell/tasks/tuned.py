"""A model with what it was tuned for: asked for texts by batches, or one answer as a stream.

What a model is asked is what it was trained on (`prompts.py`, `card.py`); a model without a card is asked the task's
own words through its chat template, or, where it has none, through `plain`. Answers come from beam search, one beam
being the greedy choice, so an answer depends on the model and the example alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from foretell import generate
from foretell.config import TaskConfig
from foretell.errors import ConfigError, ModelError
from foretell.models import source
from foretell.models.decoder import Decoder
from foretell.models.encoder import Encoder
from foretell.models.model import Model
from foretell.models.seq2seq import Seq2Seq
from foretell.tasks import card, prompts
from foretell.tasks.classification import label_logits
from foretell.tasks.examples import Example, Message
from foretell.tasks.extractive import spans
from foretell.tokenizer import Tokenizer, chat
from foretell.tokenizer.chat import Template

_LONGEST = {"translation": 128, "summarization": 96, "qa": 32, "dialogue": 128, "classification": 24, "generation": 256}
_BEAMS = 4  # of encoder-decoders


class Answer(NamedTuple):
    """text: what the model says. tokens: of it. cut: whether what was given did not fit as a whole."""

    text: str
    tokens: int
    cut: bool = False


@dataclass(frozen=True)
class Tuned:
    """A model, its tokenizer, what it is for, and of a decoder its chat template and the token that ends an answer."""

    path: Path
    model: Model
    tokenizer: Tokenizer
    task: TaskConfig
    template: Template | None
    end: int | None

    @property
    def max_new_tokens(self) -> int:
        return self.task.max_new_tokens or _LONGEST[self.task.kind or "generation"]

    @property
    def prompt_tokens(self) -> int:
        """Tokens that a prompt, or a source, may have."""
        longest = self.model.config.needed("max_position_embeddings")
        return longest if isinstance(self.model, Seq2Seq) else longest - min(self.max_new_tokens, longest // 2)

    def asking(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation up to where a decoder is to answer."""
        assert self.template is not None
        return chat.encode(self.tokenizer, chat.render(self.template, messages, answer=True))[0]


def load(path: Path, kind: str, changes: dict[str, Any], device: Any = None, template: str | None = None) -> Tuned:
    """The model at `path` for a task. changes: of [task], what is not as its card, or the defaults, say.

    template: of conversations, by name, in place of the model's own; generation has none. Raises ModelError where a
    kind of model is nothing for the task, ConfigError where its card is of another task.
    """
    told = card.read(path) if Path(path).is_dir() else None
    if told is not None and told.task.kind not in (kind, None):
        raise ConfigError(f"{path} was tuned for {told.task.kind}, not for {kind}")
    task = told.task if told is not None else TaskConfig(kind=kind)
    given = {k: v for k, v in changes.items() if v is not None}
    task = TaskConfig.model_validate(task.model_dump() | {"kind": kind} | given)
    opened = source.open(path)
    model = opened.model()
    model = model if device is None else model.to(device)
    own, end = None, opened.tokenizer.eot_id
    if isinstance(model, Decoder):
        if kind != "generation":
            own = told.template if told is not None and template is None else None
            own = own or own_template(opened, template)
            end = _end(opened.tokenizer, own)
    elif isinstance(model, Seq2Seq) and kind not in ("translation", "summarization"):
        raise ModelError(f"{path} is an encoder-decoder, which is asked for translations and summaries, not for {kind}")
    elif isinstance(model, Encoder) and kind not in ("classification", "qa"):
        raise ModelError(f"{path} is an encoder, which writes no text; {kind} wants another model")
    return Tuned(Path(path), model, opened.tokenizer, task, own, end)


def own_template(opened: source.Source, name: str | None = None) -> Template:
    """The chat template that a model brings; plain where it brings none. ConfigError for one that is not known.

    name: take that one, with the model's marks.
    """
    brought = opened.chat
    if brought.template and name is None:
        return chat.recognise(brought.template, brought.bos, brought.eos)
    own = opened.tokenizer
    mark = "" if own.eot_id is None else str(own.inner.id_to_token(own.eot_id))
    begun = own.bos_id is not None and own.bos_id != own.eot_id  # by a mark that texts of this model begin with
    bos = "" if name in (None, "plain") and not begun else brought.bos
    return chat.named(name or "plain", bos, brought.eos or mark)


def _end(tokenizer: Tokenizer, template: Template) -> int | None:
    """The token behind an answer in that template."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids, answers = chat.encode(tokenizer, chat.render(template, said))
    return ids[max(n for n, inside in enumerate(answers) if inside)] if any(answers) else tokenizer.eot_id


def answers(tuned: Tuned, examples: Sequence[Example]) -> list[Answer]:
    """What the model says to each example, in order."""
    if isinstance(tuned.model, Encoder):
        return _of_encoder(tuned, examples)
    ids, cut = zip(*(_ids(tuned, e) for e in examples), strict=True)
    beams = tuned.task.beams or (_BEAMS if isinstance(tuned.model, Seq2Seq) else 1)
    assert isinstance(tuned.model, Seq2Seq | Decoder)
    found = generate.beam_search(
        tuned.model,
        ids,
        beams=beams,
        length_penalty=tuned.task.length_penalty,
        max_new_tokens=tuned.max_new_tokens,
        eos=tuned.end,
    )
    return [Answer(_said(tuned, tuned.tokenizer.decode(h.ids)), len(h.ids), c) for h, c in zip(found, cut, strict=True)]


def _of_encoder(tuned: Tuned, examples: Sequence[Example]) -> list[Answer]:
    """The likeliest labels, or answers out of passages: nothing where that there is none scores more."""
    if tuned.task.kind == "classification":
        labels = tuned.model.config.labels or ()
        logits = label_logits(tuned.model, tuned.tokenizer, [e.source for e in examples])
        return [Answer(labels[n], 1) for n in logits.argmax(1)]
    found = spans(tuned.model, tuned.tokenizer, [(e.source, e.context) for e in examples])
    said = [f.text if f.score >= f.null else "" for f in found]
    return [Answer(text, len(tuned.tokenizer.encode(text))) for text in said]


def _ids(tuned: Tuned, example: Example) -> tuple[list[int], bool]:
    """What the model reads, and whether the example had to be cut for it."""
    most = tuned.prompt_tokens
    if isinstance(tuned.model, Seq2Seq):
        ids = generate.source_ids(tuned.tokenizer, prompts.tagged(example.source, tuned.task))
        return (ids, False) if len(ids) <= most else ([*ids[: most - 1], ids[-1]], True)
    assert tuned.template is not None
    fitting = prompts.fitted(example, tuned.task, tuned.template, tuned.tokenizer, most)
    return tuned.asking(prompts.asked(fitting, tuned.task))[-most:], fitting != example


def _said(tuned: Tuned, text: str) -> str:
    """An answer as it is scored: its own turn, on one line but for dialogues; of qa nothing where it says "none"."""
    if tuned.template is not None:
        text = "".join(chat.first_turn(tuned.template, [text]))
    text = text.strip()
    if tuned.task.kind in ("dialogue", "generation"):
        return text
    text = re.sub(r"\s*\n\s*", " ", text)
    return "" if tuned.task.kind == "qa" and text in prompts.NO_ANSWER.values() else text


def stream(tuned: Tuned, messages: Sequence[Message], **sampling: Any) -> Iterator[str]:
    """One answer of a decoder to a conversation, piece by piece. sampling: as `generate.stream` takes it."""
    assert isinstance(tuned.model, Decoder)
    assert tuned.template is not None
    ids = tuned.asking(messages)
    pieces = generate.stream(tuned.model, tuned.tokenizer, ids, end=tuned.end, **sampling)
    return chat.first_turn(tuned.template, pieces)

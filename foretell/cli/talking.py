"""`foretell chat`: a conversation in the terminal, or one answer to a `--message`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretell import errors
from foretell.cli.asking import Model, load, shown
from foretell.cli.options import Json, emit

if TYPE_CHECKING:
    from foretell.tasks.tuned import Tuned

HELP = """\
/new            forget what was said
/again          another answer to the same
/system TEXT    what the system says first; without TEXT nothing
/help           these lines
/quit, Ctrl-D   the end
Ctrl-C during an answer ends the answer; what was said of it stays. A line that ends in \\ goes on in the next,
and \"\"\" begins and ends a message of several lines. // begins a message with a /.
"""
_COMMANDS = ("/new", "/again", "/system", "/help", "/quit")


@dataclass
class Talk:
    """A conversation so far, with a model and how its answers are drawn. said: without what the system says."""

    asked: Tuned
    draw: dict[str, Any]
    seed: int = 0
    system: str | None = None
    said: list[dict[str, str]] = field(default_factory=list)
    answers: int = 0
    dropped: int = 0  # messages that did not fit before the last answer

    def pieces(self, message: str) -> Iterator[str]:
        """The answer to a message, as it comes; then both are part of the conversation.

        An answer that is broken off stays as far as it came; of one that never began the message is taken back too.
        """
        from foretell.tasks import prompts, tuned
        from foretell.tasks.examples import Example

        asked = self.asked
        assert asked.template is not None
        first = [{"role": "system", "content": self.system}] if self.system else []
        whole = (*first, *self.said, {"role": "user", "content": message}, {"role": "assistant", "content": ""})
        example = Example("", message, messages=whole)
        fitting = prompts.fitted(example, asked.task, asked.template, asked.tokenizer, asked.prompt_tokens)
        self.dropped = len(whole) - len(fitting.messages)
        answer, done = "", False
        try:
            stream = tuned.stream(
                asked,
                prompts.asked(fitting, asked.task),
                max_new_tokens=asked.max_new_tokens,
                seed=self.seed + self.answers,
                **self.draw,
            )
            for piece in stream:
                shown = piece if answer else piece.lstrip()
                answer += shown
                yield shown
            done = True
        finally:
            self.answers += 1
            if done or answer:
                said = [{"role": "user", "content": message}, {"role": "assistant", "content": answer.strip()}]
                self.said += said

    def take_back(self) -> str | None:
        """The last message of the user, forgotten together with its answer; None where there is none."""
        if not self.said:
            return None
        message = self.said[-2]["content"]
        self.said = self.said[:-2]
        return message


def chat(
    model: Model,
    message: Annotated[str | None, typer.Option("--message", help="One message; without it, a conversation.")] = None,
    system: Annotated[str | None, typer.Option(help="What the system says first; it is never forgotten.")] = None,
    template: Annotated[
        str | None, typer.Option(help="Chat template by name, such as chatml; the model's own when not given.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Only the likeliest that sum to p.")] = 0.95,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same conversation.")] = 0,
    as_json: Json = False,
) -> None:
    """Talk with a model, streaming; /help says how. Old turns are dropped when they no longer fit, the system's never.

    Ctrl-C during an answer ends the answer, Ctrl-D the conversation.
    """
    if as_json and message is None:
        raise errors.ConfigError("chat --json needs a --message")
    asked = load(model, "dialogue", template, max_new_tokens=max_new_tokens)
    draw = {"temperature": temperature, "top_p": top_p, "repetition_penalty": repetition_penalty}
    talk = Talk(asked, draw, seed, system)
    if message is None:
        _converse(talk)
    elif as_json:
        answer = "".join(talk.pieces(message)).strip()
        emit({"message": message, "answer": answer, "turns_dropped": talk.dropped}, True)
    else:
        _say(talk, message)


def _converse(talk: Talk) -> None:
    """Messages from the terminal until it ends."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # bytes of another encoding are no reason to end
    if sys.stdin.isatty():
        assert talk.asked.template is not None
        _tell(f"{talk.asked.path} (chat template: {talk.asked.template.name}). /help says how; Ctrl-D ends.")
    for line in _messages():
        if line == "/quit":
            return
        message = _obeyed(talk, line) if line.startswith("/") and not line.startswith("//") else line
        if message is None:
            continue
        try:
            _say(talk, message.removeprefix("/") if message.startswith("//") else message)
        except KeyboardInterrupt:
            print()
            _tell("(ended)")
        except errors.ConfigError as e:  # of a template that has no such turn
            _tell(f"foretell: {e}")


def _obeyed(talk: Talk, line: str) -> str | None:
    """Do what a command says; the message it asks again, if any."""
    command, _, rest = line.partition(" ")
    if command == "/help":
        _tell(HELP.rstrip())
    elif command == "/new":
        talk.said = []
        _tell("(forgotten)")
    elif command == "/system":
        talk.system = rest.strip() or None
        _tell("(the system says nothing)" if talk.system is None else "(said from now on)")
    elif command == "/again":
        message = talk.take_back()
        if message is None:
            _tell("(nothing was said)")
        return message
    else:
        _tell(f"foretell: there is no {command}; there are {', '.join(_COMMANDS)}")
    return None


def _say(talk: Talk, message: str) -> None:
    """Print the answer as it comes."""
    some = False
    for piece in talk.pieces(message):
        print(shown(piece), end="", flush=True)
        some = some or bool(piece)
    print()
    if not some:
        _tell("(no answer)")
    if talk.dropped:
        _tell(f"(the oldest {talk.dropped:,} messages no longer fit and were not seen)")


def _messages() -> Iterator[str]:
    """What is typed, a message at a time; nothing for empty lines."""
    while True:
        line = _line("> ")
        if line is None:
            return
        if line.strip() == '"""':
            several = list[str]()
            while (more := _line("")) is not None and more.strip() != '"""':
                several.append(more)
            line = "\n".join(several)
        while line.endswith("\\"):
            more = _line("  ")
            line = line[:-1] + ("" if more is None else "\n" + more)
        if line.strip():
            yield line.strip()


def _line(mark: str) -> str | None:
    """A line without its end, edited where there is a terminal; None at the end."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (arrows, history, wide characters)
        try:
            return input(mark)
        except EOFError:
            print()
            return None
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

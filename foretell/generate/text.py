"""From tokens to text while they arrive: whole characters only, and never a part of a stop string.

A token may end inside a character, and a stop string may begin in one token and end in another. So bytes wait until
they make a character, and text that could be the beginning of a stop string waits until it is known not to be one. What
was handed out, joined, is the completion: the same text whether it was streamed or not. Bytes that are not UTF-8 become
U+FFFD; an unfinished character at the very end is dropped.
"""

from __future__ import annotations

import codecs

from foretell.errors import ConfigError


class Text:
    """One completion in the making. `stopped` once a stop string was found."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        if isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
            raise ConfigError("stop is a list of strings, none of them empty")
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        """Take the bytes of a token; return the text that is now certain."""
        self._held += self._decoder.decode(data)
        found = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        waiting = max((_overlap(self._held, s) for s in self._stop), default=0)
        cut = len(self._held) - waiting
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def end(self) -> str:
        """What was waiting when no more tokens come."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, and not all of it."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0

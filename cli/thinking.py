"""Tells a model's thinking from its answer, while both stream in."""

from collections.abc import Iterator
from enum import Enum, auto


class Kind(Enum):
    """What a piece of streamed text is."""

    thinking = auto()
    answer = auto()
    tag = auto()  # what opens or closes the thinking


class ThinkingSplitter:
    """Splits `<think>...</think>` off the start of an answer.

    Thinking counts only where an answer begins: a tag further on is text about the tag.
    `is_open` says that the prompt ended inside a thinking tag already.
    """

    def __init__(
        self, is_open: bool = False, opens: str = "<think>", closes: str = "</think>"
    ) -> None:
        self._opens = opens
        self._closes = closes
        self._state = Kind.thinking if is_open else Kind.tag
        self._held = ""  # may become a tag with the next piece

    def feed(self, text: str) -> Iterator[tuple[Kind, str]]:
        """Take a piece of text; yield what can be told apart by now."""
        self._held += text
        if self._state is Kind.tag:
            start = self._held.lstrip()
            if start.startswith(self._opens):
                cut = self._held.index(self._opens) + len(self._opens)
                yield Kind.tag, self._held[:cut]
                self._held = self._held[cut:]
                self._state = Kind.thinking
            elif not self._opens.startswith(start):  # "" waits too
                self._state = Kind.answer
        if self._state is Kind.thinking:
            thought, tag, rest = self._held.partition(self._closes)
            if not tag:
                keep = _overlap(thought, self._closes)
                thought, self._held = thought[: len(thought) - keep], thought[len(thought) - keep :]
            if thought:
                yield Kind.thinking, thought
            if tag:
                yield Kind.tag, tag
                self._held = rest
                self._state = Kind.answer
        if self._state is Kind.answer and self._held:
            yield Kind.answer, self._held
            self._held = ""

    def finish(self) -> Iterator[tuple[Kind, str]]:
        """Yield what was held back, at the end of the answer."""
        if self._held:
            yield (Kind.thinking if self._state is Kind.thinking else Kind.answer), self._held
        self._held = ""


def _overlap(text: str, tag: str) -> int:
    """Count the characters at the end of `text` that could begin `tag`."""
    for size in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-size:]):
            return size
    return 0

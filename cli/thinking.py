"""Tells a model's thinking from its answer, while both stream in."""

from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from orthrus_mlx.chat.stop_strings import overlap

DEFAULT_TAGS = ("<think>", "</think>")
NO_SWITCH = "This model's chat template has no switch for thinking: nothing changes."


class Kind(Enum):
    """What a piece of streamed text is."""

    thinking = auto()
    answer = auto()
    tag = auto()  # what opens or closes the thinking


Piece = tuple[Kind, str]


def think_tags(tokenizer: Any) -> tuple[str, str]:
    """Name the tags around a model's thinking: the tokenizer's own, else the usual ones."""
    opens, closes = tokenizer.think_start, tokenizer.think_end
    return (opens, closes) if opens and closes else DEFAULT_TAGS


class ThinkingSplitter:
    """Splits `<think>...</think>` off the start of an answer.

    Thinking counts only where an answer begins: a tag further on is text about the tag.
    `is_open` says that the prompt ended inside a thinking tag already.
    """

    def __init__(
        self,
        is_open: bool = False,
        opens: str = DEFAULT_TAGS[0],
        closes: str = DEFAULT_TAGS[1],
    ) -> None:
        self._opens = opens
        self._closes = closes
        self._state = Kind.thinking if is_open else Kind.tag
        self._held = ""  # may become a tag with the next piece

    @property
    def thinks(self) -> bool:
        """Whether the thinking goes on."""
        return self._state is Kind.thinking

    def feed(self, text: str) -> list[Piece]:
        """Take a piece of text; give back what can be told apart by now."""
        self._held += text
        pieces: list[Piece] = []
        if self._state is Kind.tag:
            start = self._held.lstrip()
            if start.startswith(self._opens):
                thought = start.removeprefix(self._opens)
                pieces.append((Kind.tag, self._held.removesuffix(thought)))
                self._held, self._state = thought, Kind.thinking
            elif not self._opens.startswith(start):  # "" may become the tag too
                self._state = Kind.answer
        if self._state is Kind.thinking:
            thought, tag, rest = self._held.partition(self._closes)
            if tag:
                pieces += [(Kind.thinking, thought), (Kind.tag, tag)]
                self._held, self._state = rest, Kind.answer
            else:
                cut = len(thought) - overlap(thought, self._closes)
                pieces.append((Kind.thinking, thought[:cut]))
                self._held = thought[cut:]
        if self._state is Kind.answer:
            pieces.append((Kind.answer, self._held))
            self._held = ""
        return [piece for piece in pieces if piece[1]]

    def finish(self) -> list[Piece]:
        """Give back what was held, at the end of the answer."""
        held, self._held = self._held, ""
        kind = Kind.thinking if self.thinks else Kind.answer
        return [(kind, held)] if held else []


class Answer:
    """An answer on its way to `write`, its thinking told apart.

    `prompt` is the text before it: a template may have opened the thinking there.
    """

    def __init__(
        self,
        write: Callable[[Kind, str], None],
        prompt: str = "",
        tags: tuple[str, str] = DEFAULT_TAGS,
    ) -> None:
        self._write = write
        self._splitter = ThinkingSplitter(prompt.rstrip().endswith(tags[0]), *tags)
        self._said: dict[Kind, str] = dict.fromkeys(Kind, "")

    @property
    def thinks(self) -> bool:
        """Whether the thinking goes on."""
        return self._splitter.thinks

    @property
    def thinking(self) -> str:
        """What was thought."""
        return self._said[Kind.thinking].strip()

    @property
    def text(self) -> str:
        """What was answered, without the blank lines between the thinking and the answer."""
        text = self._said[Kind.answer]
        return text.lstrip("\n") if self._said[Kind.tag] else text

    def feed(self, text: str) -> None:
        """Show the next piece of text."""
        self._show(self._splitter.feed(text))

    def finish(self) -> None:
        """Show what was held back."""
        self._show(self._splitter.finish())

    def _show(self, pieces: list[Piece]) -> None:
        for kind, text in pieces:
            self._said[kind] += text
            self._write(kind, text)

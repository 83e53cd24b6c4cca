"""Tells a model's thinking from its answer, while both stream in."""

from enum import Enum, auto

from orthrus_mlx.generate import overlap


class Kind(Enum):
    """What a piece of streamed text is."""

    thinking = auto()
    answer = auto()
    tag = auto()  # what opens or closes the thinking


Piece = tuple[Kind, str]


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
        kind = Kind.thinking if self._state is Kind.thinking else Kind.answer
        return [(kind, held)] if held else []

"""Who decides: from the AR logits of a pass to its tokens, by the one rule of `consensus`.

A chooser's choice at a position depends on the logits there and on the text before it, never on
how the text was drafted. So every mode writes the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from ..errors import GenerationError, LogitsError
from .consensus import Sampling, scores, top2_margin

NO_CHOICE = -1  # in place of a token, where logits are NaN, or all are -inf
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]


class Choices(NamedTuple):
    """What was chosen at consecutive positions.

    Attributes:
        tokens: ids [n]; `NO_CHOICE` where the logits allow none.
        logits: what they were chosen from [n, vocab_size], processors applied.
        margins: by how many logits each was chosen [n]; None where that is not asked for.
    """

    tokens: mx.array
    logits: mx.array
    margins: mx.array | None


class Chooser(Protocol):
    """Decides the tokens of one sequence, in order.

    Attributes:
        reads_text: whether a choice needs all ids before it on the host. Otherwise it is made on
            the device with the pass, and the next AR step can begin before it is read.
    """

    reads_text: bool

    def choose(self, logits: mx.array, position: int, drafts: Sequence[int]) -> Choices:
        """The choices for `position` and those after it.

        Args:
            logits: of the AR rows [n, vocab_size]; row j follows the first j drafts.
            position: of the first choice.
            drafts: ids [n - 1] that the rows were computed for; empty unless `reads_text`. The
                choices end with the first that is another id, or go on: the engine keeps what
                agrees.
        """


class KeyedChooser:
    """Greedy, or sampled with noise keyed by seed and position: on the device, all rows at once."""

    reads_text = False

    def __init__(self, sampling: Sampling, margins: bool = False):
        self.sampling, self.margins = sampling, margins

    def choose(self, logits: mx.array, position: int, drafts: Sequence[int]) -> Choices:
        """The choices of all rows."""
        ranked = scores(logits, position, self.sampling)
        tokens = mx.argmax(ranked, axis=-1).astype(mx.int32)
        tokens = mx.where(usable(ranked), tokens, NO_CHOICE)
        margins = top2_margin(ranked, tokens, self.sampling) if self.margins else None
        return Choices(tokens, logits, margins)


class ProcessedChooser:
    """The same behind mlx-lm's logits processors, row by row up to the first rejected draft.

    A processor sees each true history once and in order, exactly as in AR decoding, so even one
    that keeps state stays lossless.
    """

    reads_text = True

    def __init__(
        self,
        keyed: KeyedChooser,
        processors: Sequence[LogitsProcessor],
        prompt: Sequence[int],
        ends: frozenset[int],
    ):
        self._keyed, self._processors = keyed, processors
        self._history = mx.array(list(prompt))
        self._ends = ends  # behind an end token there is no history to show a processor

    def choose(self, logits: mx.array, position: int, drafts: Sequence[int]) -> Choices:
        """The choices up to the first that is no draft, or an end token."""
        chosen: list[Choices] = []
        for j, draft in enumerate([*drafts, None]):
            stages = [logits[j : j + 1]]
            for n, processor in enumerate(self._processors):
                stages.append(self._checked(n, processor(self._history, stages[-1]), stages[-1]))
            choice = self._keyed.choose(stages[-1], position + j, ())
            token = choice.tokens.item()
            if token == NO_CHOICE and chosen:
                break  # in AR decoding these tokens are handed out before that shows
            if token == NO_CHOICE:
                self._blame(stages)
            chosen.append(choice)
            self._history = mx.concatenate([self._history, choice.tokens])
            if token != draft or token in self._ends:
                break
        tokens = mx.concatenate([choice.tokens for choice in chosen])
        rows = mx.concatenate([choice.logits for choice in chosen])
        margins = [c.margins for c in chosen if c.margins is not None]
        return Choices(tokens, rows, mx.concatenate(margins) if margins else None)

    def _blame(self, stages: Sequence[mx.array]) -> None:
        """Raise an error for the first processor whose output is unusable, if one is to blame."""
        good = [bool(usable(row).all()) for row in stages]
        if good[0]:
            raise LogitsError(
                f"{self._name(good.index(False) - 1)} left no token to choose: its logits are NaN, "
                "or all -inf."
            )

    def _checked(self, n: int, after: Any, before: mx.array) -> mx.array:
        """What processor `n` made of logits, if it is logits of the same shape."""
        if isinstance(after, mx.array) and after.shape == before.shape:
            return after
        made = f"shape {after.shape}" if isinstance(after, mx.array) else type(after).__name__
        raise GenerationError(
            f"{self._name(n)} returned {made}; expected logits, an mx.array of shape "
            f"{before.shape}."
        )

    def _name(self, n: int) -> str:
        processor = self._processors[n]
        name = getattr(processor, "__name__", type(processor).__name__)
        return f"logits_processors[{n}] ({name})"


def usable(logits: mx.array) -> mx.array:
    """Which rows [...] of `logits` [..., vocab_size] a token can be chosen from."""
    return mx.max(logits, axis=-1) > -mx.inf  # NaN is greater than nothing

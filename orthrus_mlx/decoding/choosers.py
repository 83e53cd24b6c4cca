"""Who decides: from the AR logits of a pass to its tokens, by the one rule of `consensus`.

A chooser's choice at a position depends on the logits there and on the text before it, never on
how the text was drafted. So every mode writes the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..errors import GenerationError, LogitsError
from .consensus import Sampling, scores, top2_margin
from .grammar import Matcher, mask
from .penalties import NO_PENALTIES, Penalties

NO_CHOICE = -1  # in place of a token, where logits are NaN, or all are -inf
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
Ids = list[int] | mx.array  # [n]; an array where the device may still be computing them


class Chosen(NamedTuple):
    """What was chosen at consecutive positions.

    Attributes:
        tokens: ids [n]; `NO_CHOICE` where the logits allow none.
        logits: the model's [n, vocab_size], penalized and processed. A constraint leaves them as
            they are: a token is chosen from those that it allows.
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

    def choose(self, logits: mx.array, position: int, before: Ids) -> Chosen:
        """The choices for `position` and those after it.

        Args:
            logits: of the AR rows [n, vocab_size].
            position: of the first choice.
            before: the ids [n] of the rows, anchor and drafts; row j follows the first j + 1 of
                them. On the host where the chooser `reads_text`. The choices end with the first
                that is no draft, or go on: the engine keeps what agrees.
        """

    def commit(self, tokens: Sequence[int]) -> int:
        """Take note that these ids were decided; how many of them the grammar followed."""


class KeyedChooser:
    """Greedy, or sampled with noise keyed by seed and position: all rows at once.

    Penalties come first, on the device; then the grammar leaves out what may not follow.

    Args:
        sampling: how a token is chosen.
        margins: whether `Chosen` is to have them.
        penalties: what is taken off the logits.
        text: the ids that penalties look back on, those of this call.
        start: position of the first of them.
        grammar: of the answer; it has followed all that was written.
    """

    def __init__(
        self,
        sampling: Sampling,
        margins: bool = False,
        penalties: Penalties = NO_PENALTIES,
        text: Sequence[int] = (),
        start: int = 0,
        grammar: Matcher | None = None,
    ):
        self.sampling, self.margins, self.penalties = sampling, margins, penalties
        self.grammar = grammar
        self.reads_text = grammar is not None
        self._text, self._start = list(text), start

    def choose(self, logits: mx.array, position: int, before: Ids) -> Chosen:
        """The choices of all rows."""
        logits = self.penalized(logits, position, before)
        return self.pick(logits, position, self.allowed(before))

    def commit(self, tokens: Sequence[int]) -> int:
        """Take note that these ids were decided; how many of them the grammar followed."""
        if self.penalties:
            self._text += tokens
        return len(tokens) if self.grammar is None else self.grammar.advance(tokens)

    def penalized(self, logits: mx.array, position: int, before: Ids) -> mx.array:
        """The logits of rows for `position` and those after it, less the penalties."""
        if not self.penalties:
            return logits
        end = position - 1 - self._start  # the anchor may not be known here yet
        text = self._text[max(0, end - self.penalties.context) : end]
        return self.penalties.apply(logits, text, before)

    def allowed(self, before: Ids) -> np.ndarray | None:
        """What the grammar allows at each row; computed while the device works on the pass."""
        return None if self.grammar is None else self.grammar.allowed(known(before)[1:])

    def pick(self, logits: mx.array, position: int, allowed: np.ndarray | None) -> Chosen:
        """The choices of all rows from penalized logits."""
        ranked = scores(
            logits if allowed is None else mask(logits, allowed), position, self.sampling
        )
        tokens = mx.argmax(ranked, axis=-1).astype(mx.int32)
        tokens = mx.where(usable(ranked), tokens, NO_CHOICE)
        margins = top2_margin(ranked, tokens, self.sampling) if self.margins else None
        return Chosen(tokens, logits, margins)


class ProcessedChooser:
    """The same behind mlx-lm's logits processors, row by row up to the first rejected draft.

    A processor sees each true history once and in order, exactly as in AR decoding, so even one
    that keeps state stays lossless. Of one that fails behind accepted drafts, the error is raised
    when it would be in AR decoding: after the tokens before it.
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
        self._error: Exception | None = None  # of a row whose tokens before it come first

    def choose(self, logits: mx.array, position: int, before: Ids) -> Chosen:
        """The choices up to the first that is no draft, or an end token."""
        if self._error is not None:
            raise self._error
        chosen: list[Chosen] = []
        logits = self._keyed.penalized(logits, position, before)
        allowed = self._keyed.allowed(before)
        for j, draft in enumerate([*known(before)[1:], None]):
            row = None if allowed is None else allowed[j : j + 1]
            try:
                choice = self._choice(logits[j : j + 1], position + j, row)
            except Exception as error:
                if not chosen:
                    raise
                self._error = error
                break
            token = choice.tokens.item()
            if token == NO_CHOICE and chosen:
                break  # in AR decoding these tokens are handed out before that shows
            chosen.append(choice)
            self._history = mx.concatenate([self._history, choice.tokens])
            if token != draft or token in self._ends:
                break
        tokens = mx.concatenate([choice.tokens for choice in chosen])
        rows = mx.concatenate([choice.logits for choice in chosen])
        margins = [c.margins for c in chosen if c.margins is not None]
        return Chosen(tokens, rows, mx.concatenate(margins) if margins else None)

    def commit(self, tokens: Sequence[int]) -> int:
        """Take note that these ids were decided; how many of them the grammar followed."""
        return self._keyed.commit(tokens)

    def _choice(self, logits: mx.array, position: int, allowed: np.ndarray | None) -> Chosen:
        """The choice of one row [1, vocab_size], once the processors have seen its history."""
        stages = [logits]
        for n, processor in enumerate(self._processors):
            stages.append(self._checked(n, processor(self._history, stages[-1]), stages[-1]))
        choice = self._keyed.pick(stages[-1], position, allowed)
        if choice.tokens.item() == NO_CHOICE:
            self._blame(stages)
        return choice

    def _blame(self, stages: Sequence[mx.array]) -> None:
        """Raise an error for the first processor whose output is unusable, if one is to blame."""
        good = [bool(usable(row).all()) for row in stages]
        if good[0] and False in good:
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


def known(ids: Ids) -> list[int]:
    """The ids here on the host; waits for the device where it computes them."""
    values: Any = ids.tolist() if isinstance(ids, mx.array) else ids
    return list(values)

"""A model with scripted drafts, so that every number of accepted drafts occurs."""

import copy
import random
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from orthrus_mlx.model import Model
from orthrus_mlx.rows import Rows

LOUD = 1e4  # above every real logit


class ScriptedDrafts(Model):
    """The real model with scripted guesses: the known answer, with errors at chosen positions.

    The diffusion view still runs, with its own keys, values and time; only its logits are raised at
    the scripted guesses. The AR view is unchanged.
    """

    guesses: tuple[int, ...] = ()  # by position

    @classmethod
    def of(cls, model: Model) -> "ScriptedDrafts":
        """The same model, weights shared, with scripted drafts."""
        scripted: Any = copy.copy(model)
        scripted.__class__ = type(cls.__name__, (cls, type(model)), {})
        return scripted

    def script(self, prompt: Sequence[int], answer: Sequence[int], lengths: Sequence[int]) -> None:
        """Guess `answer` right, but for one error after each of `lengths` right guesses."""
        guesses = [*prompt, *answer]
        at = len(prompt)  # the first answer id is the first guess
        for length in lengths:
            at += length
            if at >= len(guesses):
                break
            guesses[at] = (guesses[at] + 1) % self.config.vocab_size
            at += 1
        object.__setattr__(self, "guesses", tuple(guesses))  # no part of the weights

    def forward(self, rows: Rows) -> tuple[mx.array, mx.array]:
        """The model's pass over one sequence, with the script's guesses."""
        (segment,) = rows.segments
        start = segment.cache[0].offset
        verified, drafted = super().forward(rows)
        if segment.blocks is None:
            return verified, drafted
        places = [start + depth for depth in segment.depths]
        return verified, self._follow(drafted, places, segment.blocks.shape[1])

    def _follow(self, logits: mx.array, places: Sequence[int], length: int) -> mx.array:
        vocab = logits.shape[1]
        known = [*self.guesses, *[0] * (max(places) + 1 + length)]
        guesses = [guess for start in places for guess in known[start + 1 : start + 1 + length]]
        chosen = mx.arange(vocab) == mx.array(guesses)[:, None]
        return mx.where(chosen, mx.array(LOUD, logits.dtype), logits)


def every_length(most: int, seed: int) -> list[int]:
    """Eight shuffles of the accepted lengths from 0 to `most`; half of them follow a 0.

    A one-pass cycle verifies only the drafts that the cycle before left over, so many can be
    accepted only after few.
    """
    draw = random.Random(seed)
    lengths: list[int] = []
    for _ in range(8):
        deck = list(range(most + 1))
        draw.shuffle(deck)
        for length in deck:
            lengths += [0, length] if draw.random() < 0.5 else [length]
    return lengths


def usual_lengths(seed: int) -> list[int]:
    """Accepted lengths like a trained drafter's: 4.4 on average, many short and some long."""
    draw = random.Random(seed)
    return [min(31, int(draw.expovariate(1 / 4.9))) for _ in range(200)]

"""A cycle on the device: what it verifies, and what it leaves for the next one."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from .cache import Fork
from .choosers import Chosen, Ids
from .plan import Plan, reusable_block


class Guesses(NamedTuple):
    """What the diffusion view guesses in the rows of blocks, [rows] or [blocks, length].

    Attributes:
        ids: the likeliest.
        chances: its probabilities of them.
        logits: what a grammar picks other ids from, float32 [..., vocab_size]; None without one.
    """

    ids: mx.array
    chances: mx.array
    logits: mx.array | None

    @classmethod
    def of(cls, logits: mx.array, picked: bool) -> Guesses:
        """The guesses of rows of logits [rows, vocab_size]; `picked` where a grammar picks them."""
        ids = mx.argmax(logits, axis=-1).astype(mx.int32)
        # Less the largest first: what is left is small where the guess is sure, and exact enough.
        rest = mx.logsumexp(logits - mx.max(logits, axis=-1, keepdims=True), axis=-1)
        chances = mx.nan_to_num(mx.exp(-rest.astype(mx.float32)))
        return cls(ids, chances, logits.astype(mx.float32) if picked else None)

    @property
    def used(self) -> tuple[mx.array, ...]:
        """What the next cycle reads of them."""
        return (self.ids, self.chances) if self.logits is None else (self.logits,)

    def of_blocks(self, shape: Many[int], length: int) -> Guesses:
        """The same by block [blocks, rows], the first `length` rows of each."""

        def blocks(part: mx.array) -> mx.array:
            return part.reshape(*shape, *part.shape[1:])[:, :length]

        logits = None if self.logits is None else blocks(self.logits)
        return Guesses(blocks(self.ids), blocks(self.chances), logits)


class Rest(NamedTuple):
    """Drafts that a cycle left over, next place first.

    Attributes:
        ids: guesses; empty where a grammar has to pick them.
        chances: the diffusion view's probabilities of them.
        logits: float32 [n, vocab_size] that a grammar picks from; None without one.
    """

    ids: list[int]
    chances: list[float]
    logits: np.ndarray | None


class Cycle(NamedTuple):
    """A cycle in flight on the device.

    Attributes:
        plan: what it was to do.
        start: tokens in the cache before it.
        drafts: the ids [n] that it verifies.
        logits: of AR rows [anchor, drafts...], [n + 1, vocab_size].
        choices: made from them on the device; None where the chooser reads the text first.
        guesses: of the blocks beside the AR rows; None where there are none.
        fork: the cache that its verify pass was prepared on, if there was a draft pass before it.
    """

    plan: Plan
    start: int
    drafts: Ids
    logits: mx.array
    choices: Chosen | None
    guesses: Guesses | None
    fork: Fork | None

    @property
    def outputs(self) -> list[mx.array]:
        """What its verify pass computes."""
        guesses = () if self.guesses is None else self.guesses.used
        parts = [self.logits, *guesses, *(self.choices or ())]
        return [part for part in parts if part is not None]

    def left_over(self, accepted: int) -> Rest:
        """Drafts for the next cycle, once `accepted` were accepted.

        They are the rest of the deepest block that expected no more drafts to be accepted.
        """
        use = reusable_block(self.plan, len(self.drafts), accepted)
        if use is None or self.guesses is None:
            return Rest([], [], None)
        block, overtaken = use
        ids, chances, logits = self.guesses
        if logits is not None:
            return Rest([], [], np.asarray(logits[block, overtaken:]))
        left: Any = ids[block, overtaken:].tolist()
        sure: Any = chances[block, overtaken:].tolist()
        return Rest(left, sure, None)

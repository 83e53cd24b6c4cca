"""One cycle, and the ways to run cycles: which rows a pass has, and what it leaves for the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

BLOCKS = (1, 2, 3)  # that a one-pass forward may have


class Plan(NamedTuple):
    """One cycle.

    Attributes:
        draft_rows: rows of a draft pass run before the verify pass, anchor included; 0 for none.
        n_drafts: drafts to verify at most: those of the draft pass, or pending from the last cycle.
        block_rows: rows of each diffusion block that the verify pass carries, anchor included; 0
            for none.
        blocks: how many such blocks; see `anchor_depths`.
    """

    draft_rows: int = 0
    n_drafts: int = 0
    block_rows: int = 0
    blocks: int = 2

    @property
    def is_ar(self) -> bool:
        """Whether this is one ordinary AR step."""
        return self == AR_STEP


AR_STEP = Plan()


def anchor_depths(n_drafts: int, blocks: int) -> tuple[int, ...]:
    """Behind how many drafts each block of a one-pass forward is anchored.

    The last one expects all drafts to stand, the first none, others lie between, closer together
    near the front, where drafts fail first. After the cycle the deepest that did not expect too
    much is of use; a single one expects all.
    """
    return (
        tuple(round(n_drafts * (i / (blocks - 1)) ** 2) for i in range(blocks))
        if blocks > 1
        else (n_drafts,)
    )


def reusable_block(plan: Plan, n_drafts: int, accepted: int) -> tuple[int, int] | None:
    """The block of use after a cycle in which `accepted` of `n_drafts` drafts stood, if any.

    Returns its number and how many of its guesses were overtaken.
    """
    if not plan.block_rows:
        return None
    fitting = [(i, d) for i, d in enumerate(anchor_depths(n_drafts, plan.blocks)) if d <= accepted]
    if not fitting:
        return None
    # Guess j of a block is for the j-th position behind its anchor and one more. The next anchor,
    # which no block knew, sits one behind what stood.
    block, depth = fitting[-1]
    return block, accepted - depth + 1


@dataclass(frozen=True)
class Policy:
    """A way to run cycles.

    Attributes:
        kind: "ar"; "two-pass": draft and verify, from the same anchor; "one-pass": verify, and
            draft for the next cycle in the same pass; "alternating": the like, drafting only where
            there is nothing to verify, so that a plain step and its draft take turns with passes
            that do no more than verify.
        n_drafts: drafts that a cycle verifies at most.
        block_rows: rows of each diffusion block of a one-pass forward.
        blocks: how many blocks that has.
    """

    kind: Literal["ar", "two-pass", "one-pass", "alternating"]
    n_drafts: int = 0
    block_rows: int = 0
    blocks: int = 2

    @property
    def length(self) -> int:
        """Rows of each block, anchor included."""
        return self.block_rows or self.n_drafts + 1

    def plan(self, budget: int, pending: int) -> Plan:
        """The cycle for `budget` tokens left to write and `pending` drafts at hand."""
        if self.kind == "two-pass":
            n_drafts = min(self.n_drafts, budget - 1)
            return Plan(draft_rows=n_drafts + 1, n_drafts=n_drafts) if n_drafts else AR_STEP
        if self.kind == "ar":
            return AR_STEP
        n_drafts = min(pending, self.n_drafts, budget - 1)
        # What is drafted ahead is of use only if something is left to write after this cycle.
        if budget > 2 and not (n_drafts and self.kind == "alternating"):
            return Plan(n_drafts=n_drafts, block_rows=self.block_rows, blocks=self.blocks)
        return Plan(n_drafts=n_drafts) if n_drafts else AR_STEP


AR_POLICY = Policy("ar")


@dataclass(frozen=True)
class RowCounts:
    """The row counts that AR rows may be computed with; empty tuples allow any.

    Attributes:
        verify: rows of a verify pass, in rising order.
        fused: (AR rows, diffusion rows) of a one-pass forward.
    """

    verify: tuple[int, ...] = ()
    fused: tuple[tuple[int, int], ...] = ()

    def most(self, ahead: int) -> int | None:
        """AR rows that a pass with `ahead` diffusion rows can hold, or None for no limit."""
        if ahead and self.fused:
            return max(n_ar for n_ar, _ in self.fused)
        return self.verify[-1] if self.verify else None

    def fit(self, rows: int) -> int:
        """The smallest allowed count that holds `rows`."""
        return next((n for n in self.verify if n >= rows), rows)

    def fit_fused(self, rows: int, length: int, blocks: int) -> tuple[int, int]:
        """AR rows and the length of a block, for `blocks` of about `length` beside `rows` AR rows.

        The length is 0 if no pair holds so many AR rows, and in each block a guess that the next
        token does not overtake.
        """
        if not self.verify:
            return rows, length
        pairs = [
            (n_ar, ahead)
            for n_ar, ahead in self.fused
            if length and n_ar >= rows and ahead % blocks == 0 and ahead >= 2 * blocks
        ]
        # As many diffusion rows as asked for, or else the most; then the smallest pass.
        wanted = length * blocks
        n_ar, ahead = min(
            pairs, key=lambda p: (-min(p[1], wanted), sum(p)), default=(self.fit(rows), 0)
        )
        return n_ar, ahead // blocks


ANY_ROWS = RowCounts()

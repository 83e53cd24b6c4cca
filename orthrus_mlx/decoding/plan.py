"""One decode cycle: which rows its passes have, and which guesses it leaves for the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

# Sources of drafts: the diffusion view, what a grammar forces, what the caller expects, the text.
DIFFUSION, FORCED, PREDICTION, COPY = "diffusion", "forced", "prediction", "copy"


class Plan(NamedTuple):
    """One cycle.

    Attributes:
        draft_rows: rows of a draft pass run before the verify pass, anchor included; 0 for none.
        n_drafts: drafts to verify at most: those of the draft pass, or drafts at hand.
        block_rows: rows of each diffusion block that the verify pass carries, anchor included; 0
            for none.
        blocks: how many such blocks; see `anchor_depths`.
        source: who proposed the drafts.
    """

    draft_rows: int = 0
    n_drafts: int = 0
    block_rows: int = 0
    blocks: int = 1
    source: str = DIFFUSION

    @property
    def is_ar(self) -> bool:
        """Whether this is one ordinary AR step."""
        return not (self.draft_rows or self.n_drafts or self.block_rows)


AR_STEP = Plan()


def anchor_depths(n_drafts: int, blocks: int) -> tuple[int, ...]:
    """Anchor of each block of a verify pass, as a number of accepted drafts.

    The last block assumes that all drafts are accepted, the first of several that none is. Others
    lie between, closer together near the front, where rejection is likeliest.
    """
    if blocks == 1:
        return (n_drafts,)
    return tuple(round(n_drafts * (i / (blocks - 1)) ** 2) for i in range(blocks))


def reusable_block(plan: Plan, n_drafts: int, accepted: int) -> tuple[int, int] | None:
    """The block whose guesses are drafts for the next cycle, if there is one.

    Args:
        plan: of the finished cycle.
        n_drafts: drafts that it verified.
        accepted: how many of them were accepted.

    Returns:
        the number of the deepest block that did not assume too many accepted drafts, and how many
        of its first guesses are for positions already decided.
    """
    if not plan.block_rows:
        return None
    fitting = [(i, d) for i, d in enumerate(anchor_depths(n_drafts, plan.blocks)) if d <= accepted]
    if not fitting:
        return None
    # Guess j of a block (from 0) is for the position j + 1 after its anchor. The next anchor, which
    # no block knew, is one position after the last accepted draft.
    block, depth = fitting[-1]
    return block, accepted - depth + 1


class Policy(NamedTuple):
    """A rule that plans every cycle alike.

    Attributes:
        kind: "ar"; "two-pass": draft and verify, from the same anchor; "one-pass": verify, and
            draft for the next cycle in the same pass; "alternating": an AR step whose pass also
            drafts one block, then a pass that only verifies it.
        n_drafts: drafts that a cycle verifies at most.
        block_rows: rows of each diffusion block of a one-pass or alternating policy.
        blocks: how many blocks its verify passes carry.
    """

    kind: Literal["ar", "two-pass", "one-pass", "alternating"]
    n_drafts: int = 0
    block_rows: int = 0
    blocks: int = 1

    def plan(self, budget: int, at_hand: int) -> Plan:
        """The cycle for `budget` tokens left to write and `at_hand` drafts of the last pass."""
        if self.kind == "ar":
            return AR_STEP
        if self.kind == "two-pass":
            n_drafts = min(self.n_drafts, budget - 1)
            return Plan(draft_rows=n_drafts + 1, n_drafts=n_drafts) if n_drafts else AR_STEP
        n_drafts = min(at_hand, self.n_drafts, budget - 1)
        # A block can only be used if something is left to write after this cycle.
        if budget > 2 and not (n_drafts and self.kind == "alternating"):
            return Plan(n_drafts=n_drafts, block_rows=self.block_rows, blocks=self.blocks)
        return Plan(n_drafts=n_drafts)


AR_POLICY = Policy("ar")


@dataclass(frozen=True)
class RowCounts:
    """The row counts that AR rows may be computed with; empty tuples allow any.

    Attributes:
        verify: rows of a verify pass, in rising order.
        fused: (AR rows, diffusion rows) of a pass that verifies and drafts.
        totals: AR rows of a pass over several sequences, which all products see; none if each
            sequence has to have passes of its own.
        rows: of one sequence in such a pass, which attention sees.
    """

    verify: tuple[int, ...] = ()
    fused: tuple[tuple[int, int], ...] = ()
    totals: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()

    def most(self, block_rows: int) -> int | None:
        """AR rows that a pass with `block_rows` diffusion rows can hold, or None for no limit."""
        if block_rows and self.fused:
            return max(n_ar for n_ar, _ in self.fused)
        return self.verify[-1] if self.verify else None

    def fit(self, rows: int) -> int:
        """The smallest allowed count that holds `rows`."""
        return next((n for n in self.verify if n >= rows), rows)

    def fit_shared(self, rows: int) -> int | None:
        """The smallest count for one of several sequences that holds `rows`; None for none."""
        return next((n for n in self.rows if n >= rows), None) if self.totals else None

    def fit_total(self, rows: int) -> int:
        """The smallest total of a pass over several sequences that holds `rows`."""
        return next(n for n in self.totals if n >= rows)

    def fit_fused(self, rows: int, length: int, blocks: int) -> tuple[int, int]:
        """The allowed shape of a pass with `rows` AR rows and `blocks` blocks of about `length`.

        Returns:
            AR rows and rows of one block; the latter 0 if no allowed pair holds these AR rows with
            at least two rows per block.
        """
        if not self.verify:
            return rows, length
        pairs = [
            (n_ar, diff)
            for n_ar, diff in self.fused
            if length and n_ar >= rows and diff % blocks == 0 and diff >= 2 * blocks
        ]
        # As many diffusion rows as asked for, or else the most; then the smallest pass.
        wanted = length * blocks
        n_ar, diff = min(
            pairs, key=lambda p: (-min(p[1], wanted), sum(p)), default=(self.fit(rows), 0)
        )
        return n_ar, diff // blocks


ANY_ROWS = RowCounts()

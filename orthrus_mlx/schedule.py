"""What the next cycle does: a plain step, two passes, or one pass, and over how many drafts."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

Mode = Literal["auto", "parallel", "ar"]
CycleKind = Literal["auto", "two-pass", "one-pass"]
MODES = ("auto", "parallel", "ar")
CYCLES = ("auto", "two-pass", "one-pass")


class Plan(NamedTuple):
    """One cycle.

    Attributes:
        draft_rows: rows of a draft pass run before the verify pass, anchor included; 0 for none.
        n_drafts: drafts to verify at most: those of the draft pass, or pending from the last cycle.
        ahead_rows: diffusion rows carried by the verify pass, anchor included; 0 for none.
    """

    draft_rows: int = 0
    n_drafts: int = 0
    ahead_rows: int = 0

    @property
    def plain(self) -> bool:
        """Whether this is one ordinary AR step."""
        return self == PLAIN


PLAIN = Plan()


class Scheduler(Protocol):
    """Chooses each cycle from what the cycles before it showed."""

    def plan(self, budget: int, pending: int) -> Plan:
        """The next cycle, with `budget` tokens left to write and `pending` drafts at hand."""

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Learn that of the `n_drafts` drafts that `plan` verified, `accepted` stood."""


class PlainSchedule:
    """Never drafts."""

    def plan(self, budget: int, pending: int) -> Plan:
        """One ordinary AR step."""
        return PLAIN

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Nothing to learn."""


class TwoPassSchedule(PlainSchedule):
    """The paper's cycle: always draft a block, then verify it."""

    def __init__(self, block_size: int):
        self.block_size = block_size

    def plan(self, budget: int, pending: int) -> Plan:
        """A full block, or as much of it as the budget can use."""
        n_drafts = min(self.block_size, budget) - 1
        return Plan(draft_rows=n_drafts + 1, n_drafts=n_drafts) if n_drafts else PLAIN


class OnePassSchedule(PlainSchedule):
    """One forward a cycle: verify the pending drafts and draft ahead in the same pass."""

    def __init__(self, block_size: int, max_drafts: int | None = None):
        self.block_size = block_size
        self.max_drafts = block_size - 1 if max_drafts is None else max_drafts

    def plan(self, budget: int, pending: int) -> Plan:
        """As many pending drafts as the budget can use, and a block if anything is left after."""
        n_drafts = min(pending, self.max_drafts, budget - 1)
        return Plan(n_drafts=n_drafts, ahead_rows=self.block_size if budget > 2 else 0)


def make_scheduler(mode: Mode, cycle: CycleKind, block_size: int) -> Scheduler:
    """The schedule for a `mode` and `cycle` of the public API."""
    if mode == "ar":
        return PlainSchedule()
    if cycle == "one-pass":
        return OnePassSchedule(block_size)
    return TwoPassSchedule(block_size)

"""What the next cycle does: a plain step, two passes, or one pass, and over how many drafts.

A schedule is a function of the costs it was given and of what the cycles before it showed, so a
run repeats exactly. It decides speed alone: whatever it plans, the ids are the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from operator import mul
from typing import ClassVar, Literal, Protocol

from .cost_model import (
    SOURCES,
    Costs,
    Source,
    at_risk,
    contenders,
    outlook,
    plan_cost,
    policy_speeds,
)
from .plan import AR_POLICY, AR_STEP, BLOCKS, Plan, Policy, reusable_block

Mode = Literal["auto", "parallel", "ar"]
CycleKind = Literal["auto", "two-pass", "one-pass"]
MODES = ("auto", "parallel", "ar")
CYCLES = ("auto", "two-pass", "one-pass")


class Scheduler(Protocol):
    """Chooses each cycle from what the cycles before it showed."""

    def plan(self, budget: int, pending: int) -> Plan:
        """The next cycle, with `budget` tokens left to write and `pending` drafts at hand.

        A schedule may count the plain steps that it plans. The engine asks ahead of time behind a
        plain step, and once more if the answer was none.
        """

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Learn that of the `n_drafts` drafts that `plan` verified, `accepted` stood."""


class Fixed:
    """The same policy in every cycle, whatever comes of it."""

    def __init__(self, policy: Policy):
        self.policy = policy

    def plan(self, budget: int, pending: int) -> Plan:
        """The policy's cycle, or as much of it as the budget can use."""
        return self.policy.plan(budget, pending)

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Nothing to learn."""


class Auto:
    """Maximises expected tokens per second from the costs and what drafts have shown of the text.

    How many drafts of a cycle stood says how likely each of some kinds of text is, and so how fast
    each policy is expected to be. While the one that seems best is expected to beat plain steps, it
    runs. Otherwise drafts are tried only on credit: a draft cycle pays in the tokens it wrote and
    takes out the plain steps it cost, and each plain step pays in `INCOME`. A trial waits until
    `COVER` of what it puts at risk is there, so that a dear one comes late: where 8 rows cost 7
    plain steps, a short answer would lose more by it than drafts could give. What was shown counts
    for less with every plain step, and text that has turned easy keeps itself in credit until that
    has shown.

    Whatever is expected, no cycle begins beyond a debt of `MOST_DEBT`. So, by these costs, a text
    loses no more to plain decoding than that, the income and what was under way: a cycle, or a pass
    that drafted ahead and the one that verifies that.

    The constants were found with benchmarks/simulate.py, and replays of the drafts of two
    checkpoints.
    """

    MOST_CREDIT, MOST_DEBT, INCOME = 12.0, 10.0, 0.015  # plain steps
    COVER = 0.5  # of what a trial can lose
    # What kinds of text there are, from those that a model knows by heart to those on which nothing
    # stands: the share of a cycle's own drafts that falls, how common a text like that is, and how
    # much oftener drafts fall that were made in the cycle before.
    FALLS = (0.005, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.9)
    COMMON = tuple(n / 146 for n in (5, 9, 13, 17, 20, 22, 26, 31, 3))
    OFTENER: ClassVar[dict[Source, float]] = {"two-pass": 1.0, "fresh": 1.2, "stale": 1.9}
    KEEP = 0.97  # of what was shown, from one cycle that verified drafts to the next,
    AGE = 0.995  # and from one plain step to the next
    TRUST = 0.8  # drafts stand and fall together: what each says, of what it would say alone
    TURNS = 0.1  # the chance that the text turns: that the next stretch is of any kind
    # How much faster drafting ahead must seem to begin: this / KNOWN at first, less the more cycles
    # were seen. The first pass of one-pass cycles verifies nothing.
    CHANGE: ClassVar[dict[str, float]] = {"one-pass": 1.2, "alternating": 0.6}
    KNOWN = 4
    LOOK = 16  # plain steps between two looks at what the age of what was shown has made of it

    def __init__(self, costs: Costs, policies: tuple[Policy, ...]):
        self.costs = costs
        self.plain_speed = 1 / costs.of_ar_step()
        self.policies = contenders(costs, policies)
        self.speeds = self.speeds_by_kind(costs, self.policies)
        self.change = [self.CHANGE.get(policy.kind, 0.0) for policy in self.policies]
        self.shown = [0.0] * len(self.FALLS)  # how well each kind explains it, as a logarithm
        self.pending: Source = "stale"  # where drafts left over from the last cycle come from
        self.cycles = self.idle = 0  # cycles that verified drafts, and plain steps
        self.credit = 0.0
        self.cover = {p: self.COVER * at_risk(costs, p) for p in self.policies}
        self.untested = False  # drafts were made ahead and not verified yet
        self.current, self.pays = AR_POLICY, False
        self.choose()

    def plan(self, budget: int, pending: int) -> Plan:
        """A cycle of the best policy, or a plain step while drafting does not pay."""
        if self.policies and self.may_draft():
            plan = self.current.plan(budget, pending)
            # A block cut short at the end of the budget can lose even if all of it stands.
            if plan.draft_rows and not self.can_gain(plan):
                return AR_STEP
            self.untested |= plan.block_rows > 0 and not plan.n_drafts
            return plan
        self.credit += self.INCOME
        self.shown = [self.AGE * shown for shown in self.shown]
        self.idle += 1
        if self.policies and self.idle % self.LOOK == 0:
            self.choose()
        return AR_STEP

    def may_draft(self) -> bool:
        """Whether there is credit for a cycle of the current policy."""
        if self.untested:  # drafts made ahead are paid for
            return True
        return self.credit > (-self.MOST_DEBT if self.pays else self.cover[self.current])

    def can_gain(self, plan: Plan) -> bool:
        """Whether a cycle beats plain steps if all of its drafts stand."""
        return 1 + plan.n_drafts > plan_cost(self.costs, plan, plan.n_drafts) * self.plain_speed

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Learn from a cycle; plain steps teach nothing about drafts."""
        if plan.is_ar:
            return
        gain = 1 + accepted - plan_cost(self.costs, plan, n_drafts) * self.plain_speed
        self.credit = min(self.MOST_CREDIT, self.credit + gain)
        self.untested = not n_drafts
        source: Source = "two-pass" if plan.draft_rows else self.pending
        use = reusable_block(plan, n_drafts, accepted)
        # Fresh: of the block that is of use, nothing but the first guess was overtaken.
        self.pending = "fresh" if use is not None and use[1] == 1 else "stale"
        if n_drafts:
            said = self.said_by(source, accepted, accepted < n_drafts)
            both = zip(self.shown, said, strict=True)
            self.shown = [self.KEEP * before + now for before, now in both]
            self.cycles += 1
            self.choose()

    def choose(self) -> None:
        """Take the policy that is expected to be fastest, and note whether it beats plain steps."""
        if not self.policies:
            return
        texts = self.texts()
        expected = [sum(map(mul, texts, speeds)) for speeds in self.speeds]
        worth = expected
        if not self.current.block_rows:
            known = self.KNOWN + self.cycles
            both = zip(expected, self.change, strict=True)
            worth = [speed / (1 + change / known) for speed, change in both]
        best = worth.index(max(worth))
        self.current, self.pays = self.policies[best], expected[best] > self.plain_speed

    def texts(self) -> list[float]:
        """How likely each kind of text is next, by what all drafts have shown."""
        most = max(self.shown)
        known = zip(self.COMMON, self.shown, strict=True)
        likely = [common * math.exp(shown - most) for common, shown in known]
        share = (1 - self.TURNS) / sum(likely)
        fused = zip(self.COMMON, likely, strict=True)
        return [self.TURNS * common + share * now for common, now in fused]

    @classmethod
    @functools.cache
    def falls(cls, source: Source) -> tuple[float, ...]:
        """For each kind of text, the share that falls of the drafts from one source."""
        return tuple(min(0.95, falls * cls.OFTENER[source]) for falls in cls.FALLS)

    @classmethod
    @functools.lru_cache(maxsize=512)
    def said_by(cls, source: Source, stood: int, fell: bool) -> tuple[float, ...]:
        """What it says of each kind of text that so many such drafts stood, and one fell."""
        return tuple(
            cls.TRUST * (stood * math.log(1 - falls) + fell * math.log(falls))
            for falls in cls.falls(source)
        )

    @classmethod
    @functools.lru_cache(maxsize=32)
    def speeds_by_kind(
        cls, costs: Costs, policies: tuple[Policy, ...]
    ) -> tuple[tuple[float, ...], ...]:
        """What each policy writes in a unit of time, by kind of text."""
        places = max((policy.n_drafts for policy in policies), default=0)
        by_kind = [
            policy_speeds(
                costs,
                policies,
                {s: outlook([1 - cls.falls(s)[kind]] * places) for s in SOURCES},
            )
            for kind in range(len(cls.FALLS))
        ]
        return tuple(zip(*by_kind, strict=True))


@functools.lru_cache(maxsize=32)
def policies(costs: Costs, cycle: CycleKind, block_size: int) -> tuple[Policy, ...]:
    """The ways to draft that `cycle` and the block size allow, and `costs` knows the price of.

    "one-pass" allows alternating passes too.
    """
    found = []
    if cycle in ("two-pass", "auto"):
        found += [Policy("two-pass", n - 1) for n in costs.draft]
    if cycle in ("one-pass", "auto"):

        def left(length: int) -> int:
            """Drafts that a block leaves to verify."""
            return min(length, block_size - 1) - 1

        found += [
            Policy("one-pass", min(rows - 1, left(ahead // blocks)), ahead // blocks, blocks)
            for rows, ahead in costs.fused
            for blocks in BLOCKS
            if ahead % blocks == 0 and abs(ahead // blocks - rows) <= rows // 2
        ]
        most = max(costs.verify) - 1  # exact numerics, or what was measured, end there
        for ahead in sorted({ahead for _, ahead in costs.fused}):
            found.append(Policy("alternating", min(left(ahead), most), ahead, 1))
    fitting = (p for p in found if max(p.n_drafts + 1, p.block_rows) <= block_size)
    return tuple(dict.fromkeys(p for p in fitting if p.n_drafts > 0))


def make_scheduler(
    mode: Mode,
    cycle: CycleKind,
    block_size: int,
    costs: Callable[[], Costs],
) -> Scheduler:
    """The schedule for a `mode` and `cycle` of the public API.

    Args:
        mode: "auto" chooses each cycle; "parallel" always drafts a full block; "ar" never drafts.
        cycle: what "auto" may choose from; "parallel" takes "auto" for the paper's "two-pass".
        block_size: rows of the largest block.
        costs: called for the device's costs where the schedule needs them.
    """
    if mode == "ar":
        return Fixed(AR_POLICY)
    if mode == "parallel":
        if cycle == "one-pass" and block_size > 2:  # a block of two leaves nothing to verify
            # As many rows as the two passes of a two-pass cycle have.
            length = (2 * block_size + 1) // 3
            return Fixed(Policy("one-pass", length - 1, length))
        return Fixed(Policy("two-pass", block_size - 1))
    known = costs()
    return Auto(known, policies(known, cycle, block_size))

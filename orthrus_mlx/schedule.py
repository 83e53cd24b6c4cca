"""What the next cycle does: a plain step, two passes, or one pass, and over how many drafts.

A schedule is a function of the costs it was given and of what the cycles before it showed, so a
run repeats exactly. It decides speed alone: whatever it plans, the ids are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar, Literal, Protocol

import numpy as np

from .plans import BLOCKS, PLAIN, PLAIN_POLICY, Plan, Policy, left_over
from .speeds import (
    SOURCES,
    Costs,
    Source,
    contenders,
    outlook,
    plan_cost,
    policy_speeds,
)

Mode = Literal["auto", "parallel", "ar"]
CycleKind = Literal["auto", "two-pass", "one-pass"]
MODES = ("auto", "parallel", "ar")
CYCLES = ("auto", "two-pass", "one-pass")


class Scheduler(Protocol):
    """Chooses each cycle from what the cycles before it showed."""

    def plan(self, budget: int, pending: int) -> Plan:
        """The next cycle, with `budget` tokens left to write and `pending` drafts at hand."""

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Learn that of the `n_drafts` drafts that `plan` verified, `accepted` stood."""

    def consider(self) -> None:
        """Think about what was learnt; called once the next cycle is under way on the device."""


class Fixed:
    """The same policy in every cycle, whatever comes of it."""

    def __init__(self, policy: Policy):
        self.policy = policy

    def plan(self, budget: int, pending: int) -> Plan:
        """The policy's cycle, or as much of it as the budget can use."""
        return self.policy.plan(budget, pending)

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Nothing to learn."""

    def consider(self) -> None:
        """Nothing to think about."""


class Acceptance:
    """How often a draft stands at each place of a cycle, given that those before it stood.

    Recent cycles count most: every observation fades by `KEEP` a cycle. Places tried little lean
    on the place before them, and the first on the average over all places.
    """

    KEEP = 0.95
    WEIGHT = 16.0  # drafts that a place must be tried on to count as much as what it leans on

    def __init__(self) -> None:
        self.tried: list[float] = []
        self.stood: list[float] = []

    def observe(self, n_drafts: int, accepted: int) -> None:
        """One cycle verified `n_drafts` drafts, of which the first `accepted` stood."""
        self.tried = [t * self.KEEP for t in self.tried]
        self.stood = [s * self.KEEP for s in self.stood]
        seen = min(accepted + 1, n_drafts)
        for totals in (self.tried, self.stood):
            totals.extend([0.0] * (seen - len(totals)))
        for place in range(seen):
            self.tried[place] += 1
            self.stood[place] += place < accepted

    @property
    def evidence(self) -> tuple[float, float]:
        """Drafts that stood and that fell, faded."""
        stood = sum(self.stood)
        return stood, sum(self.tried) - stood

    def rates(self, expected: np.ndarray, weight: float) -> list[float]:
        """The chance to stand at each place, given those before.

        `expected` are the chances of other drafts like these, the first worth `weight` drafts.
        """
        stood, fell = self.evidence
        others: list[float] = expected.tolist()
        lead = (stood + weight * others[0]) / (stood + fell + weight) - others[0]
        rates = []
        for other, tried, stood in zip(others, self.tried, self.stood, strict=False):
            rate = min(0.999, max(0.0, other + lead))
            rates.append((stood + self.WEIGHT * rate) / (tried + self.WEIGHT))
            lead = rates[-1] - other
        rest: list[float] = (expected[len(rates) :] + lead).clip(0.0, 0.999).tolist()
        return rates + rest


class Auto:
    """Maximises expected tokens per second from the costs and the running acceptance.

    While some policy is expected to beat plain steps, the best one runs. Otherwise drafts are
    tried only on credit: a draft cycle pays in the tokens it wrote and takes out the plain steps
    it cost, and each plain step pays in `INCOME`. So text on which drafts fail loses at most that
    share, plus the first credit and one cycle, while text that has turned easy keeps itself in
    credit until the acceptance has caught up. The constants were found with
    benchmarks/simulate.py, and replays of the demo's drafts.
    """

    FIRST_CREDIT, MOST_CREDIT, INCOME = 0.5, 12.0, 0.015  # plain steps
    # What texts there are: on some nearly all drafts stand, on others hardly any. Shares that fall
    # of a cycle's own drafts, how common a text like that is, and how much oftener drafts fall that
    # were made in the cycle before.
    FALLS = (0.005, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    COMMON = tuple(falls**0.6 for falls in FALLS)
    OFTENER: ClassVar[dict[Source, float]] = {"two-pass": 1.0, "fresh": 1.2, "stale": 1.9}
    TRUST = 0.35  # drafts stand and fall together: what each says, of what it would say alone
    TURNS = 0.2  # the chance that the text turns: that the next stretch is of any kind
    PRIOR_WEIGHT = 40.0  # drafts that the kind of text is worth against the average over all places
    # How much faster drafting ahead must seem to begin, as its first pass verifies nothing: 1.2 / 4
    # at first, less the more cycles were seen.
    CHANGE, KNOWN = 1.2, 4
    REPLAN = 4  # cycles between two looks at the whole table of policies,
    EARLY = 8  # but for the first ones

    def __init__(self, costs: Costs, policies: tuple[Policy, ...]):
        self.costs = costs
        self.plain_speed = 1 / costs.of_plain()
        self.acceptance: dict[Source, Acceptance] = {source: Acceptance() for source in SOURCES}
        self.policies = contenders(costs, policies)
        self.pending: Source = "stale"  # where drafts left over from the last cycle come from
        self.cycles = 0
        self.credit = self.FIRST_CREDIT
        self.untested = False  # drafts were made ahead and not verified yet
        self.due = False  # a look at all policies
        self.current, self.pays = PLAIN_POLICY, False
        if self.policies:
            self.choose()

    def plan(self, budget: int, pending: int) -> Plan:
        """A cycle of the best policy, or a plain step while drafting does not pay."""
        if self.policies and (self.pays or self.untested or self.credit > 0):
            plan = self.current.plan(budget, pending)
            self.untested |= plan.ahead_rows > 0 and not plan.n_drafts
            return plan
        self.credit += self.INCOME
        return PLAIN

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Learn from a cycle; plain steps teach nothing about drafts."""
        if plan.plain:
            return
        gain = 1 + accepted - plan_cost(self.costs, plan, n_drafts) * self.plain_speed
        self.credit = min(self.MOST_CREDIT, self.credit + gain)
        self.untested = not n_drafts
        source: Source = "two-pass" if plan.draft_rows else self.pending
        use = left_over(plan, n_drafts, accepted)
        self.pending = "fresh" if use is not None and use[1] == 1 else "stale"
        if n_drafts:
            self.acceptance[source].observe(n_drafts, accepted)
            self.cycles += 1
            self.due |= self.cycles <= self.EARLY or not self.pays or self.cycles % self.REPLAN == 0
            if gain < 0:  # as it is, the next cycle would lose too
                self.consider()

    def consider(self) -> None:
        """Look at all policies if that is due, but not while one begins to draft ahead."""
        if self.due and not self.untested:
            self.choose()

    def choose(self) -> None:
        """Look at all policies: take the fastest, and note whether it beats plain steps."""
        self.due = False
        places = max(policy.n_drafts for policy in self.policies)
        texts, current = self.texts(), self.current
        outlooks = {
            source: outlook(self.rates(source, texts, places)) for source in self.acceptance
        }
        change = 1 + self.CHANGE / (self.KNOWN + self.cycles)
        speeds = policy_speeds(self.costs, self.policies, outlooks)
        expected_of = dict(zip(self.policies, speeds, strict=True))
        best = current
        speed = to_beat = expected_of.get(current, 0.0)  # none where nothing is drafted yet
        for policy, expected in expected_of.items():
            begins = policy.ahead_rows and not current.ahead_rows
            worth = expected / change if begins else expected
            if worth > to_beat:
                best, speed, to_beat = policy, expected, worth
        self.current, self.pays = best, speed > self.plain_speed

    def texts(self) -> np.ndarray:
        """How likely each kind of text is next, by what all drafts have shown."""
        common = np.array(self.COMMON) / sum(self.COMMON)
        likely = np.log(common)
        for source, seen in self.acceptance.items():
            stood, fell = seen.evidence
            if stood or fell:
                falls = self.falls(source)
                likely += self.TRUST * (stood * np.log1p(-falls) + fell * np.log(falls))
        shown = np.exp(likely - likely.max())
        texts: np.ndarray = (1 - self.TURNS) * shown / shown.sum() + self.TURNS * common
        return texts

    def rates(self, source: Source, texts: np.ndarray, places: int) -> list[float]:
        """Chances to stand of the drafts from one source, by place.

        The longer drafts have stood, the likelier is a text on which they do.
        """
        stands = (self.stand(source, places) * texts).sum(axis=1)
        return self.acceptance[source].rates(stands[1:] / stands[:-1], self.PRIOR_WEIGHT)

    @classmethod
    @functools.cache
    def falls(cls, source: Source) -> np.ndarray:
        """For each kind of text, the share that falls of the drafts from one source."""
        return np.minimum(0.95, np.array(cls.FALLS) * cls.OFTENER[source])

    @classmethod
    @functools.cache
    def stand(cls, source: Source, places: int) -> np.ndarray:
        """For 0 to `places` drafts, by kind of text: the chance that all of them stand."""
        return (1 - cls.falls(source)) ** np.arange(places + 1)[:, None]


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
    fitting = (p for p in found if max(p.n_drafts + 1, p.ahead_rows) <= block_size)
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
        return Fixed(PLAIN_POLICY)
    if mode == "parallel":
        if cycle == "one-pass" and block_size > 2:  # a block of two leaves nothing to verify
            # As many rows as the two passes of a two-pass cycle have.
            length = (2 * block_size + 1) // 3
            return Fixed(Policy("one-pass", length - 1, length))
        return Fixed(Policy("two-pass", block_size - 1))
    known = costs()
    return Auto(known, policies(known, cycle, block_size))

"""What the next cycle does: a plain step, two passes, or one pass, and over how many drafts.

A schedule is a function of the costs it was given and of what the cycles before it showed, so a
run repeats exactly. It decides speed alone: whatever it plans, the ids are the same.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

Mode = Literal["auto", "parallel", "ar"]
CycleKind = Literal["auto", "two-pass", "one-pass"]
MODES = ("auto", "parallel", "ar")
CYCLES = ("auto", "two-pass", "one-pass")

BLOCKS = (1, 2, 3)  # that a one-pass forward may have

# Where the drafts of a cycle come from: its own draft pass, or the cycle before it, from a block
# that expected just what stood ("fresh") or less ("stale": guessed from further away).
Source = Literal["two-pass", "fresh", "stale"]
Rates = dict[Source, list[float]]  # chances to stand by place, given that those before stood


class Plan(NamedTuple):
    """One cycle.

    Attributes:
        draft_rows: rows of a draft pass run before the verify pass, anchor included; 0 for none.
        n_drafts: drafts to verify at most: those of the draft pass, or pending from the last cycle.
        ahead_rows: rows of each diffusion block that the verify pass carries, anchor included; 0
            for none.
        blocks: how many such blocks; see `block_depths`.
    """

    draft_rows: int = 0
    n_drafts: int = 0
    ahead_rows: int = 0
    blocks: int = 2

    @property
    def plain(self) -> bool:
        """Whether this is one ordinary AR step."""
        return self == PLAIN


PLAIN = Plan()


def block_depths(n_drafts: int, blocks: int) -> tuple[int, ...]:
    """Behind how many drafts each block of a one-pass forward is anchored.

    The last one expects all drafts to stand, the first none, others lie evenly between. After the
    cycle the deepest that did not expect too much is of use; a single one expects all.
    """
    return (
        tuple(round(n_drafts * i / (blocks - 1)) for i in range(blocks))
        if blocks > 1
        else (n_drafts,)
    )


def left_over(plan: Plan, n_drafts: int, accepted: int) -> tuple[int, int] | None:
    """The block of use after a cycle in which `accepted` of `n_drafts` drafts stood, if any.

    Returns its number and how many of its guesses were overtaken.
    """
    fitting = [i for i, d in enumerate(block_depths(n_drafts, plan.blocks)) if d <= accepted]
    if not plan.ahead_rows or not fitting:
        return None
    # Guess j of a block is for the j-th position behind its anchor and one more. The next anchor,
    # which no block knew, sits one behind what stood.
    return fitting[-1], accepted - block_depths(n_drafts, plan.blocks)[fitting[-1]] + 1


class Scheduler(Protocol):
    """Chooses each cycle from what the cycles before it showed."""

    def plan(self, budget: int, pending: int) -> Plan:
        """The next cycle, with `budget` tokens left to write and `pending` drafts at hand."""

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


@dataclass(frozen=True)
class Policy:
    """A way to run cycles.

    Attributes:
        kind: "plain", "two-pass" or "one-pass".
        n_drafts: drafts that a cycle verifies at most.
        ahead_rows: rows of each diffusion block of a one-pass forward.
        blocks: how many blocks that has.
    """

    kind: Literal["plain", "two-pass", "one-pass"]
    n_drafts: int = 0
    ahead_rows: int = 0
    blocks: int = 2

    def plan(self, budget: int, pending: int) -> Plan:
        """The cycle for `budget` tokens left to write and `pending` drafts at hand."""
        if self.kind == "two-pass":
            n_drafts = min(self.n_drafts, budget - 1)
            return Plan(draft_rows=n_drafts + 1, n_drafts=n_drafts) if n_drafts else PLAIN
        if self.kind == "one-pass":
            n_drafts = min(pending, self.n_drafts, budget - 1)
            # What is drafted ahead is of use only if something is left to write after this cycle.
            ahead_rows = self.ahead_rows if budget > 2 else 0
            return Plan(n_drafts=n_drafts, ahead_rows=ahead_rows, blocks=self.blocks)
        return PLAIN


PLAIN_POLICY = Policy("plain")


@dataclass(frozen=True)
class Costs:
    """What a pass costs on this device, in any one unit of time.

    Attributes:
        verify: by rows of the pass.
        draft: by rows of the block.
        fused: by (AR rows, diffusion rows in all blocks).
        plain: of a plain step. It can start before the last one is read, so that it costs less
            than a verify pass of one row, which is what is assumed where it was not measured.
    """

    verify: dict[int, float]
    draft: dict[int, float]
    fused: dict[tuple[int, int], float]
    plain: float | None = None

    def of_plain(self) -> float:
        """Cost of a plain step."""
        return self.of_verify(1) if self.plain is None else self.plain

    def of_verify(self, rows: int) -> float:
        """Cost of a verify pass: that of the next measured count, as kernels come in steps."""
        return _at(self.verify, rows)

    def of_draft(self, rows: int) -> float:
        """Cost of a draft pass."""
        return _at(self.draft, rows)

    def of_fused(self, rows: int, ahead: int) -> float:
        """Cost of a one-pass forward."""
        return self.of_each_fused(rows, ahead)[rows - 1]

    def of_each_fused(self, most: int, ahead: int) -> list[float]:
        """The same for 1 to `most` AR rows."""
        fitting = sorted((a, c) for (a, d), c in self.fused.items() if d >= ahead)
        cheapest, costs = max(self.fused.values()), []
        for rows in range(most, 0, -1):
            while fitting and fitting[-1][0] >= rows:
                cheapest = min(cheapest, fitting.pop()[1])
            costs.append(cheapest)
        return costs[::-1]


def _at(costs: dict[int, float], rows: int) -> float:
    return costs[min((n for n in costs if n >= rows), default=max(costs))]


class Acceptance:
    """How often a draft stands at each place of a cycle, given that those before it stood.

    Recent cycles count most: every observation fades by `KEEP` a cycle. Places tried little lean
    on the place before them, and the first on the average over all places: one cycle says little,
    a long draft that stood is often luck.
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
    def evidence(self) -> float:
        """Drafts judged so far, faded."""
        return sum(self.tried)

    @property
    def falls(self) -> float:
        """Share of the judged drafts that fell."""
        return 1 - sum(self.stood) / self.evidence if self.tried else 0.0

    def rates(self, places: int, prior: float, weight: float) -> list[float]:
        """The chance to stand at each of the first `places` places, given those before.

        `prior` is the chance expected before anything was seen, worth `weight` drafts.
        """
        near = (sum(self.stood) + weight * prior) / (self.evidence + weight)
        rates = []
        for place in range(places):
            tried = self.tried[place] if place < len(self.tried) else 0.0
            stood = self.stood[place] if place < len(self.stood) else 0.0
            near = (stood + self.WEIGHT * near) / (tried + self.WEIGHT)
            rates.append(near)
        return rates


def plan_cost(costs: Costs, plan: Plan, n_drafts: int) -> float:
    """What a cycle costs that verifies `n_drafts` drafts."""
    if plan.plain:
        return costs.of_plain()
    if plan.ahead_rows:
        return costs.of_fused(1 + n_drafts, plan.ahead_rows * plan.blocks)
    return (costs.of_draft(plan.draft_rows) if plan.draft_rows else 0.0) + costs.of_verify(
        1 + n_drafts
    )


def policy_speed(costs: Costs, policy: Policy, rates: Rates) -> float:
    """Expected tokens for each unit of time, given the chances to stand by place."""
    if policy.kind == "plain":
        return 1 / costs.of_plain()
    if policy.kind == "two-pass":
        return two_pass_speed(costs, policy.n_drafts, rates["two-pass"])
    return one_pass_speed(costs, policy, rates["fresh"], rates["stale"])


def expected_accepted(rates: list[float]) -> float:
    """Drafts that stand on average in a cycle over `len(rates)` drafts."""
    return sum(chances(rates)) - 1


def two_pass_speed(costs: Costs, n_drafts: int, rates: list[float]) -> float:
    """Tokens for each unit of time when every cycle drafts and verifies `n_drafts`."""
    cost = costs.of_draft(n_drafts + 1) + costs.of_verify(n_drafts + 1)
    return (1 + expected_accepted(rates[:n_drafts])) / cost


def one_pass_speed(costs: Costs, policy: Policy, fresh: list[float], stale: list[float]) -> float:
    """Tokens for each unit of time in the long run of one-pass cycles.

    If a block expected just what stood, all but two of its guesses are left for the next cycle
    (`fresh` are their chances); if it expected less, fewer are (`stale`). So what is pending is a
    Markov chain; its stationary average is what counts.
    """
    most = max(0, policy.ahead_rows - 2)
    full = min(policy.n_drafts, most)  # fresh drafts
    after = _after_a_fall(full, most, policy.blocks)
    fresh_stands, stale_stands = chances(fresh[:full]), chances(stale[:full])
    fresh_falls = [fresh_stands[a] - fresh_stands[a + 1] for a in range(full)]
    stale_falls = [stale_stands[a] - stale_stands[a + 1] for a in range(full)]
    renewed = sum(fall for fall, left in zip(fresh_falls, after, strict=True) if left is None)
    ends = 1 - fresh_stands[full] - renewed  # of a run of cycles with fresh drafts
    all_fresh, share = 1.0, [0.0] * full + [1.0]  # of cycles with fresh drafts, with m stale ones
    for _ in range(12):
        before = all_fresh
        begins, more = share[full] * stale_stands[full], share[full]  # more: with more than a
        following = [0.0] * (full + 1)
        for a in range(full - 1, -1, -1):
            begins += share[a] * stale_stands[a]
            left = after[a]
            if left is None:
                begins += more * stale_falls[a]
            else:
                following[left] += more * stale_falls[a]
            more += share[a]
        # Between fresh and stale the balance is known at once; among the stale, step by step.
        all_fresh = begins / (begins + ends) if begins + ends else 1.0
        following = [flow * (1 - all_fresh) for flow in following]
        for left, fall in zip(after, fresh_falls, strict=True):
            if left is not None:
                following[left] += fall * all_fresh
        if not (total := sum(following)):
            break
        # Half a step keeps chains that would alternate for ever from doing so.
        share = [(old + new / total) / 2 for old, new in zip(share, following, strict=True)]
        if abs(all_fresh - before) < 0.003:
            break
    ahead = policy.ahead_rows * policy.blocks
    prices = costs.of_each_fused(1 + full, ahead)
    tokens = all_fresh * sum(fresh_stands)
    time = all_fresh * prices[full]
    expected = 0.0
    for m, weight in enumerate(share):
        expected += stale_stands[m]  # one for the choice after the drafts, and each that stands
        tokens += (1 - all_fresh) * weight * expected
        time += (1 - all_fresh) * weight * prices[m]
    return tokens / time


@functools.cache
def _after_a_fall(full: int, most: int, blocks: int) -> list[int | None]:
    """Stale drafts left for the next cycle where a stood, by a; None where fresh ones are left.

    For cycles with `full` drafts; the few with less are taken to be alike.
    """
    plan = Plan(ahead_rows=1, blocks=blocks)
    uses = [left_over(plan, full, a) for a in range(full)]
    overtaken = [full + most if use is None else use[1] - 1 for use in uses]
    return [max(0, min(full, most - n)) if n else None for n in overtaken]


def chances(rates: list[float]) -> list[float]:
    """The chance that the first a drafts all stand, for a from 0 to all of them."""
    return list(itertools.accumulate(rates, operator.mul, initial=1.0))


class Auto:
    """Maximises expected tokens per second from the costs and the running acceptance.

    While some policy is expected to beat plain steps, the best one runs. Otherwise drafts are
    tried only on credit: a draft cycle pays in the tokens it wrote and takes out the plain steps
    it cost, and each plain step pays in `INCOME`. So text on which drafts fail loses at most that
    share, plus the first credit and one cycle, while text that has turned easy keeps itself in
    credit until the acceptance has caught up. The constants were found with
    benchmarks/simulate.py.
    """

    FIRST_CREDIT, MOST_CREDIT, INCOME = 2.0, 12.0, 0.015  # plain steps
    # Share of drafts expected to fall before any was seen, in drafts of a cycle's own draft pass,
    # and how much oftener those fall that were made in the cycle before.
    FALLS = 0.15
    OFTENER: ClassVar[dict[Source, float]] = {"two-pass": 1.0, "fresh": 1.2, "stale": 1.9}
    PRIOR_WEIGHT, BORROWED_WEIGHT = 24.0, 8.0  # of these, and of what other drafts show
    CHANGE = 1.1  # how much faster another policy must seem to take over
    REPLAN = 4  # cycles between two looks at the whole table of policies,
    EARLY = 8  # but for the first ones

    def __init__(self, costs: Costs, policies: list[Policy]):
        self.costs = costs
        self.plain_speed = 1 / costs.of_plain()
        self.acceptance: dict[Source, Acceptance] = {
            source: Acceptance() for source in self.OFTENER
        }
        # Only what could pay if every draft stood is ever worth a try.
        self.policies = [
            p
            for p in policies
            if policy_speed(costs, p, dict.fromkeys(self.OFTENER, [1.0] * p.n_drafts))
            > self.plain_speed
        ]
        self.pending: Source = "stale"  # where drafts left over from the last cycle come from
        self.cycles = 0
        self.credit = self.FIRST_CREDIT
        self.untested = False  # drafts were made ahead and not verified yet
        self.current, self.pays = PLAIN_POLICY, False
        if self.policies:
            self.choose()

    def plan(self, budget: int, pending: int) -> Plan:
        """A cycle of the best policy, or a plain step while drafting does not pay."""
        if self.policies and (self.pays or self.untested or self.credit > 0):
            return self.current.plan(budget, pending)
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
            if self.cycles <= self.EARLY or not self.pays or self.cycles % self.REPLAN == 0:
                self.choose()

    def choose(self) -> None:
        """Look at all policies: take the fastest, and note whether it beats plain steps."""
        places = max(policy.n_drafts for policy in self.policies)
        rates = {source: self.rates(source, places) for source in self.acceptance}
        speeds = {p: policy_speed(self.costs, p, rates) for p in self.policies}
        best = max(speeds, key=speeds.__getitem__)
        if speeds[best] > self.CHANGE * speeds.get(self.current, 0.0):
            self.current = best
        self.pays = speeds[self.current] > self.plain_speed

    def rates(self, source: Source, places: int) -> list[float]:
        """Chances to stand of the drafts from one source, helped by what the others have shown."""
        falls = self.FALLS * self.OFTENER[source]
        total, weight = falls * self.PRIOR_WEIGHT, self.PRIOR_WEIGHT
        for other, seen in self.acceptance.items():
            if other != source:
                lent = min(seen.evidence, self.BORROWED_WEIGHT)
                oftener = self.OFTENER[source] / self.OFTENER[other]
                total += lent * min(1.0, seen.falls * oftener)
                weight += lent
        return self.acceptance[source].rates(places, 1 - total / weight, weight)


def policies(costs: Costs, cycle: CycleKind) -> list[Policy]:
    """The ways to draft, with cycles that `cycle` allows, that `costs` knows the price of."""
    found = []
    if cycle in ("two-pass", "auto"):
        found += [Policy("two-pass", n - 1) for n in costs.draft]
    if cycle in ("one-pass", "auto"):
        found += [
            Policy("one-pass", min(rows - 1, ahead // blocks - 2), ahead // blocks, blocks)
            for rows, ahead in costs.fused
            for blocks in BLOCKS
            if ahead % blocks == 0 and abs(ahead // blocks - rows) <= rows // 2
        ]
    return [p for p in found if p.n_drafts > 0]


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
            length = min(block_size, max(3, (2 * block_size + 1) // 3))
            return Fixed(Policy("one-pass", max(1, length - 2), length))
        return Fixed(Policy("two-pass", block_size - 1))
    known = costs()
    ways = [p for p in policies(known, cycle) if max(p.n_drafts + 1, p.ahead_rows) <= block_size]
    return Auto(known, ways)

"""What the next cycle does: a plain step, two passes, or one pass, and over how many drafts.

A schedule is a function of the costs it was given and of what the cycles before it showed, so a
run repeats exactly. It decides speed alone: whatever it plans, the ids are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
        ahead_rows: diffusion rows of a one-pass forward, anchor included.
    """

    kind: Literal["plain", "two-pass", "one-pass"]
    n_drafts: int = 0
    ahead_rows: int = 0

    def plan(self, budget: int, pending: int) -> Plan:
        """The cycle for `budget` tokens left to write and `pending` drafts at hand."""
        if self.kind == "two-pass":
            n_drafts = min(self.n_drafts, budget - 1)
            return Plan(draft_rows=n_drafts + 1, n_drafts=n_drafts) if n_drafts else PLAIN
        if self.kind == "one-pass":
            n_drafts = min(pending, self.n_drafts, budget - 1)
            # What is drafted ahead is of use only if something is left to write after this cycle.
            return Plan(n_drafts=n_drafts, ahead_rows=self.ahead_rows if budget > 2 else 0)
        return PLAIN


PLAIN_POLICY = Policy("plain")


@dataclass(frozen=True)
class Costs:
    """What a pass costs on this device, in any one unit of time.

    Attributes:
        verify: by rows of the pass.
        draft: by rows of the block.
        fused: by (AR rows, diffusion rows).
    """

    verify: dict[int, float]
    draft: dict[int, float]
    fused: dict[tuple[int, int], float]

    def of_verify(self, rows: int) -> float:
        """Cost of a verify pass: that of the next measured count, as kernels come in steps."""
        return _at(self.verify, rows)

    def of_draft(self, rows: int) -> float:
        """Cost of a draft pass."""
        return _at(self.draft, rows)

    def of_fused(self, rows: int, ahead: int) -> float:
        """Cost of a one-pass forward."""
        fitting = [c for (a, d), c in self.fused.items() if a >= rows and d >= ahead]
        return min(fitting) if fitting else max(self.fused.values())


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
    if plan.ahead_rows:
        return costs.of_fused(1 + n_drafts, plan.ahead_rows)
    return (costs.of_draft(plan.draft_rows) if plan.draft_rows else 0.0) + costs.of_verify(
        1 + n_drafts
    )


def policy_speed(costs: Costs, policy: Policy, rates: list[float]) -> float:
    """Expected tokens for each unit of time, given the chances to stand by place."""
    if policy.kind == "plain":
        return 1 / costs.of_verify(1)
    if policy.kind == "two-pass":
        return two_pass_speed(costs, policy.n_drafts, rates)
    return one_pass_speed(costs, policy.n_drafts, policy.ahead_rows, rates)


def expected_accepted(rates: list[float]) -> float:
    """Drafts that stand on average in a cycle over `len(rates)` drafts."""
    total, chance = 0.0, 1.0
    for rate in rates:
        chance *= rate
        total += chance
    return total


def two_pass_speed(costs: Costs, n_drafts: int, rates: list[float]) -> float:
    """Tokens for each unit of time when every cycle drafts and verifies `n_drafts`."""
    cost = costs.of_draft(n_drafts + 1) + costs.of_verify(n_drafts + 1)
    return (1 + expected_accepted(rates[:n_drafts])) / cost


def one_pass_speed(costs: Costs, n_drafts: int, ahead_rows: int, rates: list[float]) -> float:
    """Tokens for each unit of time in the long run of one-pass cycles.

    A cycle with m pending drafts of which a stand leaves `ahead_rows - 2 - a` for the next, so
    the pending count is a Markov chain; its stationary average is what counts.
    """
    stands = [1.0]  # chance that the first a drafts all stand
    for rate in rates[:n_drafts]:
        stands.append(stands[-1] * rate)
    share = [1.0] + [0.0] * n_drafts  # of cycles with m drafts pending
    for _ in range(12):
        following, more = [0.0] * (n_drafts + 1), 0.0
        for a in range(n_drafts, -1, -1):  # a stand: all that were pending, or the next one falls
            chance = stands[a] * (share[a] + (more * (1 - rates[a]) if more else 0.0))
            following[max(0, min(n_drafts, ahead_rows - 2 - a))] += chance
            more += share[a]
        # Half a step keeps chains that would alternate for ever from doing so.
        share = [(old + new) / 2 for old, new in zip(share, following, strict=True)]
    tokens = time = expected = 0.0
    for m, weight in enumerate(share):
        expected += stands[m]  # one for the choice after the drafts, and every draft that stands
        tokens += weight * expected
        time += weight * costs.of_fused(1 + m, ahead_rows)
    return tokens / time


class Auto:
    """Maximises expected tokens per second from the costs and the running acceptance.

    While some policy is expected to beat plain steps, the best one runs. Otherwise drafts are
    tried only on credit: a draft cycle pays in the tokens it wrote and takes out the plain steps
    it cost, and each plain step pays in `INCOME`. So text on which drafts fail loses at most that
    share, plus the first credit and one cycle, while text that has turned easy keeps itself in
    credit until the acceptance has caught up. The constants were found with
    benchmarks/simulate.py.
    """

    FIRST_CREDIT, MOST_CREDIT, INCOME = 3.0, 12.0, 0.02  # plain steps
    FALLS = 0.15  # share of drafts expected to fall before any was seen
    FALLS_MORE = 1.6  # how much oftener one-pass drafts fall, made further ahead than two-pass ones
    PRIOR_WEIGHT, BORROWED_WEIGHT = 24.0, 8.0  # of these, and of what the other kind of cycle shows
    CHANGE = 1.03  # how much faster another policy must seem to take over
    REPLAN = 4  # cycles between two looks at the whole table of policies,
    EARLY = 8  # but for the first ones

    def __init__(self, costs: Costs, policies: list[Policy]):
        self.costs = costs
        self.plain_speed = 1 / costs.of_verify(1)
        self.acceptance = {"two-pass": Acceptance(), "one-pass": Acceptance()}
        # Only what could pay if every draft stood is ever worth a try.
        self.policies = [
            p for p in policies if policy_speed(costs, p, [1.0] * p.n_drafts) > self.plain_speed
        ]
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
        if n_drafts:
            self.acceptance["two-pass" if plan.draft_rows else "one-pass"].observe(
                n_drafts, accepted
            )
            self.cycles += 1
            if self.cycles <= self.EARLY or not self.pays or self.cycles % self.REPLAN == 0:
                self.choose()

    def choose(self) -> None:
        """Look at all policies: take the fastest, and note whether it beats plain steps."""
        places = max(policy.n_drafts for policy in self.policies)
        rates = {kind: self.rates(kind, places) for kind in self.acceptance}
        speeds = {p: policy_speed(self.costs, p, rates[p.kind]) for p in self.policies}
        best = max(speeds, key=speeds.__getitem__)
        if speeds[best] > self.CHANGE * speeds.get(self.current, 0.0):
            self.current = best
        self.pays = speeds[self.current] > self.plain_speed

    def rates(self, kind: str, places: int) -> list[float]:
        """Chances to stand in cycles of one kind, helped by what the other kind has shown."""
        one_pass = kind == "one-pass"
        falls = self.FALLS * (self.FALLS_MORE if one_pass else 1)
        other = self.acceptance["two-pass" if one_pass else "one-pass"]
        borrowed = min(1.0, other.falls * (self.FALLS_MORE if one_pass else 1 / self.FALLS_MORE))
        lent = min(other.evidence, self.BORROWED_WEIGHT)
        weight = self.PRIOR_WEIGHT + lent
        prior = 1 - (falls * self.PRIOR_WEIGHT + borrowed * lent) / weight
        return self.acceptance[kind].rates(places, prior, weight)


def policies(costs: Costs, cycle: CycleKind) -> list[Policy]:
    """The ways to draft, with cycles that `cycle` allows, that `costs` knows the price of."""
    found = []
    if cycle in ("two-pass", "auto"):
        found += [Policy("two-pass", n - 1) for n in costs.draft]
    if cycle in ("one-pass", "auto"):
        found += [Policy("one-pass", a - 1, d) for a, d in costs.fused]
    return found


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
        if cycle == "one-pass":
            return Fixed(Policy("one-pass", block_size - 1, block_size))
        return Fixed(Policy("two-pass", block_size - 1))
    known = costs()
    ways = [p for p in policies(known, cycle) if max(p.n_drafts + 1, p.ahead_rows) <= block_size]
    return Auto(known, ways)

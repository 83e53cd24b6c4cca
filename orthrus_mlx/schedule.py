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

    Recent cycles count most: every observation fades by `KEEP` a cycle. Places never reached
    take the value of the nearest place before them.
    """

    KEEP = 0.9
    PRIOR = 0.8  # before anything was seen, drafts are expected to be good: trying is how to learn
    PRIOR_WEIGHT = 1.0

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

    def rates(self, places: int) -> list[float]:
        """The chance to stand at each of the first `places` places, given those before."""
        rates, near = [], self.PRIOR
        for place in range(places):
            tried = self.tried[place] if place < len(self.tried) else 0.0
            stood = self.stood[place] if place < len(self.stood) else 0.0
            near = (stood + self.PRIOR_WEIGHT * near) / (tried + self.PRIOR_WEIGHT)
            rates.append(near)
        return rates


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

    While plain steps are expected to win it writes plainly, tries drafts again after
    `FIRST_PAUSE` tokens, and doubles the pause with every failure up to `LONGEST_PAUSE`, which
    keeps the price of trying near 2 % of a plain run.
    """

    FIRST_PAUSE, LONGEST_PAUSE = 16, 128
    REPLAN = 4  # cycles between two looks at the whole table of policies

    def __init__(self, costs: Costs, policies: list[Policy]):
        self.costs = costs
        self.acceptance = {"two-pass": Acceptance(), "one-pass": Acceptance()}
        # Only what could pay if every draft stood is ever worth a try.
        self.policies = [PLAIN_POLICY] + [
            policy for policy in policies if self.speed(policy, sure=True) > 1 / costs.of_verify(1)
        ]
        self.current = self.best(plain=len(self.policies) == 1)
        self.cycles = 0
        self.pause = self.FIRST_PAUSE
        self.left = 0  # plain steps until drafts are tried again

    def plan(self, budget: int, pending: int) -> Plan:
        """A cycle of the best policy, or a plain step while drafting does not pay."""
        if self.left > 0:
            self.left -= 1
            return PLAIN
        return self.current.plan(budget, pending)

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Learn from a cycle; plain steps teach nothing about drafts."""
        if plan.plain:
            return
        kind = "two-pass" if plan.draft_rows else "one-pass"
        if n_drafts:
            self.acceptance[kind].observe(n_drafts, accepted)
        self.cycles += 1
        if not n_drafts or (self.cycles % self.REPLAN and accepted):
            return
        best = self.best()
        if best.kind != "plain":
            self.current, self.pause = best, self.FIRST_PAUSE
            return
        # Plain steps win. After the pause, try what would lose least.
        self.current = self.best(plain=False)
        self.left, self.pause = self.pause, min(2 * self.pause, self.LONGEST_PAUSE)

    def best(self, plain: bool = True) -> Policy:
        """The policy with the highest expected speed."""
        choices = [p for p in self.policies if plain or p.kind != "plain"]
        return max(choices, key=self.speed)

    def speed(self, policy: Policy, *, sure: bool = False) -> float:
        """Expected tokens for each unit of time; `sure` supposes that every draft stands."""
        if policy.kind == "plain":
            return 1 / self.costs.of_verify(1)
        rates = self.acceptance[policy.kind].rates(policy.n_drafts)
        rates = [1.0] * policy.n_drafts if sure else rates
        if policy.kind == "two-pass":
            return two_pass_speed(self.costs, policy.n_drafts, rates)
        return one_pass_speed(self.costs, policy.n_drafts, policy.ahead_rows, rates)


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

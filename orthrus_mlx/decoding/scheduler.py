"""What the next cycle does: an AR step, or which drafts to make and verify in how many passes.

A schedule depends only on the costs it was given and on the cycles observed, so a run repeats
exactly. It decides speed alone: whatever it plans, the ids are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from .cost_model import (
    MAX_RATE,
    Costs,
    expected_tokens,
    plan_cost,
    policies,
    speed,
    staleness,
    trial_loss,
)
from .plan import AR_POLICY, AR_STEP, DIFFUSION, Plan, Policy

Mode = Literal["auto", "parallel", "ar"]
CycleKind = Literal["auto", "two-pass", "one-pass", "alternating"]
MODES = ("auto", "parallel", "ar")
CYCLES = ("auto", "two-pass", "one-pass", "alternating")


class Scheduler(Protocol):
    """Chooses each cycle from the outcome of those before it."""

    def plan(self, budget: int, at_hand: Mapping[str, int]) -> Plan:
        """The next cycle; changes no state.

        Args:
            budget: tokens left to write.
            at_hand: drafts that are ready to be verified, by source.
        """

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Learn that `plan`, AR steps too, verified `n_drafts` drafts and accepted `accepted`."""


class Fixed:
    """The same policy in every cycle, whatever is accepted."""

    def __init__(self, policy: Policy):
        self.policy = policy

    def plan(self, budget: int, at_hand: Mapping[str, int]) -> Plan:
        """The policy's cycle, or as much of it as the budget can use."""
        return self.policy.plan(budget, at_hand.get(DIFFUSION, 0))

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Nothing to learn."""


@dataclass
class Evidence:
    """What drafts have shown of a text, worth carrying from one answer to the next.

    Attributes:
        counts: (rejected, tried) drafts by source, older ones counting less. A draft behind a
            rejected one was not tried.
        credit: AR steps that drafting has gained on AR decoding, and may lose again.
    """

    PRIOR = (0.7, 8.0)  # rejected and tried, before any evidence
    KEPT, AGED = 0.97, 0.995  # of a source's counts after a cycle of its own, and after any other
    STEP = 0.1  # between two rates that are told apart, as a logarithm

    counts: dict[str, tuple[float, float]] = field(default_factory=dict)
    credit: float = 0.0

    def rates(self, source: str, prior: tuple[float, float] = PRIOR) -> tuple[float, float]:
        """The rejection rate of a source's drafts, less and plus one standard error.

        Both are rounded, so that few speeds have to be worked out.
        """
        rejected, tried = self.counts.get(source, (0.0, 0.0))
        rejected, tried = prior[0] + rejected, prior[1] + tried
        middle, error = math.log(rejected / tried), rejected**-0.5  # of a count, as a share
        low, high = (round(r / self.STEP) * self.STEP for r in (middle - error, middle + error))
        return min(MAX_RATE, math.exp(low)), min(MAX_RATE, math.exp(high))

    def prior(self, source: str) -> tuple[float, float]:
        """What these texts make one expect of another one, as `PRIOR`."""
        rejected, tried = self.counts.get(source, (0.0, 0.0))
        rate = (self.PRIOR[0] + rejected) / (self.PRIOR[1] + tried)
        return max(self.PRIOR[0], rate * self.PRIOR[1]), self.PRIOR[1]

    def add(self, source: str, n_drafts: int, accepted: int, stale: float = 1.0) -> None:
        """Count one cycle.

        Args:
            source: of its drafts.
            n_drafts: drafts verified; 0 for an AR step, which only ages the evidence.
            accepted: how many of them were accepted.
            stale: how many times as often such drafts are rejected; see `staleness`.
        """
        counted = {source: (0.0, 0.0), **self.counts} if n_drafts else self.counts
        self.counts = {
            name: (self.AGED * rejected, self.AGED * tried)
            for name, (rejected, tried) in counted.items()
        }
        if n_drafts:
            rejected, tried = counted[source]
            failed = int(accepted < n_drafts)
            self.counts[source] = (
                self.KEPT * rejected + failed,
                self.KEPT * tried + stale * (accepted + failed),
            )


class Adaptive:
    """Maximises expected tokens per second, given what passes cost and what drafts have shown.

    Each source of drafts has one number, its rejection rate. It gives every policy's expected
    speed. While the fastest policy is expected to beat AR decoding, it runs. Otherwise drafts are
    tried only on credit: a cycle earns its tokens and pays its time in AR steps, and every AR step
    adds `INCOME`. A trial waits until there is `RESERVE` of what it can lose.

    No cycle starts beyond a debt of `MAX_DEBT`, but one that verifies drafts already paid for. So,
    by these costs, the answers that share one `Evidence` lose to AR decoding at most `MAX_DEBT`,
    plus the income, plus the cycle in flight: a cycle, or a pass that drafts and the next one.

    Attributes:
        in_flight: whether the last pass drafted and verified nothing.
    """

    MAX_CREDIT, MAX_DEBT, INCOME = 12.0, 10.0, 0.015  # AR steps
    RESERVE = 0.5
    HYSTERESIS = 1.02  # how many times as fast as the current policy another must be expected

    def __init__(
        self, costs: Costs, policies: tuple[Policy, ...], evidence: Evidence | None = None
    ):
        self.costs, self.policies = costs, policies
        self.evidence = Evidence() if evidence is None else evidence
        self.ar_speed = 1 / costs.of_ar_step()
        self.current, self.speed = AR_POLICY, self.ar_speed
        self._stale = 1.0  # how many times as often the drafts of the last pass are rejected
        self.in_flight = False
        self._choose()

    def plan(self, budget: int, at_hand: Mapping[str, int]) -> Plan:
        """The cycle that is expected to be fastest, or an AR step while drafting does not pay."""
        ready = at_hand.get(DIFFUSION, 0)
        plan = self.current.plan(budget, ready)
        # Drafts at hand are paid for: to verify them is faster than to make and verify them.
        fastest = max(self.speed, self._speed_of(plan)) if ready else self.speed
        proposed = [
            Plan(n_drafts=min(rows - 1, count, budget - 1), source=source)
            for source, count in at_hand.items()
            for rows in self.costs.verify
            if source != DIFFUSION and min(rows - 1, count, budget - 1) > 0
        ]
        for other in proposed:
            if (speed := self._speed_of(other)) > fastest:
                fastest, plan = speed, other
        if plan.is_ar:
            return AR_STEP
        if self.in_flight and ready and plan.source == DIFFUSION:
            return plan
        # A block cut short at the end of the budget can lose even if all of it is accepted.
        steps = plan_cost(self.costs, plan, plan.n_drafts) * self.ar_speed
        if plan.draft_rows and steps >= 1 + plan.n_drafts:
            return AR_STEP
        pays = fastest > self.ar_speed
        least = -self.MAX_DEBT if pays else self.RESERVE * trial_loss(self.costs, plan)
        return plan if self.evidence.credit > least else AR_STEP

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Count the outcome of a cycle, and what it gained on AR decoding."""
        gain = self.INCOME
        if not plan.is_ar:
            gain = 1 + accepted - plan_cost(self.costs, plan, n_drafts) * self.ar_speed
        self.evidence.credit = min(self.MAX_CREDIT, self.evidence.credit + gain)
        self.learn(plan, n_drafts, accepted)

    def learn(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Count the outcome of a cycle, whatever it gained."""
        self.evidence.add(plan.source, n_drafts, accepted, self.staleness_of(plan))
        self._stale = staleness(plan, n_drafts, accepted)
        self.in_flight = plan.block_rows > 0 and not n_drafts
        self._choose()

    def _choose(self) -> None:
        """Take the policy that is expected to be fastest; leave the current one only for more."""
        low, high = self.evidence.rates(DIFFUSION)
        speeds = {
            policy: (speed(self.costs, policy, low) + speed(self.costs, policy, high)) / 2
            for policy in self.policies
        }
        best = max(speeds, key=speeds.__getitem__, default=AR_POLICY)
        if self.current not in speeds or speeds[best] > self.HYSTERESIS * speeds[self.current]:
            self.current = best
        self.speed = speeds.get(self.current, self.ar_speed)

    def _speed_of(self, plan: Plan) -> float:
        """Expected tokens per unit of time of this one cycle."""
        stale = self.staleness_of(plan)
        rates = (min(MAX_RATE, stale * rate) for rate in self.evidence.rates(plan.source))
        tokens = sum(expected_tokens(rate, plan.n_drafts) for rate in rates) / 2
        return tokens / plan_cost(self.costs, plan, plan.n_drafts)

    def staleness_of(self, plan: Plan) -> float:
        """How many times as often the drafts of `plan` are rejected as those of a draft pass."""
        return self._stale if plan.source == DIFFUSION and not plan.draft_rows else 1.0


def make_scheduler(
    mode: Mode,
    cycle: CycleKind,
    block_size: int,
    costs: Callable[[], Costs],
    evidence: Evidence | None = None,
) -> Scheduler:
    """The scheduler for a `mode` and `cycle` of the public API.

    Args:
        mode: "auto" chooses each cycle; "parallel" always drafts a full block; "ar" never drafts.
        cycle: what "auto" may choose from; "parallel" takes "auto" for the paper's "two-pass".
        block_size: rows of the largest block.
        costs: called for the device's costs where the scheduler needs them.
        evidence: of earlier answers, which "auto" starts from and adds to.
    """
    if mode == "ar":
        return Fixed(AR_POLICY)
    if mode == "auto":
        known = costs()
        return Adaptive(known, policies(known, cycle, block_size), evidence)
    if cycle == "alternating" and block_size > 2:  # a block of two leaves nothing to verify
        return Fixed(Policy("alternating", block_size - 2, block_size - 1))
    if cycle == "one-pass" and block_size > 2:
        # As many rows as the two passes of a two-pass cycle have.
        length = (2 * block_size + 1) // 3
        return Fixed(Policy("one-pass", length - 1, length, blocks=2))
    return Fixed(Policy("two-pass", block_size - 1))

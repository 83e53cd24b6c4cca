"""What the next cycle does: an AR step, or which drafts to make and verify in how many passes.

A schedule depends only on the costs it was given and on the cycles observed, so a run repeats
exactly. It decides speed alone: whatever it plans, the ids are the same.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from .cost_model import (
    MAX_RATE,
    Costs,
    plan_cost,
    policies,
    speed,
    staleness,
    trial_loss,
)
from .plan import AR_POLICY, AR_STEP, COPY, DIFFUSION, FORCED, PREDICTION, Plan, Policy

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

    def observe(self, plan: Plan, n_drafts: int, accepted: int, chances: Many[float] = ()) -> None:
        """Learn the outcome of a cycle, AR steps too.

        Args:
            plan: of the cycle.
            n_drafts: drafts verified.
            accepted: how many of them were accepted.
            chances: the diffusion view's probabilities of the drafts that the cycle left at hand.
        """


class Fixed:
    """The same policy in every cycle, whatever is accepted.

    Drafts that cost no draft pass are verified instead: what the caller predicted, and what a
    grammar forces, where it is as many as the policy would make.

    Args:
        policy: what to do.
        most: drafts at hand that a cycle verifies at most; 0 to do without them.
    """

    def __init__(self, policy: Policy, most: int = 0):
        self.policy, self.most = policy, most

    def plan(self, budget: int, at_hand: Mapping[str, int]) -> Plan:
        """The policy's cycle, or as much of it as the budget can use."""
        for source, least in ((PREDICTION, 1), (FORCED, max(1, self.policy.n_drafts))):
            count = min(at_hand.get(source, 0), self.most, budget - 1)
            if count >= least:
                return Plan(n_drafts=count, source=source)
        return self.policy.plan(budget, at_hand.get(DIFFUSION, 0))

    def observe(self, plan: Plan, n_drafts: int, accepted: int, chances: Many[float] = ()) -> None:
        """Nothing to learn."""


@dataclass
class Evidence:
    """What drafts have shown of a text, worth carrying from one answer to the next.

    Attributes:
        counts: (rejected, tried) drafts by source, older ones counting less. A draft behind a
            rejected one was not tried. Where the probabilities of drafts are known, these are the
            expected numbers for the whole block, whatever of it was verified.
        credit: AR steps that drafting has gained on AR decoding, and may lose again.
        doubts: (rejected, expected) of verified drafts whose probabilities are known: how often
            they were rejected, and how often their probabilities said so.
    """

    PRIOR = (0.7, 8.0)  # rejected and tried, before any evidence
    # Of sources of which more is known. First copies are often chance; what follows shows it soon.
    PRIORS: ClassVar = {FORCED: (0.5, 50.0), COPY: (0.5, 2.0)}
    KEPT, AGED = 0.97, 0.995  # of a source's counts after a cycle of its own, and after any other
    STEP = 0.1  # between two rates that are told apart, as a logarithm
    TRUST = 4.0  # rejected drafts that weigh as much as what the probabilities say
    CARRIED = 4.0  # drafts that earlier texts count for at most

    counts: dict[str, tuple[float, float]] = field(default_factory=dict)
    credit: float = 0.0
    doubts: tuple[float, float] = (0.0, 0.0)

    def rates(self, source: str, prior: tuple[float, float] | None = None) -> tuple[float, float]:
        """The rejection rate of a source's drafts, less and plus one standard error.

        Both are rounded, so that few speeds have to be worked out.
        """
        rejected, tried = self.counts.get(source, (0.0, 0.0))
        prior = prior or self.PRIORS.get(source, self.PRIOR)
        rejected, tried = prior[0] + rejected, prior[1] + tried
        middle, error = math.log(rejected / tried), rejected**-0.5  # of a count, as a share
        low, high = round((middle - error) / self.STEP), round((middle + error) / self.STEP)
        return min(MAX_RATE, math.exp(low * self.STEP)), min(MAX_RATE, math.exp(high * self.STEP))

    def prior(self, source: str) -> tuple[float, float]:
        """What these texts make one expect of another one, as `PRIOR`."""
        rejected, tried = self.counts.get(source, (0.0, 0.0))
        before = self.PRIORS.get(source, self.PRIOR)
        rate = (before[0] + rejected) / (before[1] + tried)
        return max(before[0], rate * before[1]), before[1]

    def standing(self, chances: Many[float]) -> list[float]:
        """How likely the first 0, 1, 2, ... drafts are all accepted, by their probabilities."""
        rejected, expected = self.doubts
        factor = (self.TRUST + rejected) / (self.TRUST + expected)
        stands = (1 - min(MAX_RATE, factor * (1 - chance)) for chance in chances)
        return list(itertools.accumulate(stands, operator.mul, initial=1.0))

    def add(
        self,
        source: str,
        n_drafts: int,
        accepted: int,
        stale: float = 1.0,
        chances: Many[float] = (),
    ) -> None:
        """Count one cycle.

        Args:
            source: of its drafts.
            n_drafts: drafts verified.
            accepted: how many of them were accepted.
            stale: how many times as often such drafts are rejected; see `staleness`.
            chances: probabilities of the block whose first `n_drafts` drafts were verified.
        """
        failed = float(accepted < n_drafts)
        tried = accepted + failed
        if chances:
            alive = self.standing(chances)
            self.doubts = (
                self.KEPT * self.doubts[0] + failed,
                self.KEPT * self.doubts[1] + sum(1 - c for c in chances[: int(tried)]),
            )
            tried, failed = sum(alive[:-1]), 1 - alive[-1]
        counted = {source: (0.0, 0.0), **self.counts} if tried else self.counts
        self.counts = {
            name: (self.AGED * rejected, self.AGED * tried)
            for name, (rejected, tried) in counted.items()
        }
        if tried:
            before = counted[source]
            self.counts[source] = (
                self.KEPT * before[0] + failed,
                self.KEPT * before[1] + stale * tried,
            )

    def of_another_text(self) -> Evidence:
        """What this says of a text that was not seen yet, and which has no credit yet."""
        shares = {name: min(1.0, self.CARRIED / n) for name, (_, n) in self.counts.items() if n}
        counts = {
            name: (share * self.counts[name][0], share * self.counts[name][1])
            for name, share in shares.items()
        }
        return Evidence(counts, doubts=self.doubts)


class Adaptive:
    """Maximises expected tokens per second, given what passes cost and what drafts have shown.

    Each source of drafts has one number, its rejection rate. It gives every policy's expected
    speed. One rate is not right for near and far drafts, so policies are compared by this speed
    times what each has written here over what was expected of it. While the rate says that the
    chosen one beats AR decoding, it runs. Otherwise drafts are tried only on credit: a cycle earns
    its tokens and pays its time in AR steps, and every AR step adds `INCOME`. A trial waits until
    there is `RESERVE` of what it can lose.

    Drafts at hand have probabilities. What is done with them is what has the largest surplus:
    expected tokens, less the tokens that its time is worth at the policy's speed.

    What a grammar forces costs no draft pass and is hardly ever rejected: decoding without the
    diffusion view has it too, and drafts must be faster than that (`base_speed`).

    No cycle starts beyond a debt of `MAX_DEBT`, but one that verifies drafts already paid for. So,
    by these costs, the answers that share one `Evidence` lose to AR decoding at most `MAX_DEBT`,
    plus the income, plus the cycle in flight: a cycle, or a pass that drafts and the next one.

    Attributes:
        in_flight: whether the last pass drafted and verified nothing.
    """

    MAX_CREDIT, MAX_DEBT, INCOME = 12.0, 10.0, 0.015  # AR steps
    RESERVE = 0.5
    BASE = 4.0  # AR steps that `base_speed` starts from
    AS_EXPECTED = 64.0  # tokens beside which a policy's own are set, so that luck counts little
    HYSTERESIS = 1.02  # how many times as fast as the current policy another must be expected

    def __init__(
        self, costs: Costs, policies: tuple[Policy, ...], evidence: Evidence | None = None
    ):
        self.costs, self.policies = costs, policies
        self.evidence = Evidence() if evidence is None else evidence
        self.ar_speed = 1 / costs.of_ar_step()
        self._base = (self.BASE, self.BASE * costs.of_ar_step())  # tokens and time
        self.current, self.speed = AR_POLICY, self.ar_speed
        self._stale = 1.0  # how many times as often the drafts of the last pass are rejected
        self._chances: tuple[float, ...] = ()  # of the drafts that it left at hand
        self._begun = False  # whether the first token of the answer is written
        self.in_flight = False
        self._written = dict[Policy, tuple[float, float]]()  # by policy: tokens, and expected ones
        self._speeds = dict[Policy, float]()  # of the policies, by the rejection rate alone
        self._rates: tuple[float, float] | None = None  # that these are for
        self._choose()

    def plan(self, budget: int, at_hand: Mapping[str, int]) -> Plan:
        """The cycle that is expected to earn most, or an AR step while drafting does not pay."""
        ready, own, best = at_hand.get(DIFFUSION, 0), AR_STEP, 0.0
        pace = max(self.speed, self.base_speed)  # tokens that a unit of time is worth
        counts = {source: min(n, budget - 1) for source, n in at_hand.items()}
        counts[DIFFUSION] = 0
        options: list[Plan] = []
        if self._begun:
            # 1. What the policy plans. A cycle that it begins earns nothing beyond its pace.
            own = self.current.plan(budget, ready)
            if ready and own.block_rows:
                best = max(best, self._surplus(own, pace))
            elif ready and own.n_drafts and not own.draft_rows:
                # 2. A block waits to be verified: it is, or there is a block anew, or an AR step.
                counts[DIFFUSION] = own.n_drafts
                options = [self.current.plan(budget, 0)]
                own, best = AR_STEP, self._surplus(AR_STEP, pace)
        else:  # nothing comes sooner than an AR step, and an answer's first drafts are the worst
            counts = {FORCED: counts.get(FORCED, 0)}
        # 3. Of drafts at hand as many as pay: more cost nothing, up to the next step in cost.
        options += [
            Plan(n_drafts=min(rows - 1, count), source=source)
            for source, count in counts.items()
            for rows in self.costs.verify
            if min(rows - 1, count) > 0
        ]
        ranked = [(best, own)]
        for plan in options:
            surplus = self._surplus(plan, pace)
            # What is forced is verified even where drafts would be better, but may not be made.
            if surplus > best or (plan.source == FORCED and surplus > self._surplus(AR_STEP, pace)):
                ranked.append((surplus, plan))
        ranked.sort(key=lambda pair: -pair[0])
        return next((plan for _, plan in ranked if self._may(plan, ready)), AR_STEP)

    def observe(self, plan: Plan, n_drafts: int, accepted: int, chances: Many[float] = ()) -> None:
        """Count the outcome of a cycle, and what it gained on decoding without the draft view."""
        cost = plan_cost(self.costs, plan, n_drafts)
        gain = 1 + accepted - cost * self.base_speed
        if plan.is_ar or plan.source == FORCED:
            gain = self.INCOME
            tokens, spent = self._base
            kept = Evidence.KEPT
            self._base = (kept * tokens + 1 + accepted, kept * spent + cost)
        elif plan.source == DIFFUSION and n_drafts:
            written, expected = self._written.get(self.current, (0.0, 0.0))
            hoped = sum(self._standing(plan._replace(n_drafts=n_drafts))[: n_drafts + 1])
            kept = Evidence.KEPT
            self._written[self.current] = kept * written + 1 + accepted, kept * expected + hoped
        self.evidence.credit = min(self.MAX_CREDIT, self.evidence.credit + gain)
        self.learn(plan, n_drafts, accepted, chances)

    def learn(self, plan: Plan, n_drafts: int, accepted: int, chances: Many[float] = ()) -> None:
        """Count the outcome of a cycle, whatever it gained."""
        self._begun = True
        block = self._chances if self._is_at_hand(plan) else ()
        self.evidence.add(plan.source, n_drafts, accepted, self.staleness_of(plan), block)
        self._stale = staleness(plan, n_drafts, accepted)
        self._chances = tuple(chances)
        self.in_flight = plan.block_rows > 0 and not n_drafts
        self._choose()

    @property
    def base_speed(self) -> float:
        """Tokens per unit of time without drafts that can be done without.

        That is AR decoding, or what it has come to here with what a grammar forces.
        """
        tokens, spent = self._base
        return tokens / spent

    def _may(self, plan: Plan, ready: int) -> bool:
        """Whether a cycle may run, by what there is to lose."""
        if plan.is_ar or plan.source == FORCED:
            return True
        if self.in_flight and ready and plan.source == DIFFUSION and plan.n_drafts:
            return True
        # A block cut short at the end of the budget can lose even if all of it is accepted.
        steps = plan_cost(self.costs, plan, plan.n_drafts) * self.ar_speed
        if plan.draft_rows and steps >= 1 + plan.n_drafts:
            return False
        pays = self.speed > self.base_speed or self._surplus(plan, self.base_speed) > 0
        least = -self.MAX_DEBT if pays else self.RESERVE * trial_loss(self.costs, plan)
        return self.evidence.credit > least

    def _choose(self) -> None:
        """Take the policy that is expected to be fastest; leave the current one only for more."""
        rates = low, high = self.evidence.rates(DIFFUSION)
        if rates != self._rates:
            self._rates = rates
            self._speeds = {
                policy: (speed(self.costs, policy, low) + speed(self.costs, policy, high)) / 2
                for policy in self.policies
            }
        speeds = {policy: self.expected_speed(policy) for policy in self.policies}
        best = max(speeds, key=speeds.__getitem__, default=AR_POLICY)
        if self.current not in speeds or speeds[best] > self.HYSTERESIS * speeds[self.current]:
            self.current = best
        # Bad luck must not end drafting: AR steps would never show that it was only that.
        self.speed = self._speeds.get(self.current, self.ar_speed)

    def expected_speed(self, policy: Policy) -> float:
        """By what policies are compared: the speed by the rate, times how true that was so far."""
        written, expected = self._written.get(policy, (0.0, 0.0))
        so_far = (self.AS_EXPECTED + written) / (self.AS_EXPECTED + expected)
        return so_far * self._speeds[policy]

    def _surplus(self, plan: Plan, pace: float) -> float:
        """Tokens that one cycle is expected to write beyond what its time is worth."""
        standing = self._standing(plan)
        tokens = sum(standing[: plan.n_drafts + 1])
        if plan.block_rows:
            # A block saves the next one, if all drafts before it and its first guess are right.
            saved = pace * self.costs.of_fused(1, plan.block_rows * plan.blocks) - 1
            tokens += saved * standing[-1]
        return tokens - pace * plan_cost(self.costs, plan, plan.n_drafts)

    def _standing(self, plan: Plan) -> list[float]:
        """How likely the first 0, 1, 2, ... drafts of a plan are all accepted, and one beyond."""
        places = plan.n_drafts + 1
        if self._chances and self._is_at_hand(plan):
            return self.evidence.standing(self._chances[:places])
        stale, rates = self.staleness_of(plan), self.evidence.rates(plan.source)
        low, high = (1 - min(MAX_RATE, stale * rate) for rate in rates)
        return [(low**n + high**n) / 2 for n in range(places + 1)]

    def _is_at_hand(self, plan: Plan) -> bool:
        return plan.source == DIFFUSION and not plan.draft_rows

    def staleness_of(self, plan: Plan) -> float:
        """How many times as often the drafts of `plan` are rejected as those of a draft pass."""
        return self._stale if self._is_at_hand(plan) else 1.0


def make_scheduler(
    mode: Mode,
    cycle: CycleKind,
    block_size: int,
    costs: Callable[[], Costs],
    evidence: Evidence | None = None,
) -> Scheduler:
    """The scheduler for a `mode` and `cycle` of the public API.

    Args:
        mode: "auto" chooses each cycle; "parallel" always drafts a full block; "ar" never drafts,
            and verifies what a grammar forces.
        cycle: what "auto" may choose from; "parallel" takes "auto" for the paper's "two-pass".
        block_size: rows of the largest block.
        costs: called for the device's costs where the scheduler needs them.
        evidence: of earlier answers, which "auto" starts from and adds to.
    """
    if mode == "ar":
        return Fixed(AR_POLICY, block_size - 1)
    if mode == "auto":
        known = costs()
        return Adaptive(known, policies(known, cycle, block_size), evidence)
    if cycle == "alternating" and block_size > 2:  # a block of two leaves nothing to verify
        return Fixed(Policy("alternating", block_size - 2, block_size - 1), block_size - 1)
    if cycle == "one-pass" and block_size > 2:
        # As many rows as the two passes of a two-pass cycle have.
        length = (2 * block_size + 1) // 3
        return Fixed(Policy("one-pass", length - 1, length, blocks=2), block_size - 1)
    return Fixed(Policy("two-pass", block_size - 1), block_size - 1)

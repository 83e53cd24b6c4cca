"""What cycles cost, and how fast each way to run them is expected to be: pure functions."""

from __future__ import annotations

import functools
import itertools
import operator
from dataclasses import dataclass
from typing import Literal

from .plans import Plan, Policy, left_over

# Where the drafts of a cycle come from: its own draft pass, or the cycle before it, from a block
# that expected just what stood ("fresh") or less ("stale": guessed from further away).
Source = Literal["two-pass", "fresh", "stale"]
SOURCES: tuple[Source, ...] = ("two-pass", "fresh", "stale")
Rates = dict[Source, list[float]]  # chances to stand by place, given that those before stood


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
        if (most, ahead) in self._each_fused:  # schedules ask again and again
            return self._each_fused[most, ahead]
        fitting = sorted((a, c) for (a, d), c in self.fused.items() if d >= ahead)
        cheapest, costs = max(self.fused.values()), []
        for rows in range(most, 0, -1):
            while fitting and fitting[-1][0] >= rows:
                cheapest = min(cheapest, fitting.pop()[1])
            costs.append(cheapest)
        self._each_fused[most, ahead] = costs[::-1]
        return costs[::-1]

    @functools.cached_property
    def _each_fused(self) -> dict[tuple[int, int], list[float]]:
        return {}


def _at(costs: dict[int, float], rows: int) -> float:
    return costs[min((n for n in costs if n >= rows), default=max(costs))]


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
    if policy.kind == "alternating":
        return alternating_speed(costs, policy, rates["fresh"])
    return one_pass_speed(costs, policy, rates["fresh"], rates["stale"])


def most_speed(costs: Costs, policy: Policy, rates: Rates) -> float:
    """No less than `policy_speed`, and found much sooner for one-pass policies."""
    if policy.kind != "one-pass":
        return policy_speed(costs, policy, rates)
    full = min(policy.n_drafts, policy.ahead_rows - 1)
    # As if all cycles had the better drafts of both sources, and all the price of the smallest.
    better = list(map(max, rates["fresh"][:full], rates["stale"][:full]))
    cheapest = costs.of_each_fused(1 + full, policy.ahead_rows * policy.blocks)[0]
    return (1 + expected_accepted(better)) / cheapest


def best_case(costs: Costs, policy: Policy) -> float:
    """The speed of a policy if every draft stood."""
    if policy.kind != "one-pass":
        return policy_speed(costs, policy, {s: [1.0] * policy.n_drafts for s in SOURCES})
    full = min(policy.n_drafts, policy.ahead_rows - 1)
    return (1 + full) / costs.of_fused(1 + full, policy.ahead_rows * policy.blocks)


def expected_accepted(rates: list[float]) -> float:
    """Drafts that stand on average in a cycle over `len(rates)` drafts."""
    return sum(chances(rates)) - 1


def two_pass_speed(costs: Costs, n_drafts: int, rates: list[float]) -> float:
    """Tokens for each unit of time when every cycle drafts and verifies `n_drafts`."""
    cost = costs.of_draft(n_drafts + 1) + costs.of_verify(n_drafts + 1)
    return (1 + expected_accepted(rates[:n_drafts])) / cost


def alternating_speed(costs: Costs, policy: Policy, fresh: list[float]) -> float:
    """Tokens for each unit of time when passes that draft take turns with passes that verify.

    Each of the two writes one token, and the second also the drafts that stand.
    """
    cost = costs.of_fused(1, policy.ahead_rows) + costs.of_verify(1 + policy.n_drafts)
    return (2 + expected_accepted(fresh[: policy.n_drafts])) / cost


def one_pass_speed(costs: Costs, policy: Policy, fresh: list[float], stale: list[float]) -> float:
    """Tokens for each unit of time in the long run of one-pass cycles.

    If a block expected just what stood, all but one of its guesses are left for the next cycle
    (`fresh` are their chances); if it expected less, fewer are (`stale`). So what is pending is a
    Markov chain; its stationary average is what counts.
    """
    most = max(0, policy.ahead_rows - 1)
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

"""What cycles cost, and how fast each way to run them is expected to be: pure functions."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from .plan import Plan, Policy, reusable_block

# Where the drafts of a cycle come from: its own draft pass, or the cycle before it, from a block
# that expected just what stood ("fresh") or less ("stale": guessed from further away).
Source = Literal["two-pass", "fresh", "stale"]
SOURCES: tuple[Source, ...] = ("two-pass", "fresh", "stale")


class Outlook(NamedTuple):
    """What is expected of the drafts from one source.

    Attributes:
        falls: the chance that just a drafts stand and the next one falls, for a from 0 on.
        tokens: that a cycle over n drafts writes on average, for n from 0 on.
    """

    falls: np.ndarray
    tokens: np.ndarray


Outlooks = dict[Source, Outlook]

# Prices are about the same up to the ratio of the blocks' lengths to this power, 9 % for twice the
# rows. Models are trained on their longest block, and what shorter ones draft falls oftener: on the
# demo and another small model by 1.5 to 1.7 in blocks of a quarter. The schedule does not model it.
ALIKE = 0.12


def outlook(rates: Iterable[float]) -> Outlook:
    """From the chances to stand by place, each given that all drafts before it stood."""
    stands = np.array([1.0, *rates]).cumprod()
    return Outlook(stands[:-1] - stands[1:], stands.cumsum())


@dataclass(frozen=True, eq=False)  # hashed by identity: much is looked up by it
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

    def of_ar_step(self) -> float:
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


@functools.lru_cache(maxsize=1024)  # asked for in each cycle
def plan_cost(costs: Costs, plan: Plan, n_drafts: int) -> float:
    """What a cycle costs that verifies `n_drafts` drafts."""
    if plan.is_ar:
        return costs.of_ar_step()
    if plan.block_rows:
        return costs.of_fused(1 + n_drafts, plan.block_rows * plan.blocks)
    return (costs.of_draft(plan.draft_rows) if plan.draft_rows else 0.0) + costs.of_verify(
        1 + n_drafts
    )


def policy_speed(costs: Costs, policy: Policy, outlooks: Outlooks) -> float:
    """Expected tokens for each unit of time."""
    return policy_speeds(costs, (policy,), outlooks)[0]


def policy_speeds(costs: Costs, policies: tuple[Policy, ...], outlooks: Outlooks) -> list[float]:
    """The same of several policies, sooner than one by one."""
    one_pass = iter(_one_pass_speeds(costs, policies, outlooks["fresh"], outlooks["stale"]))
    speeds: list[float] = []
    for policy in policies:
        if policy.kind == "ar":
            speeds.append(1 / costs.of_ar_step())
        elif policy.kind == "one-pass":
            speeds.append(next(one_pass))
        else:
            # Each of two alternating passes writes one token, the second also drafts that stand.
            source: Source = "fresh" if policy.kind == "alternating" else "two-pass"
            tokens = outlooks[source].tokens[policy.n_drafts] + (source == "fresh")
            speeds.append(float(tokens) / _prices(costs, policy)[0])
    return speeds


def best_case(costs: Costs, policy: Policy) -> float:
    """The speed of a policy if every draft stood."""
    surely = outlook([1.0] * policy.n_drafts)
    if policy.kind != "one-pass":
        return policy_speed(costs, policy, dict.fromkeys(SOURCES, surely))
    return (1 + _fresh(policy)[0]) / _prices(costs, policy)[-1]


@functools.lru_cache(maxsize=1024)  # asked for in each answer
def at_risk(costs: Costs, policy: Policy) -> float:
    """The plain steps that one trial of a policy loses if no draft stands."""
    prices = _prices(costs, policy)
    steps = {"one-pass": 2, "alternating": 2}.get(policy.kind, 1)  # passes that write a token each
    # One-pass cycles begin with one that verifies nothing.
    cost = prices[0] + prices[-1] if policy.kind == "one-pass" else prices[0]
    return max(0.0, cost / costs.of_ar_step() - steps)


@functools.lru_cache(maxsize=32)
def contenders(costs: Costs, policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    """Those that are worth comparing.

    They could beat plain steps if every draft stood, and no other one drafts more in the same way
    for about the same price: by the rule of thumb of `ALIKE`, the longer block's drafts make up
    for what it costs more.
    """
    paying = [p for p in policies if best_case(costs, p) > 1 / costs.of_ar_step()]
    prices = {p: _prices(costs, p) for p in paying}

    def beats(q: Policy, p: Policy) -> bool:
        if q == p or (q.kind, q.blocks) != (p.kind, p.blocks):
            return False
        if q.n_drafts < p.n_drafts or q.block_rows < p.block_rows:
            return False
        alike = (q.length / p.length) ** ALIKE
        pairs = [*zip(prices[q], prices[p], strict=False), (prices[q][-1], prices[p][-1])]
        return all(more <= alike * less for more, less in pairs)

    return tuple(p for p in paying if not any(beats(q, p) for q in paying))


def _prices(costs: Costs, policy: Policy) -> list[float]:
    """What a cycle of a policy costs; of a one-pass policy, by the drafts that it verifies.

    Of alternating passes, both.
    """
    n = policy.n_drafts
    if policy.kind == "two-pass":
        return [costs.of_draft(n + 1) + costs.of_verify(n + 1)]
    if policy.kind == "alternating":
        return [costs.of_fused(1, policy.block_rows) + costs.of_verify(1 + n)]
    return costs.of_each_fused(1 + _fresh(policy)[0], policy.block_rows * policy.blocks)


def _fresh(policy: Policy) -> tuple[int, int]:
    """Fresh drafts that a one-pass cycle verifies, and that a block leaves it."""
    most = max(0, policy.block_rows - 1)
    return min(policy.n_drafts, most), most


def _one_pass_speeds(
    costs: Costs, policies: tuple[Policy, ...], fresh: Outlook, stale: Outlook
) -> list[float]:
    """Tokens for each unit of time in the long run of one-pass cycles, of those policies' cycles.

    If a block expected just what stood, all but one of its guesses are left for the next cycle
    (`fresh`); if it expected less, fewer are (`stale`). A cycle with fresh drafts is followed by
    cycles with stale ones until the next. How many drafts these have is worked out for the first
    two in a row; all others are taken to be like the second.
    """
    full, prices, leaves = _one_pass_table(costs, policies)
    if not full.size:
        return []
    most = leaves.shape[1]
    tokens, time = fresh.tokens[full], prices[np.arange(full.size), full]
    share = fresh.falls[:most] @ leaves  # of cycles, by their stale drafts: [policies, most + 1]
    for row in (1, 2):
        more = share[:, :0:-1].cumsum(axis=1)[:, ::-1]  # cycles with more than a drafts
        again = ((more * stale.falls[:most])[:, None] @ leaves)[:, 0]
        there = share.sum(axis=1)
        # However many cycles with stale drafts there are, they do not go on for ever.
        cycles = 1 / np.maximum(1e-9, 1 - again.sum(axis=1) / (there + 1e-300)) if row == 2 else 1
        tokens = tokens + cycles * (share @ stale.tokens[: most + 1])
        time = time + cycles * (share * prices).sum(axis=1)
        share = again
    speeds: list[float] = (tokens / time).tolist()
    return speeds


@functools.lru_cache(maxsize=32)
def _one_pass_table(
    costs: Costs, policies: tuple[Policy, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of those that are one-pass policies: fresh drafts that a cycle verifies, prices, `_leaves`.

    The latter two are filled up with zeros: [policies, most + 1] and [policies, most, most + 1].
    """
    found = [policy for policy in policies if policy.kind == "one-pass"]
    counts = [_fresh(policy) for policy in found]
    most = max((full for full, _ in counts), default=0)
    prices, leaves = np.zeros((len(found), most + 1)), np.zeros((len(found), most, most + 1))
    for i, (policy, (full, left)) in enumerate(zip(found, counts, strict=True)):
        prices[i, : full + 1] = _prices(costs, policy)
        leaves[i, :full, : full + 1] = _leaves(full, left, policy.blocks)
    return np.array([full for full, _ in counts], int), prices, leaves


def _leaves(full: int, most: int, blocks: int) -> np.ndarray:
    """Where a drafts stood and one fell: 1 at the stale drafts left then, [full, full + 1].

    Nowhere if fresh ones are left. For cycles with `full` drafts; the few with less are taken to be
    alike.
    """
    plan = Plan(block_rows=1, blocks=blocks)
    leaves = np.zeros((full, full + 1))
    for a in range(full):
        use = reusable_block(plan, full, a)
        overtaken = full + most if use is None else use[1] - 1
        if overtaken:
            leaves[a, max(0, min(full, most - overtaken))] = 1
    return leaves

"""What a cycle costs on this device, and how fast a policy is expected to be: pure functions."""

from __future__ import annotations

import bisect
import functools
import math
import random
import statistics
from dataclasses import dataclass, field

from .plan import Plan, Policy, RowCounts, reusable_block


@dataclass(frozen=True, eq=False)  # hashed by identity: results are cached by it
class Costs:
    """What a pass costs on this device, in any one unit of time.

    Attributes:
        verify: by rows of the pass.
        draft: by rows of the block.
        fused: of a pass that verifies and drafts, by (AR rows, diffusion rows in all blocks).
        plain: of an AR step. It can start before the last one is read, so that it costs less than
            a verify pass of one row, which is what is assumed where it was not measured.
        batch: of an AR step of several sequences in one pass, by their number.
        each: what each sequence beyond the first adds to a pass over the same rows.
        drafting: the least that a pass with drafts of several sequences costs, however few rows
            it has, by their number.
    """

    verify: dict[int, float]
    draft: dict[int, float]
    fused: dict[tuple[int, int], float]
    plain: float | None = None
    batch: dict[int, float] = field(default_factory=dict)
    each: float = 0.0
    drafting: dict[int, float] = field(default_factory=dict)

    def of_ar_step(self) -> float:
        """Cost of an AR step."""
        return self.of_verify(1) if self.plain is None else self.plain

    def of_verify(self, rows: int) -> float:
        """Cost of a verify pass: that of the next measured size, as kernels come in steps."""
        return _at(self.verify, rows)

    def of_draft(self, rows: int) -> float:
        """Cost of a draft pass."""
        return _at(self.draft, rows)

    def of_fused(self, rows: int, diff_rows: int) -> float:
        """Cost of a pass that verifies `rows` AR rows and drafts with `diff_rows`."""
        fitting = (c for (a, d), c in self.fused.items() if a >= rows and d >= diff_rows)
        return min(fitting, default=max(self.fused.values()))

    def of_batch_step(self, sequences: int) -> float:
        """Cost of one AR step of so many sequences in one pass."""
        if sequences == 1:
            return self.of_ar_step()
        known = {1: self.of_ar_step(), **self.batch}
        if sequences > max(known):  # no better than by rows
            return max(known[max(known)], self._of_rows(sequences, sequences))
        # One row each is a pass over so many rows too; the dearer figure was measured badly.
        return min(_on_line(known, sequences), self._of_rows(sequences, sequences))

    def of_pass(self, n_ar: int, n_diff: int, sequences: int) -> float:
        """Cost of a pass over the rows of some sequences, AR and diffusion rows in all."""
        return self.of_passes(n_ar + n_diff, n_diff > 0, sequences)[n_ar + n_diff]

    def of_passes(self, most: int, both: bool, sequences: int) -> list[float]:
        """Costs of such passes by their rows, up to `most` or more; with `both` some of each."""
        return self._of_passes(1 << most.bit_length(), both, sequences)

    @functools.lru_cache(maxsize=1 << 10)  # noqa: B019 - few tables live, and as long as the process
    def _of_passes(self, count: int, both: bool, sequences: int) -> list[float]:
        step = self.of_batch_step(sequences)
        factor = self._beside if both else 1.0
        least = max(step, _on_line({1: self.of_ar_step(), **self.drafting}, sequences))
        costs = [max(least, factor * self._of_rows(rows, sequences)) for rows in range(count)]
        if not both:
            costs[sequences] = step
        return costs

    def _of_rows(self, rows: int, sequences: int) -> float:
        """Cost of a verify pass; beyond the largest measured one it grows as the rows do."""
        sizes = self._sizes
        cost = self.verify[sizes[min(bisect.bisect_left(sizes, rows), len(sizes) - 1)]]
        return cost * max(1.0, rows / sizes[-1]) + self.each * (sequences - 1)

    @functools.cached_property
    def _sizes(self) -> list[int]:
        return sorted(self.verify)

    @functools.cached_property
    def _beside(self) -> float:
        """How many times as much rows of both views cost as AR rows alone."""
        both = {rows: cost for rows, cost in self.fused.items() if rows[0] > 1} or self.fused
        ratios = [cost / self.of_verify(a + d) for (a, d), cost in both.items()]
        return max(1.0, statistics.median(ratios)) if ratios else 1.0


def _at(costs: dict[int, float], rows: int) -> float:
    return costs[min((n for n in costs if n >= rows), default=max(costs))]


def _on_line(costs: dict[int, float], n: int) -> float:
    """The cost at `n`, on a line between those measured on both sides of it."""
    sizes = sorted(costs)
    high = min(bisect.bisect_left(sizes, n), len(sizes) - 1)
    few, many = sizes[max(0, high - 1)], sizes[high]
    if few == many or n >= many:
        return costs[many]
    return costs[few] + (costs[many] - costs[few]) * (n - few) / (many - few)


# Used with `calibrate=False`: ratios to an AR step as published for Apple M-series chips.
NOMINAL = Costs(
    verify={1: 1.0, 2: 1.2, 4: 1.3, 8: 1.5, 15: 1.8, 16: 1.95, 32: 2.0, 64: 3.5},
    draft={4: 1.3, 8: 1.5, 15: 1.8, 16: 1.95, 32: 2.0, 64: 3.5},
    fused={
        **{(1, 7): 1.6, (1, 15): 2.05, (1, 31): 2.2},
        **{(5, 10): 2.2, (8, 16): 2.4, (10, 22): 2.5, (16, 32): 3.6, (22, 42): 4.3, (32, 64): 6.5},
    },
    each=0.02,
)


@functools.lru_cache(maxsize=32)
def within(costs: Costs, row_counts: RowCounts) -> Costs:
    """The costs that remain where exact numerics pad every pass to `row_counts`."""
    if not row_counts.verify:
        return costs
    least = row_counts.verify[0]
    # Sizes above the largest measured one could not pay: measuring stops there.
    rows = [n for n in row_counts.verify if n == least or n <= max(costs.verify)]
    pairs = [
        (n_ar, diff)
        for n_ar, diff in row_counts.fused
        if any(a >= n_ar and d >= diff for a, d in costs.fused)
    ]
    return Costs(
        verify={n: costs.of_verify(n) for n in rows},
        draft={n: cost for n, cost in costs.draft.items() if n <= rows[-1]},
        fused={pair: costs.of_fused(*pair) for pair in pairs},
        plain=costs.of_ar_step() + max(0.0, costs.of_verify(least) - costs.of_verify(1)),
        batch=costs.batch,
        each=costs.each,
    )


@functools.lru_cache(maxsize=4096)
def plan_cost(costs: Costs, plan: Plan, n_drafts: int) -> float:
    """Cost of a cycle that verifies `n_drafts` drafts."""
    if plan.is_ar:
        return costs.of_ar_step()
    if plan.block_rows:
        return costs.of_fused(1 + n_drafts, plan.block_rows * plan.blocks)
    draft = costs.of_draft(plan.draft_rows) if plan.draft_rows else 0.0
    return draft + costs.of_verify(1 + n_drafts)


def expected_tokens(rate: float, n_drafts: int) -> float:
    """Tokens that a cycle over `n_drafts` drafts writes, each rejected with chance `rate`."""
    return (1 - (1 - rate) ** (n_drafts + 1)) / rate


# How many times as often drafts of an earlier pass are rejected as those of the cycle's own draft
# pass: from a block that assumed just what was accepted, or less. Measured on two checkpoints.
FRESH, STALE = 1.2, 2.5
MAX_RATE = 0.95


def staleness(plan: Plan, n_drafts: int, accepted: int) -> float:
    """How many times as often the drafts that a finished cycle leaves will be rejected."""
    use = reusable_block(plan, n_drafts, accepted)
    return FRESH if use is not None and use[1] == 1 else STALE


LONG = 1 << 30  # tokens left to write while simulating
# Of as many equally likely cases one chance each, as a logarithm, in an order without a pattern.
CASES = [math.log((n + 0.5) / 100) for n in range(100)]
random.Random(0).shuffle(CASES)


@functools.lru_cache(maxsize=4096)
def speed(costs: Costs, policy: Policy, rate: float) -> float:
    """Expected tokens per unit of time of a policy that drafts (not of "ar").

    The policy's own plans are followed through some cycles. How many drafts are accepted goes
    through `CASES`, so that the result is always the same.

    Args:
        costs: of the policy's passes.
        policy: "two-pass", "one-pass" or "alternating".
        rate: the chance that a draft of a draft pass is rejected; see `staleness` for others.
    """
    tokens, cost, at_hand, stale = 0, 0.0, 0, 1.0
    for chance in CASES:
        verified = False
        while not verified:
            plan, price, left = _cycle(costs, policy, at_hand)
            n_drafts, accepted = plan.n_drafts, 0
            if n_drafts:
                rejected = min(MAX_RATE, rate * (1.0 if plan.draft_rows else stale))
                accepted = min(n_drafts, int(chance / math.log1p(-rejected)))
            tokens += 1 + accepted
            cost += price
            (at_hand, stale), verified = left[accepted], n_drafts > 0
    return tokens / cost


@functools.lru_cache(maxsize=1 << 14)
def _cycle(
    costs: Costs, policy: Policy, at_hand: int
) -> tuple[Plan, float, list[tuple[int, float]]]:
    """A policy's cycle, its cost, and the drafts left (how many, their `staleness`) by accepted."""
    plan, left = policy.plan(LONG, at_hand), list[tuple[int, float]]()
    for accepted in range(plan.n_drafts + 1):
        use = reusable_block(plan, plan.n_drafts, accepted)
        more = 0 if use is None else max(0, plan.block_rows - use[1])
        left.append((more, staleness(plan, plan.n_drafts, accepted)))
    return plan, plan_cost(costs, plan, plan.n_drafts), left


def trial_loss(costs: Costs, plan: Plan) -> float:
    """AR steps that a trial starting with `plan` loses if every draft is rejected."""
    lost = plan_cost(costs, plan, plan.n_drafts) / costs.of_ar_step() - 1
    if plan.block_rows and not plan.n_drafts:  # its drafts are verified by the next pass
        lost += costs.of_verify(plan.block_rows) / costs.of_ar_step() - 1
    return max(0.0, lost)


# Rejection rates from text that a model knows by heart to text that is hardly worth drafting.
RATES = (0.01, 0.03, 0.06, 0.1, 0.15, 0.22, 0.33, 0.5)


@functools.lru_cache(maxsize=32)
def policies(costs: Costs, cycle: str, block_size: int) -> tuple[Policy, ...]:
    """The policies worth choosing from: those that are the fastest at one of `RATES`.

    Args:
        costs: every pass of a policy must have been measured.
        cycle: "two-pass", "one-pass" (alternating too), "alternating", or "auto" for all.
        block_size: rows of the largest block.
    """
    found: list[Policy] = []
    if cycle in ("two-pass", "auto"):
        found += [Policy("two-pass", n - 1) for n in costs.draft]
    for n_ar, diff_rows in costs.fused:
        for blocks in (1, 2):
            length = diff_rows // blocks
            # The last guess of a whole block is not used, and one is always overtaken.
            most = min(length, block_size - 1) - 1
            if n_ar == blocks == 1 and cycle != "two-pass":
                n_drafts = min(most, max(costs.verify) - 1)
                found.append(Policy("alternating", n_drafts, length))
            elif n_ar > 1 and cycle in ("one-pass", "auto") and diff_rows == blocks * length:
                found.append(Policy("one-pass", min(n_ar - 1, most), length, blocks))
    fitting = [
        p for p in found if p.n_drafts > 0 and max(p.n_drafts + 1, p.block_rows) <= block_size
    ]
    fitting.sort(key=lambda p: -p.n_drafts)  # equally fast: the longer block, trained better
    paying = [p for p in fitting if speed(costs, p, RATES[0]) * costs.of_ar_step() > 1]
    best = {max(paying, key=lambda p: speed(costs, p, rate)): None for rate in RATES if paying}
    return tuple(best)

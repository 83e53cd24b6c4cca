"""One budget of rows for the sequences that share a pass: whose drafts are worth their rows.

Each sequence has its AR row. A draft row is worth the chance that it stands; it costs what one more
row adds to the pass. A block beside the AR row is worth what its drafts will be in the next pass.
With many sequences a row more adds about as much as a row of another sequence would, and all of
them take plain steps by themselves.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .cost_model import FRESH, MAX_RATE, Costs
from .engine import ALONE
from .plan import ANY_ROWS, AR_STEP, DIFFUSION, FORCED, Plan
from .scheduler import Adaptive, Evidence
from .sequence import Asked, Outcome

LEAST = 0.02  # chance of a draft to stand, below which it is not looked at


class Block(NamedTuple):
    """A block that a sequence, or each of several, could draft beside its AR row.

    Attributes:
        rows: of the block.
        n_drafts: of its drafts that the next pass would verify.
        gain: tokens expected of these, less what both passes cost more, in tokens.
        steps: what both passes cost more, in plain batch steps.
        rate: `gain` for each unit of what both passes cost; a loss as it is.
    """

    rows: int
    n_drafts: int
    gain: float
    steps: float
    rate: float


class RowBudget:
    """Plans the passes of several sequences together; alone, a sequence's own scheduler plans.

    So it does in exact numerics, whose passes are others. Sequences whose scheduler is not
    `Adaptive` do as they were told; their rows are part of what a plain step costs. Passes verify,
    or draft beside their AR rows: a draft pass of its own would keep those waiting that do not.

    Two bounds hold. The tokens a second of the batch, by the measured costs: what drafting gains or
    loses on plain batch steps goes to one account, and no drafting starts beyond a debt of
    `MAX_DEBT` shared by all. And the wait of each stream: a pass takes no more than `PATIENCE`
    plain batch steps for each token that a stream in it can expect.

    Attributes:
        credit: plain batch steps that drafting has gained, and may lose again.
        evidence: of all texts so far, from which a new one starts.
        forgotten: whether what passes cost was known, and is to be asked for again.
    """

    PATIENCE = 1.3
    MAX_CREDIT, MAX_DEBT, INCOME = Adaptive.MAX_CREDIT, Adaptive.MAX_DEBT, Adaptive.INCOME
    RESERVE = Adaptive.RESERVE

    def __init__(self, costs: Callable[[], Costs]):
        self._given = costs
        self._costs: Costs | None = None
        self.forgotten = False
        self.credit = 0.0
        self.evidence = Evidence()

    def measure(self) -> Costs:
        """What passes cost; asked for once two sequences share one."""
        if self._costs is None:
            self._costs, self.forgotten = self._given(), False
        return self._costs

    def forget(self) -> None:
        """Ask again what passes cost, where it was asked before."""
        self.forgotten, self._costs = self.forgotten or self._costs is not None, None

    def plan(self, asked: Sequence[Asked]) -> list[Plan]:
        """One plan for each."""
        shared, others = _parted(asked)
        of_pass = _Pass(self, [asked[n] for n in shared]).plans() if shared else []
        alone = ALONE.plan([asked[n] for n in others])
        plans = dict(zip([*shared, *others], [*of_pass, *alone], strict=True))
        return [plans[n] for n in range(len(asked))]

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Count what each sequence's drafts showed, and what all gained on plain batch steps."""
        shared, others = _parted(outcomes)
        ALONE.observe([outcomes[n] for n in others])
        if shared:
            self._observe_pass([outcomes[n] for n in shared])

    def _observe_pass(self, outcomes: Sequence[Outcome]) -> None:
        costs, count = self.measure(), len(outcomes)
        rows, plain_rows, tokens, drafted = [0, 0], [0, 0], 0, False
        for sequence, plan, n_drafts, accepted, chances in outcomes:
            adaptive = isinstance(sequence.scheduler, Adaptive)
            for total, own in ((rows, True), (plain_rows, not adaptive)):
                total[0] += 1 + n_drafts * own
                total[1] += plan.block_rows * plan.blocks * own
            if isinstance(sequence.scheduler, Adaptive):
                tokens += accepted
                drafted = drafted or not plan.is_ar
                stale = sequence.scheduler.staleness_of(plan)
                sequence.scheduler.learn(plan, n_drafts, accepted, chances)
                if n_drafts:
                    self.evidence.add(plan.source, n_drafts, accepted, stale)
            else:
                sequence.scheduler.observe(plan, n_drafts, accepted, chances)
        gain = self.INCOME / count
        if drafted:
            plain, cost = (costs.of_pass(ar, diff, count) for ar, diff in (plain_rows, rows))
            gain = tokens / count - (cost - plain) / plain
        self.credit = min(self.MAX_CREDIT, self.credit + gain)


def _parted(given: Sequence[Asked] | Sequence[Outcome]) -> tuple[list[int], list[int]]:
    """Places of those that share a pass and are planned together, and of all others.

    In exact numerics a sequence has other passes.
    """
    every = range(len(given))
    free = [n for n in every if given[n].sequence.request.row_counts == ANY_ROWS]
    adaptive = any(isinstance(given[n].sequence.scheduler, Adaptive) for n in free)
    shared = free if len(free) > 1 and adaptive else []
    return shared, [n for n in every if n not in shared]


@functools.lru_cache(maxsize=1 << 12)
def standing(rates: tuple[float, float], count: int) -> tuple[float, ...]:
    """Chances that the first draft stands, the first two do, and so on; none that hardly do."""
    low, high = rates
    every = (((1 - low) ** j + (1 - high) ** j) / 2 for j in range(1, count + 1))
    return tuple(itertools.takewhile(lambda chance: chance > LEAST, every))


class _Pass:
    """One pass that is being planned. What no limit of its cost changes is worked out once.

    Attributes:
        told, free: plans that were made already, and the schedulers of all others.
        lengths: rows that a block beside an AR row may have.
        doubts, fresh: of a block's drafts, both rejection rates added up, and chances to stand.
        sources: of the best drafts at hand.
        spare: draft rows to choose from (less the chance to stand, place, sequence), best first;
            before them the first `begun` ones, of those that drafted a block to learn of it.
        speeds: tokens per unit of cost with 0, 1, 2, ... of them.
        alone, beside: costs of the pass with 0, 1, 2, ... rows more, without and with blocks.
    """

    def __init__(self, budget: RowBudget, asked: Sequence[Asked]):
        self.budget, self.asked, costs = budget, asked, budget.measure()
        self.told: dict[int, Plan] = {}
        self.free: dict[int, Adaptive] = {}
        for i, ask in enumerate(asked):
            scheduler = ask.sequence.scheduler
            if isinstance(scheduler, Adaptive):
                self.free[i] = scheduler
            else:
                self.told[i] = scheduler.plan(ask.room, ask.at_hand)
        found = {diff for n_ar, diff in costs.fused if n_ar == 1}
        self.lengths = sorted(n for n in found or costs.draft if n > 1)
        longest = max(self.lengths, default=1)
        # 1. What drafts are worth.
        self.prior = functools.cache(budget.evidence.prior)
        self.doubts, self.fresh = dict[int, float](), dict[int, tuple[float, ...]]()
        self.sources = dict[int, str]()
        begun, spare = list[tuple[float, int, int]](), list[tuple[float, int, int]]()
        for i, scheduler in self.free.items():
            rates = self.rates(i, DIFFUSION, FRESH)
            self.doubts[i], self.fresh[i] = sum(rates), standing(rates, longest - 1)
            rows = [(-chance, j, i) for j, chance in enumerate(self.best_at_hand(i), start=1)]
            if rows and scheduler.in_flight and self.sources[i] == DIFFUSION:
                # It was drafted to learn of it: one row tells the most for the least.
                begun.append(rows.pop(0))
            spare += rows
        self.begun, self.spare = len(begun), [*sorted(begun), *sorted(spare)]
        # 2. What rows cost.
        told, count = self.told.values(), len(asked)
        diff = sum(plan.block_rows * plan.blocks for plan in told)
        least = count + sum(plan.n_drafts for plan in told) + diff
        most = least + len(self.spare) + count * longest
        self.alone = costs.of_passes(most, diff > 0, count)[least:]
        self.beside = costs.of_passes(most, True, count)[least:]
        chances = (chance for chance, _, _ in self.spare)
        tokens = itertools.accumulate(chances, operator.sub, initial=count)
        self.speeds = [t / cost for t, cost in zip(tokens, self.alone, strict=False)]

    def cost(self, ar: int, diff: int = 0) -> float:
        """Cost of the pass with so many rows more."""
        return (self.beside if diff else self.alone)[ar + diff]

    def rates(self, i: int, source: str, stale: float) -> tuple[float, float]:
        """The rejection rate of a source's drafts, low and high."""
        low, high = self.free[i].evidence.rates(source, self.prior(source))
        return min(MAX_RATE, stale * low), min(MAX_RATE, stale * high)

    def best_at_hand(self, i: int) -> tuple[float, ...]:
        """The chances of the drafts at hand that are worth most, each that all up to it stand."""
        ask, budget, best = self.asked[i], self.budget, tuple[float, ...]()
        owing = budget.credit <= -budget.MAX_DEBT
        for source, count in ask.at_hand.items():
            if owing and source not in (DIFFUSION, FORCED):
                continue
            stale = self.free[i].staleness_of(Plan(n_drafts=1, source=source))
            count = min(count, ask.room - 1)
            # Rounded up, so that few are worked out.
            found = standing(self.rates(i, source, stale), 1 << count.bit_length())[:count]
            if sum(found) > sum(best):
                best, self.sources[i] = found, source
        return best

    def plans(self) -> list[Plan]:
        """The plans of all; where one stream gets nothing, all wait no longer than it may."""
        hope = min(self.hope(i) for i in self.free)
        plans = self.fill(self.budget.PATIENCE * hope * self.alone[0])
        if hope > 1 and any(plan.is_ar for plan in plans):
            plans = self.fill(self.budget.PATIENCE * self.alone[0])
        return plans

    def hope(self, i: int) -> float:
        """Tokens a pass that a stream can expect where it drafts in one and verifies in one."""
        fitting = bisect.bisect_right(self.lengths, self.asked[i].room)
        block = self.lengths[fitting - 1] if fitting else 1
        verified = 1 + sum(self.fresh[i][: block - 1])
        return (1 + verified) / 2

    def fill(self, limit: float) -> list[Plan]:
        """Spend rows while they pay, up to a cost of `limit`."""
        plans = {**self.told, **dict.fromkeys(self.free, AR_STEP)}
        ar, speed = self.verify(plans, limit)
        self.draft(plans, limit, ar, speed)
        return [plans[i] for i in range(len(self.asked))]

    def verify(self, plans: dict[int, Plan], limit: float) -> tuple[int, float]:
        """Take draft rows in falling chance to stand: how many, and the tokens per unit of cost."""
        prices = self.alone[1 : len(self.speeds)]
        fitting = next((n for n, cost in enumerate(prices) if cost > limit), len(prices))
        best = max(range(min(self.begun, fitting), fitting + 1), key=self.speeds.__getitem__)
        taken = {i: j for _, j, i in self.spare[:best]}
        plans.update({i: Plan(n_drafts=j, source=self.sources[i]) for i, j in taken.items()})
        return best, self.speeds[best]

    def draft(self, plans: dict[int, Plan], limit: float, ar: int, speed: float) -> None:
        """Add blocks beside the AR rows of those that verify nothing: to each, or to all at once.

        Costs come in steps, so blocks for all can pay where none does by itself.
        """
        budget, diff, later, gain = self.budget, 0, 0, 0.0
        idle = [i for i in self.free if plans[i].is_ar and self.asked[i].room > 2]
        idle.sort(key=lambda i: self.doubts[i])
        owing = budget.credit <= -budget.MAX_DEBT / len(self.asked)
        tried, found = False, dict[int, int]()
        for i in idle:
            tokens = list(itertools.accumulate(self.fresh[i][: self.asked[i].room - 2]))
            block = self.best_block(tokens, 1, limit, ar, diff, later, speed)
            if block is None:
                continue
            trial = block.gain <= 0
            if trial and (tried or budget.credit <= budget.RESERVE * block.steps):
                continue
            if trial or not owing:
                found[i], tried = block.rows, tried or trial
                diff, later = diff + block.rows, later + block.n_drafts
                gain += block.gain
        patience = budget.PATIENCE * self.alone[0]
        waiting = sum(plan.is_ar for plan in plans.values())  # as long as they have no block
        if len(found) < waiting and self.cost(ar, diff) > patience:
            found, diff, later, gain = {}, 0, 0, 0.0
        limit = limit if len(idle) == waiting else min(limit, patience)
        if len(idle) > 1 and not owing:
            fresh = itertools.zip_longest(*(self.fresh[i] for i in idle), fillvalue=0.0)
            shortest = min(self.asked[i].room - 2 for i in idle)
            tokens = list(itertools.accumulate(map(sum, fresh)))[:shortest]
            together = self.best_block(tokens, len(idle), limit, ar, 0, 0, speed)
            rate = gain / (self.cost(ar, diff) + self.cost(later))
            if together is not None and together.rate > max(0.0, rate):
                found = dict.fromkeys(idle, together.rows)
        plans.update({i: Plan(block_rows=rows) for i, rows in found.items()})

    def best_block(
        self,
        tokens: Sequence[float],
        count: int,
        limit: float,
        ar: int,
        diff: int,
        later: int,
        speed: float,
    ) -> Block | None:
        """The block that gains most in its time; None if none fits.

        Args:
            tokens: that the next pass is to bring by verifying 1, 2, ... drafts of each block.
            count: sequences that would draft one.
            limit: cost of the pass at most.
            ar: AR rows that it has besides.
            diff: diffusion rows that it has besides.
            later: draft rows that the next pass has besides.
            speed: tokens for each unit of cost, without it.
        """
        best, n = None, 0
        before, verified = self.cost(ar, diff), self.cost(later)
        verifying = self.alone[later + count : later + count * len(tokens) + 1 : count]
        # What n drafts are worth does not depend on the length of their block.
        worth = [t - speed * cost for t, cost in zip(tokens, verifying, strict=True)]
        for rows in self.lengths if worth else ():
            now = self.beside[ar + diff + count * rows]
            if now > limit:
                break
            n = max(range(n, min(rows - 1, len(worth))), key=worth.__getitem__, default=n)
            more = now - before + verifying[n] - verified
            gain = tokens[n] - speed * more
            rate = gain / (now + verifying[n]) if gain > 0 else gain
            if best is None or rate > best.rate:
                best = Block(rows, n + 1, gain, more / self.alone[0], rate)
        return best

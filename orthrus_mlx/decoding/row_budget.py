"""One budget of rows for the sequences that share a pass: whose drafts are worth their rows.

Each sequence has its AR row. A draft row is worth the chance that it stands; it costs what one more
row adds to the pass. A block beside the AR row is worth what its drafts will be in the next pass.
With many sequences a row more adds about as much as a row of another sequence would, and all of
them take plain steps by themselves.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .cost_model import FRESH, MAX_RATE, Costs
from .engine import ALONE
from .plan import ANY_ROWS, AR_STEP, DIFFUSION, FORCED, Plan
from .scheduler import Adaptive, Evidence
from .sequence import Asked, Outcome
from .sequence import Sequence as Text

LEAST = 0.02  # chance of a draft to stand, below which it is not looked at


class Block(NamedTuple):
    """A block that a sequence, or each of several, could draft beside its AR row.

    Attributes:
        rows: of the block.
        n_drafts: of its drafts that the next pass would verify.
        gain: tokens expected of these, less what both passes cost more, in tokens.
        steps: what both passes cost more, in plain batch steps.
    """

    rows: int
    n_drafts: int
    gain: float
    steps: float


class RowBudget:
    """Plans the passes of several sequences together; alone, a sequence's own scheduler plans.

    Sequences whose scheduler is not `Adaptive` do as they were told; their rows are counted.
    Passes verify, or draft beside their AR rows: a draft pass of its own would keep those waiting
    that do not draft.

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
        if not _shared([ask.sequence for ask in asked]):
            return ALONE.plan(asked)
        return _Pass(self, asked).plans()

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Count what each sequence's drafts showed, and what all gained on plain batch steps."""
        if not _shared([outcome.sequence for outcome in outcomes]):
            ALONE.observe(outcomes)
            return
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
            plain = costs.of_pass(*plain_rows, count)
            gain = tokens / count - (costs.of_pass(*rows, count) - plain) / plain
        self.credit = min(self.MAX_CREDIT, self.credit + gain)


def _shared(sequences: Sequence[Text]) -> bool:
    """Whether these sequences are planned together."""
    return (
        len(sequences) > 1
        and any(isinstance(s.scheduler, Adaptive) for s in sequences)
        and all(s.request.row_counts == ANY_ROWS for s in sequences)
    )


@functools.lru_cache(maxsize=1 << 12)
def standing(low: float, high: float, count: int) -> tuple[float, ...]:
    """Chances that the first draft stands, the first two do, and so on; none that hardly do."""
    every = (((1 - low) ** j + (1 - high) ** j) / 2 for j in range(1, count + 1))
    return tuple(itertools.takewhile(lambda chance: chance > LEAST, every))


class _Pass:
    """One pass that is being planned."""

    def __init__(self, budget: RowBudget, asked: Sequence[Asked]):
        self.budget, self.asked, self.costs = budget, asked, budget.measure()
        self.told: dict[int, Plan] = {}
        self.free: dict[int, Adaptive] = {}
        for i, ask in enumerate(asked):
            scheduler = ask.sequence.scheduler
            if isinstance(scheduler, Adaptive):
                self.free[i] = scheduler
            else:
                self.told[i] = scheduler.plan(ask.room, ask.at_hand)
        told = self.told.values()
        self.n_ar = len(asked) + sum(plan.n_drafts for plan in told)
        self.n_diff = sum(plan.block_rows * plan.blocks for plan in told)
        self.plain = self.cost()

    def cost(self, ar: int = 0, diff: int = 0) -> float:
        """Cost of the pass with so many rows more."""
        return self.costs.of_pass(self.n_ar + ar, self.n_diff + diff, len(self.asked))

    def plans(self) -> list[Plan]:
        """The plans of all; where one stream gets nothing, all wait no longer than it may."""
        hopes = [self.hope(i) for i in range(len(self.asked))]
        plans = self.fill(self.budget.PATIENCE * min(hopes) * self.plain)
        idle = any(plans[i].is_ar for i in self.free)
        if idle and min(hopes) > 1:
            plans = self.fill(self.budget.PATIENCE * self.plain)
        return plans

    def hope(self, i: int) -> float:
        """Tokens a pass that a stream can expect where it drafts in one and verifies in one."""
        if i not in self.free:
            return float("inf")  # it drafts because it was told to
        block = max((n for n in self.lengths() if n <= self.asked[i].room), default=1)
        verified = 1 + sum(self.chances(i, DIFFUSION, FRESH, block - 1))
        return (1 + verified) / 2

    def rate(self, i: int, source: str, stale: float) -> tuple[float, float]:
        """The rejection rate of a source's drafts, low and high."""
        prior = self.budget.evidence.prior(source)
        low, high = self.free[i].evidence.rates(source, prior)
        return min(MAX_RATE, stale * low), min(MAX_RATE, stale * high)

    def chances(self, i: int, source: str, stale: float, count: int) -> tuple[float, ...]:
        """The chance of each draft that it and all before it stand."""
        return standing(*self.rate(i, source, stale), count)

    def lengths(self) -> list[int]:
        """Rows that a block beside an AR row may have."""
        found = {diff for n_ar, diff in self.costs.fused if n_ar == 1}
        return sorted(found or set(self.costs.draft))

    def fill(self, limit: float) -> list[Plan]:
        """Spend rows while they pay, up to a cost of `limit`."""
        plans = {**self.told, **dict.fromkeys(self.free, AR_STEP)}
        ar, speed = self.verify(plans, limit)
        self.draft(plans, limit, ar, speed)
        return [plans[i] for i in range(len(self.asked))]

    def verify(self, plans: dict[int, Plan], limit: float) -> tuple[int, float]:
        """Take draft rows in falling chance to stand: how many, and the tokens per unit of cost."""
        rows: list[tuple[float, int, int]] = []  # less the chance, place, sequence
        sources: dict[int, str] = {}
        for i, scheduler in self.free.items():
            ask, best = self.asked[i], tuple[float, ...]()
            for source, count in ask.at_hand.items():
                owing = self.budget.credit <= -self.budget.MAX_DEBT
                if owing and source not in (DIFFUSION, FORCED):
                    continue
                stale = scheduler.staleness_of(Plan(n_drafts=1, source=source))
                count = min(count, ask.room - 1)
                found = self.chances(i, source, stale, count)
                if sum(found) > sum(best):
                    best, sources[i] = found, source
            rows += [(-chance, j, i) for j, chance in enumerate(best, start=1)]
            if best and scheduler.in_flight and sources[i] == DIFFUSION:
                # It was drafted to learn of it: one row tells the most for the least.
                plans[i] = Plan(n_drafts=1)
        taken = sum(plan.n_drafts for i, plan in plans.items() if i in self.free)
        tokens = float(len(self.asked))
        tokens += sum(-chance for chance, j, i in rows if j <= plans[i].n_drafts)
        speed, best_rows = tokens / self.cost(taken), 0
        spare = sorted(row for row in rows if row[1] > plans[row[2]].n_drafts)
        for n, (chance, _, _) in enumerate(spare, start=1):
            tokens -= chance
            cost = self.cost(taken + n)
            if cost > limit:
                break
            if tokens / cost > speed:
                speed, best_rows = tokens / cost, n
        for _, j, i in spare[:best_rows]:
            plans[i] = Plan(n_drafts=j, source=sources[i])
        return taken + best_rows, speed

    def draft(self, plans: dict[int, Plan], limit: float, ar: int, speed: float) -> None:
        """Add blocks beside the AR rows of those that verify nothing: to each, or to all at once.

        Costs come in steps, so blocks for all can pay where none does by itself.
        """
        budget, diff, later, gain = self.budget, 0, 0, 0.0
        idle = [i for i in self.free if plans[i].is_ar and self.asked[i].room > 2]
        idle.sort(key=lambda i: sum(self.rate(i, DIFFUSION, FRESH)))
        owing = budget.credit <= -budget.MAX_DEBT / len(self.asked)
        tried, found = False, dict[int, int]()
        for i in idle:
            block = self.best_block([i], limit, ar, diff, later, speed)
            if block is None:
                continue
            trial = block.gain <= 0
            if trial and (tried or budget.credit <= budget.RESERVE * block.steps):
                continue
            if trial or not owing:
                found[i], tried = block.rows, tried or trial
                diff, later = diff + block.rows, later + block.n_drafts
                gain += max(0.0, block.gain)
        together = self.best_block(idle, limit, ar, 0, 0, speed) if len(idle) > 1 else None
        if together is not None and together.gain > gain and not owing:
            found = dict.fromkeys(idle, together.rows)
        plans.update({i: Plan(block_rows=rows) for i, rows in found.items()})

    def best_block(
        self, each: Sequence[int], limit: float, ar: int, diff: int, later: int, speed: float
    ) -> Block | None:
        """The block of the largest gain for each of these sequences; None if none fits.

        Args:
            each: sequences that would draft one.
            limit: cost of the pass at most.
            ar: AR rows that it has besides.
            diff: diffusion rows that it has besides.
            later: draft rows that the next pass has besides.
            speed: tokens for each unit of cost, without it.
        """
        best: Block | None = None
        before, verified, count = self.cost(ar, diff), self.cost(later), len(each)
        for rows in self.lengths():
            now = self.cost(ar, diff + count * rows)
            if now > limit:
                break
            most = min(rows - 1, *(self.asked[i].room - 2 for i in each))
            chances = [self.chances(i, DIFFUSION, FRESH, most) for i in each]
            tokens = 0.0
            for n, stand in enumerate(itertools.zip_longest(*chances, fillvalue=0.0), start=1):
                tokens += sum(stand)
                more = now - before + self.cost(later + count * n) - verified
                gain = tokens - speed * more
                if best is None or gain > best.gain:
                    best = Block(rows, n, gain, more / self.plain)
        return best

"""Several sequences in one pass: what drafts may cost them, and what pays."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulate_batch import PASSES, simulate, streams_of
from orthrus_mlx.decoding.cost_model import NOMINAL, Costs, policies
from orthrus_mlx.decoding.plan import (
    ANY_ROWS,
    AR_POLICY,
    AR_STEP,
    DIFFUSION,
    Plan,
    Policy,
    RowCounts,
)
from orthrus_mlx.decoding.row_budget import RowBudget
from orthrus_mlx.decoding.scheduler import Adaptive, Fixed
from orthrus_mlx.decoding.sequence import Asked, Outcome
from orthrus_mlx.device.calibrate_batch import batch_costs
from tests import helpers
from tests.lossless.random_models import build

from .test_scheduler import any_costs


def stream(scheduler: Any, row_counts: RowCounts = ANY_ROWS) -> Any:
    """As much of a sequence as a planner reads."""
    return SimpleNamespace(scheduler=scheduler, request=SimpleNamespace(row_counts=row_counts))


def adaptive(costs: Costs = NOMINAL) -> Any:
    return stream(Adaptive(costs, policies(costs, "auto", 32)))


class Streams:
    """Some streams whose drafts are accepted as it is drawn, with what their passes cost."""

    def __init__(self, costs: Costs, count: int, accept: Any):
        self.costs, self.accept = costs, accept
        self.budget = RowBudget(lambda: costs)
        self.streams = [adaptive(costs) for _ in range(count)]
        self.pending = [0] * count
        self.lost = self.dearest = self.longest_idle = 0.0
        self.plain = costs.of_batch_step(count)

    def step(self) -> list[Plan]:
        hands = [{DIFFUSION: n} if n else {} for n in self.pending]
        asked = [Asked(s, 99, hand) for s, hand in zip(self.streams, hands, strict=True)]
        plans = self.budget.plan(asked)
        assert plans == self.budget.plan(asked)  # to ask changes nothing
        n_ar = sum(1 + plan.n_drafts for plan in plans)
        cost = self.costs.of_pass(n_ar, sum(p.block_rows for p in plans), len(plans))
        outcomes = []
        for i, plan in enumerate(plans):
            assert plan.n_drafts <= self.pending[i] and not plan.draft_rows
            accepted = min(plan.n_drafts, next(self.accept))
            outcomes.append(Outcome(self.streams[i], plan, plan.n_drafts, accepted))
            self.pending[i] = max(0, plan.block_rows - 1)
        tokens = sum(1 + outcome.accepted for outcome in outcomes)
        self.lost += cost / self.plain - tokens / len(plans)
        self.dearest = max(self.dearest, cost / self.plain)
        if any(plan.is_ar for plan in plans):
            self.longest_idle = max(self.longest_idle, cost / self.plain)
        self.budget.observe(outcomes)
        return plans


@given(
    any_costs(),
    st.integers(2, 9),
    st.lists(st.sampled_from([0, 0, 0, 1, 4, 20]), min_size=1, max_size=30),
    st.integers(1, 120),
)
def test_a_batch_loses_no_more_than_the_credit_rule_says(
    costs: Costs, count: int, accepted: list[int], steps: int
) -> None:
    """Whatever passes cost and whatever is accepted; and who is given nothing waits no longer."""
    streams = Streams(costs, count, itertools.cycle(accepted))
    for _ in range(steps):
        streams.step()
    bound = RowBudget.MAX_DEBT + RowBudget.INCOME * steps / count + 2 * streams.dearest
    assert streams.lost <= bound
    assert streams.longest_idle <= RowBudget.PATIENCE + 1e-9


def test_hopeless_drafts_are_given_up_and_good_ones_made() -> None:
    draw = random.Random(0)
    hopeless = Streams(NOMINAL, 3, itertools.repeat(0))
    plans = [hopeless.step() for _ in range(200)]
    drafting = sum(not plan.is_ar for step in plans[50:] for plan in step)
    assert drafting < 0.1 * 3 * 150
    good = Streams(NOMINAL, 3, iter(lambda: draw.choice([4, 9, 30]), None))
    plans = [good.step() for _ in range(100)]
    assert sum(not plan.is_ar for step in plans[10:] for plan in step) > 0.8 * 3 * 90
    assert good.lost < -50


def test_many_sequences_take_plain_steps_where_a_row_costs_as_much_as_a_sequence() -> None:
    """A device on which every row takes the same time has nothing to give to drafts."""
    rows = (1, 2, 4, 8, 16, 32, 64)
    costs = Costs(
        {n: float(n) for n in rows},
        {n: float(n) for n in rows},
        {(1, n): 1.0 + n for n in (3, 7, 15)},
        batch={n: float(n) for n in (2, 4, 8, 16)},
    )
    streams = Streams(costs, 8, itertools.repeat(0))
    plans = [streams.step() for _ in range(300)]
    assert sum(not plan.is_ar for step in plans for plan in step) < 60
    assert streams.lost < 5


def test_rows_go_to_those_whose_drafts_stand() -> None:
    costs, budget = NOMINAL, RowBudget(lambda: NOMINAL)
    sure, poor = adaptive(costs), adaptive(costs)
    for _ in range(30):
        sure.scheduler.learn(Plan(draft_rows=16, n_drafts=15), 15, 15)
        poor.scheduler.learn(Plan(draft_rows=16, n_drafts=15), 15, 0)
    for one in (sure, poor):
        one.scheduler.learn(Plan(block_rows=15), 0, 0)
        one.scheduler.in_flight = False
    asked = [Asked(sure, 99, {DIFFUSION: 14}), Asked(poor, 99, {DIFFUSION: 14})]
    first, second = budget.plan(asked)
    assert first.n_drafts > 4 and second.n_drafts == 0


def test_alone_or_told_what_to_do_each_follows_its_own_scheduler() -> None:
    budget = RowBudget(lambda: NOMINAL)
    alone, fixed = adaptive(), stream(Fixed(Policy("two-pass", 7)))
    expected = alone.scheduler.plan(99, {})
    assert budget.plan([Asked(alone, 99, {})]) == [expected]
    plans = budget.plan([Asked(fixed, 99, {}), Asked(adaptive(), 99, {})])
    assert plans[0] == Plan(draft_rows=8, n_drafts=7) and not plans[1].draft_rows
    exact = stream(Adaptive(NOMINAL, policies(NOMINAL, "auto", 32)), RowCounts((4,)))
    assert budget.plan([Asked(exact, 99, {}), Asked(fixed, 99, {})])[0] == expected


def test_one_in_exact_numerics_does_not_part_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has passes of its own; those of the others are planned and counted as without it."""
    exact = stream(Adaptive(NOMINAL, policies(NOMINAL, "auto", 32)), RowCounts((4,)))
    among, without = (Streams(NOMINAL, 3, itertools.cycle([4, 0, 9])) for _ in range(2))
    plan, observe = among.budget.plan, among.budget.observe

    def plan_all(asked: list[Asked]) -> list[Plan]:
        first, own, *others = plan([asked[0], Asked(exact, 99, {}), *asked[1:]])
        assert own == exact.scheduler.plan(99, {})
        return [first, *others]

    monkeypatch.setattr(among.budget, "plan", plan_all)
    monkeypatch.setattr(
        among.budget,
        "observe",
        lambda outcomes: observe([Outcome(exact, AR_STEP, 0, 0), *outcomes]),
    )
    plans = [without.step() for _ in range(30)]
    assert [among.step() for _ in range(30)] == plans
    assert among.budget.credit == without.budget.credit
    assert any(not own.is_ar for step in plans for own in step)


def test_what_passes_cost_is_asked_for_once_and_only_for_several() -> None:
    asked: list[None] = []

    def costs() -> Costs:
        asked.append(None)
        return NOMINAL

    budget, one, two = RowBudget(costs), adaptive(), adaptive()
    budget.plan([Asked(one, 9, {})])
    budget.observe([Outcome(one, AR_STEP, 0, 0)])
    assert not asked
    for _ in range(3):
        budget.plan([Asked(one, 9, {}), Asked(two, 9, {})])
    assert len(asked) == 1


def jumping(count: int) -> Costs:
    """As measured on a GPU: rows are almost free up to 64, and cost twice as much beyond."""
    return Costs(
        {1: 1.5, 8: 1.6, 16: 1.7, 32: 2.3, 64: 2.75, 96: 6.5, 128: 6.5},
        {15: 1.5, 31: 1.6},
        {(1, 3): 2.0, (1, 7): 2.0, (1, 14): 2.1, (1, 15): 2.1, (1, 31): 2.3},
        1.0,
        batch={count: 2.2},
        each=0.2,
        drafting={count: 3.3},
    )


def plans_of(costs: Costs, counts: list[tuple[float, float]]) -> tuple[list[Plan], RowBudget]:
    """What streams do whose drafts were (rejected, tried) so far, with some credit."""
    budget, streams = RowBudget(lambda: costs), [adaptive(costs) for _ in counts]
    for one, seen in zip(streams, counts, strict=True):
        one.scheduler.evidence.counts = {DIFFUSION: seen}
    budget.credit = 6.0
    return budget.plan([Asked(one, 99, {}) for one in streams]), budget


def test_blocks_are_as_long_as_gains_most_in_their_time() -> None:
    """Four blocks of 31 would bring more tokens than four of 15, in three times their time."""
    plans, _ = plans_of(jumping(4), [(0.0, 0.0)] * 4)
    assert [plan.block_rows for plan in plans] == [15] * 4


def test_nobody_waits_for_the_others_blocks_where_blocks_for_all_pay() -> None:
    """Blocks for three of four would keep the last one waiting, and so none would be made."""
    plans, _ = plans_of(jumping(4), [(3.3, 6.0), (4.1, 24.0), (1.1, 12.0), (4.3, 12.0)])
    assert all(plan.block_rows for plan in plans)
    # One that was told not to draft waits as well.
    budget = RowBudget(lambda: jumping(4))
    others = [adaptive(jumping(4)) for _ in range(3)]
    plans = budget.plan([Asked(one, 99, {}) for one in [stream(Fixed(AR_POLICY)), *others]])
    rows = 4 + sum(plan.block_rows for plan in plans)
    assert jumping(4).of_pass(4, rows - 4, 4) <= budget.PATIENCE * jumping(4).of_batch_step(4)
    # Where drafts of none stand, none are made for all at once, whatever credit there is.
    plans, budget = plans_of(jumping(4), [(30.0, 32.0)] * 4)
    assert all(plan.is_ar for plan in plans) and budget.credit == 6.0


@pytest.mark.parametrize("last", ["told", "at its end", "drafted too"])
def test_drafts_in_flight_are_verified_only_where_nobody_waits_for_it(last: str) -> None:
    """A pass over any drafts takes 1.5 plain steps here: too long for one that has none."""
    budget, streams = RowBudget(lambda: jumping(4)), [adaptive(jumping(4)) for _ in range(4)]
    for one in streams:
        one.scheduler.learn(Plan(block_rows=15), 0, 0)
    asked = [Asked(one, 99, {DIFFUSION: 14}) for one in streams]
    if last != "drafted too":
        other = stream(Fixed(AR_POLICY)) if last == "told" else adaptive(jumping(4))
        asked[3] = Asked(other, 1, {})
    verified = [plan.n_drafts for plan in budget.plan(asked)]
    assert all(verified) if last == "drafted too" else not any(verified)


@pytest.mark.parametrize("label", PASSES)
@pytest.mark.parametrize("count", [2, pytest.param(16, marks=pytest.mark.full)])
def test_on_mac_costs_a_batch_with_drafts_is_no_slower_than_a_plain_one(
    label: str, count: int
) -> None:
    for names in (("prose",), ("JSON", "prose")):
        speed, wait = simulate(label, streams_of(names, count), 128, 2)
        assert speed > 0.97
        assert wait <= RowBudget.PATIENCE


def test_costs_of_several_sequences_are_measured_and_kept(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path))
    config = helpers.random_config(block_size=8, max_position_embeddings=512, vocab_size=67)
    model = build(config, helpers.random_weights(config))
    seen: list[tuple[int, int]] = []
    costs = batch_costs(model, 8, lambda done, total: seen.append((done, total)))
    assert set(costs.batch) == {2, 4, 8, 16} and min(costs.batch.values()) > 0 <= costs.each
    assert seen[-1][0] == seen[-1][1]
    monkeypatch.setattr("orthrus_mlx.device.calibrate_batch.calibrate_batch", None)
    again = batch_costs(model, 8)
    assert (again.batch, again.verify, again.each) == (costs.batch, costs.verify, costs.each)
    assert again.drafting == costs.drafting and set(costs.drafting) == set(costs.batch)


def test_between_the_measured_numbers_of_sequences_costs_lie_on_a_line() -> None:
    costs = Costs({1: 1.0, 8: 2.0}, {}, {}, batch={2: 1.2, 4: 1.6}, each=0.1)
    assert [costs.of_batch_step(n) for n in (1, 2, 3, 4)] == pytest.approx([1.0, 1.2, 1.4, 1.6])
    assert costs.of_batch_step(8) == pytest.approx(2.7)  # by rows, and seven sequences more
    assert costs.of_pass(3, 0, 3) == pytest.approx(1.4)
    assert costs.of_pass(5, 0, 3) == pytest.approx(2.2)
    assert costs.of_pass(16, 0, 1) == pytest.approx(4.0)  # beyond what was measured, as the rows


def test_a_pass_with_drafts_costs_no_less_than_the_smallest_measured_one() -> None:
    costs = Costs({1: 1.0, 8: 1.2, 64: 4.0}, {}, {}, batch={2: 1.1}, each=0.1, drafting={2: 2.5})
    assert costs.of_pass(2, 0, 2) == pytest.approx(1.1)  # a plain step has none
    assert costs.of_pass(2, 6, 2) == costs.of_pass(8, 0, 2) == pytest.approx(2.5)
    assert costs.of_pass(2, 30, 2) == pytest.approx(4.1)  # more rows cost what they do
    costs = replace(costs, batch={2: 1.1, 4: 1.3}, drafting={2: 1.5, 4: 2.5})
    assert costs.of_pass(4, 0, 3) == pytest.approx(2.0)  # between both, as plain steps are

"""`Auto` settles on the fastest policy, backs off cheaply where drafts fail, and recovers."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.simulate import (
    COSTS,
    CYCLE_COST,
    LONGEST,
    SPEED_UPS,
    Kind,
    Text,
    cycles,
    mean_speed_up,
)
from orthrus_mlx.decoding.cost_model import Costs, contenders, outlook, plan_cost, policy_speed
from orthrus_mlx.decoding.plan import AR_POLICY, AR_STEP, Plan, Policy, RowCounts, reusable_block
from orthrus_mlx.decoding.scheduler import Auto, Fixed, make_scheduler, policies
from orthrus_mlx.device.measured import NOMINAL, within

METAL = COSTS["bf16 0.31.2"]


def auto(costs: Costs = METAL, cycle: Any = "auto") -> Auto:
    return Auto(costs, policies(costs, cycle, LONGEST))


def pending_after(plan: Plan, n_drafts: int, accepted: int) -> int:
    """Guesses that a cycle leaves for the next."""
    use = reusable_block(plan, n_drafts, accepted)
    return 0 if use is None else max(0, plan.block_rows - use[1])


def run(scheduler: Auto, budget: int, accepted: Any) -> tuple[list[Plan], float]:
    """Plans and cost of `budget` tokens; `accepted(place)` drafts stand in a cycle begun there."""
    pending, place, spent = 0, 0, 0.0
    plans: list[Plan] = []
    while place < budget:
        plan = scheduler.plan(budget - place, pending)
        n_drafts = plan.n_drafts if plan.draft_rows else min(pending, plan.n_drafts)
        stood = min(n_drafts, accepted(place))
        scheduler.observe(plan, n_drafts, stood)
        spent += plan_cost(scheduler.costs, plan, n_drafts)
        plans.append(plan)
        pending = pending_after(plan, n_drafts, stood)
        place += stood + 1
    return plans, spent


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.75, 0.85, 0.93, 0.99])
@pytest.mark.parametrize("name", [*COSTS, "nominal"])
def test_it_settles_within_reach_of_the_fastest_policy(rate: float, name: str) -> None:
    """Constant acceptance; the oracle compares the expected speed of every policy.

    Drafts made a cycle ahead stand as often as others here, which the schedule does not expect.
    """
    costs = NOMINAL if name == "nominal" else COSTS[name]
    ways = [AR_POLICY, *policies(costs, "auto", LONGEST)]
    outlooks: Any = dict.fromkeys(Auto.OFTENER, outlook([rate] * 64))
    best = max(policy_speed(costs, policy, outlooks) for policy in ways)
    rng, spent = random.Random(1), 0.0

    def geometric(place: int) -> int:
        stood = 0
        while rng.random() < rate and stood < 64:
            stood += 1
        return stood

    for _ in range(4):
        spent += run(auto(costs), 2000, geometric)[1]
    assert 8000 / spent >= 0.7 * best  # near break-even; elsewhere above 0.95


@pytest.mark.parametrize("cycle", ["auto", "two-pass", "one-pass"])
@pytest.mark.parametrize("name", COSTS)
def test_failing_drafts_cost_at_most_three_percent(name: str, cycle: Any) -> None:
    plans, spent = run(auto(COSTS[name], cycle), 1000, lambda place: 0)
    assert spent <= 1030
    assert any(not plan.is_ar for plan in plans[500:])  # it still tries


@given(
    st.sampled_from([*COSTS.values(), NOMINAL]),
    st.sampled_from(["auto", "two-pass", "one-pass"]),
    st.lists(st.integers(0, 31), min_size=1, max_size=80),
    st.integers(1, 400),
)
@example(COSTS["bf16 0.32.1"], "auto", [0, 0, 0, 0, 0, 0, 2], 400)  # 80 without a bound
@example(COSTS["bf16 0.32.1"], "auto", [0, 0, 1], 400)
@settings(deadline=None, max_examples=60)
def test_no_text_loses_more_than_the_debt(
    costs: Costs, cycle: Any, accepted: list[int], budget: int
) -> None:
    """Never slower than plain decoding, but for what is stated: whatever drafts stand, where."""
    scheduler = auto(costs, cycle)
    pattern = itertools.cycle(accepted)
    plans, spent = run(scheduler, budget, lambda place: next(pattern))
    plain = sum(plan.is_ar for plan in plans)
    dearest = max(plan_cost(costs, plan, plan.n_drafts) for plan in plans)
    lost = spent / costs.of_ar_step() - budget
    # Two passes may have begun by then: one that drafts ahead, and one that verifies that.
    allowed = Auto.MOST_DEBT + Auto.INCOME * plain
    assert lost <= allowed + 2 * dearest / costs.of_ar_step()


@pytest.mark.parametrize("dear", [4.5, 5.5, 6.5])
def test_the_dearer_a_trial_the_later_it_comes(dear: float) -> None:
    """Where drafts are not expected to pay, and two passes cost `dear` steps more than one."""
    costs = Costs(verify={1: 1.0, 8: dear}, draft={8: 1.0}, fused={})
    scheduler = auto(costs, "two-pass")
    assert scheduler.policies and not scheduler.pays
    plans, _ = run(scheduler, 2000, lambda place: 0)
    trials = [n for n, plan in enumerate(plans) if not plan.is_ar]
    # A trial takes what the income of that many steps pays back.
    between = dear / Auto.INCOME
    assert trials[0] == pytest.approx(Auto.COVER * between, abs=2)
    assert np.diff(trials) == pytest.approx(between, abs=2)


@pytest.mark.parametrize("cycle", ["auto", "two-pass", "one-pass"])
@pytest.mark.parametrize("name", COSTS)
def test_it_recovers_when_the_text_turns_easy(name: str, cycle: Any) -> None:
    scheduler = auto(COSTS[name], cycle)
    _, hard = run(scheduler, 600, lambda place: 0)
    plans, easy = run(scheduler, 1200, lambda place: 12)
    assert scheduler.pays
    since = next(n for n, plan in enumerate(plans) if not plan.is_ar)
    assert since < 400
    assert all(not plan.is_ar for plan in plans[since + 20 : -2])
    assert easy < 1200 < hard * 3


@pytest.mark.parametrize("name", COSTS)
def test_the_end_of_a_budget_is_no_certain_loss(name: str) -> None:
    costs = COSTS[name]
    for budget in range(1, 12):
        scheduler = auto(costs, "two-pass")
        scheduler.pays = True
        plan = scheduler.plan(budget, 0)
        assert plan_cost(costs, plan, plan.n_drafts) <= 1 + plan.n_drafts
    assert not scheduler.plan(100, 0).is_ar


def test_it_backs_off_when_the_text_turns_hard() -> None:
    scheduler = auto()
    run(scheduler, 1000, lambda place: 12)
    plans, spent = run(scheduler, 1000, lambda place: 0)
    assert spent < 1120
    assert sum(plan.is_ar for plan in plans) > 0.9 * len(plans)


def test_it_never_rules_out_that_the_text_changes() -> None:
    scheduler = auto()
    assert scheduler.texts() == pytest.approx(Auto.COMMON)
    for _ in range(300):
        scheduler.observe(Plan(16, 15), 15, 0)
    after, before = np.array(scheduler.texts()), np.array(Auto.COMMON)
    assert after.sum() == pytest.approx(1)
    assert all(after[:-1] < before[:-1]) and after[-1] > before[-1]
    assert all(after >= 0.05 * before)


def test_what_was_shown_ages_with_plain_steps() -> None:
    scheduler = auto()
    for _ in range(20):
        scheduler.observe(Plan(16, 15), 15, 0)
    assert not scheduler.pays
    steps = 0
    while not scheduler.pays:
        assert scheduler.plan(10_000, 0).is_ar
        steps += 1
    assert 50 < steps < 800  # what is common pays on these costs


@given(
    st.lists(
        st.tuples(st.sampled_from(["two-pass", "fresh", "stale"]), st.integers(0, 7)), max_size=6
    )
)
@settings(deadline=None, max_examples=30)
def test_kinds_of_text_are_told_by_bayes_rule(seen: list[tuple[Any, int]]) -> None:
    """Against the sum over every pattern of right and wrong drafts, at full trust and memory."""

    class Believing(Auto):
        KEEP, TRUST, TURNS = 1.0, 1.0, 0.0

    scheduler = Believing(METAL, policies(METAL, "auto", LONGEST))
    likely = np.array(Auto.COMMON)
    for source, accepted in seen:
        scheduler.pending = source
        plan = Plan(8, 7) if source == "two-pass" else Plan(n_drafts=7)
        scheduler.observe(plan, 7, accepted)
        for kind, falls in enumerate(np.minimum(0.95, np.array(Auto.FALLS) * Auto.OFTENER[source])):
            patterns = itertools.product([True, False], repeat=7)
            likely[kind] *= sum(
                math.prod(1 - falls if right else falls for right in pattern)
                for pattern in patterns
                if [*pattern, False].index(False) == accepted
            )
    assert scheduler.texts() == pytest.approx(likely / likely.sum())


@given(st.lists(st.integers(0, 15), min_size=1, max_size=10), st.booleans())
@settings(deadline=None, max_examples=30)
def test_the_policy_is_the_best_by_an_exhaustive_search(seen: list[int], ahead: bool) -> None:
    """Of all policies that could win, by what is expected on the mixture of texts."""
    scheduler = auto()
    for accepted in seen:
        scheduler.observe(Plan(16, 15), 15, accepted)
    if ahead:
        scheduler.current = next(p for p in scheduler.policies if p.block_rows)
        scheduler.choose()
    current, worth = scheduler.current, {}
    for policy in scheduler.policies:
        expected = 0.0
        for share, falls in zip(scheduler.texts(), Auto.FALLS, strict=True):
            stands = {s: 1 - min(0.95, falls * more) for s, more in Auto.OFTENER.items()}
            outlooks: Any = {source: outlook([chance] * 64) for source, chance in stands.items()}
            expected += share * policy_speed(METAL, policy, outlooks)
        worth[policy] = expected
    assert scheduler.pays == (worth[current] > scheduler.plain_speed)
    if not ahead:  # to begin to draft ahead must seem so much faster
        for policy in worth:
            change = Auto.CHANGE.get(policy.kind, 0.0) / (Auto.KNOWN + scheduler.cycles)
            worth[policy] /= 1 + change
    assert worth[current] == pytest.approx(max(worth.values()))


def test_equal_observations_give_equal_plans() -> None:
    texts = [Text(Kind.of(5.0), seed=3) for _ in range(2)]
    first, second = (list(cycles(auto(), text, 400)) for text in texts)
    assert first == second


@given(
    st.sampled_from(["auto", "parallel", "ar"]),
    st.sampled_from(["auto", "two-pass", "one-pass"]),
    st.integers(2, 32),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=40)
def test_no_plan_goes_beyond_the_budget(mode: Any, cycle: Any, block: int, seed: int) -> None:
    scheduler = make_scheduler(mode, cycle, block, lambda: NOMINAL)
    rng, budget, pending = random.Random(seed), 60, 0
    while budget > 0:
        plan = scheduler.plan(budget, pending)
        assert 0 <= plan.n_drafts <= budget - 1
        assert max(plan.n_drafts + 1, plan.draft_rows, plan.block_rows) <= block
        assert not plan.draft_rows or plan.draft_rows == plan.n_drafts + 1
        assert not (plan.draft_rows and plan.block_rows)
        if budget == 1:
            assert plan == AR_STEP
        n_drafts = plan.n_drafts if plan.draft_rows else min(pending, plan.n_drafts)
        accepted = rng.randint(0, n_drafts)
        scheduler.observe(plan, n_drafts, accepted)
        pending = pending_after(plan, n_drafts, accepted)
        budget -= accepted + 1


def test_drafts_never_pay_where_each_row_costs_the_same() -> None:
    costs = Costs({1: 1.0, 4: 4.0, 8: 8.0}, {4: 4.0, 8: 8.0}, {(4, 10): 14.0, (7, 16): 23.0})
    scheduler = auto(costs)
    assert scheduler.policies == ()
    assert run(scheduler, 50, lambda place: 9) == ([AR_STEP] * 50, 50.0)


def test_policies_are_those_whose_price_is_known() -> None:
    costs = Costs({1: 1.0, 8: 2.0}, {4: 1.0, 8: 2.0}, {(7, 16): 3.0, (1, 7): 2.0})
    two_pass = (Policy("two-pass", 3), Policy("two-pass", 7))
    one_pass = (Policy("one-pass", 6, 8), Policy("alternating", 6, 7, 1))
    longer = (Policy("alternating", 7, 16, 1),)  # which verifies no more than has a price
    assert policies(costs, "two-pass", 32) == two_pass
    assert policies(costs, "one-pass", 32) == one_pass + longer
    # Of a block as long as in training, the last row learnt nothing.
    assert policies(costs, "auto", 8) == two_pass + one_pass
    assert policies(costs, "auto", 7) == (two_pass[0], Policy("alternating", 5, 7, 1))


def test_ways_that_draft_less_for_about_the_same_price_are_no_contenders() -> None:
    flat = Costs(
        verify={1: 1.0, 8: 1.05, 16: 1.05, 32: 1.1},
        draft={8: 1.0, 16: 1.05, 32: 1.1},
        fused={(8, 8): 1.2, (16, 16): 1.25, (16, 32): 1.3},
    )
    left = contenders(flat, policies(flat, "auto", 32))
    assert [p.n_drafts for p in left if p.kind == "two-pass"] == [31]
    assert {p.length for p in left if p.kind == "one-pass"} == {16}
    steep = replace(flat, draft={8: 1.0, 16: 1.5, 32: 2.5})
    left = contenders(steep, policies(steep, "two-pass", 32))
    assert [p.n_drafts for p in left] == [7, 15, 31]
    dear = replace(flat, verify={1: 1.0, 8: 4.0, 16: 20.0, 32: 40.0})
    left = contenders(dear, policies(dear, "two-pass", 32))
    assert [p.n_drafts for p in left] == [7]  # others lose even if every draft stands


def test_drafts_that_one_begins_with_are_verified() -> None:
    """A pass that drafts ahead and verifies nothing is no reason to think again."""
    scheduler = auto(cycle="auto")
    policy = next(p for p in scheduler.policies if p.kind == "one-pass")
    scheduler.current, scheduler.pays = policy, False
    scheduler.credit = scheduler.cover[policy] + 0.01
    begun = scheduler.plan(1000, 0)
    assert begun.block_rows == policy.block_rows
    scheduler.observe(begun, 0, 0)
    assert not scheduler.credit > scheduler.cover[policy] and scheduler.current == policy
    assert scheduler.plan(999, 6).n_drafts == 6
    scheduler.observe(Plan(n_drafts=6, block_rows=8), 6, 0)
    assert scheduler.cycles == 1 and not scheduler.untested


def test_exact_numerics_offer_no_cycle_that_verifies_more_than_the_class_holds() -> None:
    for verify in ((2, 8), (8, 16), (8, 15, 32)):
        pairs = tuple((n, ahead) for n in verify[-2:] for ahead in (16, 24, 32))
        found = policies(within(METAL, RowCounts(verify, pairs)), "auto", 32)
        assert {p.kind for p in found} == {"two-pass", "one-pass", "alternating"}
        assert max(p.n_drafts for p in found) < verify[-1]


def test_alternating_passes_draft_where_nothing_is_left_to_verify() -> None:
    policy = Policy("alternating", 6, 7, 1)
    drafting = Plan(block_rows=7, blocks=1)
    assert policy.plan(budget=9, pending=0) == drafting
    assert policy.plan(budget=9, pending=6) == Plan(n_drafts=6)
    assert policy.plan(budget=4, pending=5) == Plan(n_drafts=3)
    assert policy.plan(budget=2, pending=0) == AR_STEP
    assert policy.plan(budget=1, pending=5) == AR_STEP


def test_modes_that_need_no_costs_ask_for_none() -> None:
    def costs() -> Costs:
        raise AssertionError("measured for nothing")

    fixed = [
        ("ar", "auto", AR_POLICY),
        ("parallel", "auto", Policy("two-pass", 7)),
        ("parallel", "one-pass", Policy("one-pass", 4, 5)),
    ]
    for mode, cycle, policy in fixed:
        scheduler: Any = make_scheduler(mode, cycle, 8, costs)  # type: ignore[arg-type]
        assert isinstance(scheduler, Fixed) and scheduler.policy == policy


def test_exact_row_counts_leave_only_their_own_costs() -> None:
    rows = RowCounts(verify=(8, 16), fused=((8, 24),))
    left = within(METAL, rows)
    assert left.verify == {8: METAL.verify[8], 16: METAL.verify[16]}
    assert left.of_verify(1) == METAL.verify[8]  # a plain step is padded too
    assert max(left.draft) == 16
    assert left.fused == {(8, 24): METAL.fused[8, 24]}
    pair = within(METAL, replace(rows, fused=((8, 30),))).fused
    assert pair == {(8, 30): METAL.fused[16, 32]}  # the next that holds them
    assert within(METAL, RowCounts()) is METAL


def test_exact_row_counts_beyond_what_was_measured_are_left_out() -> None:
    """Measuring stops where nothing can pay: what is larger has no price, and no use."""
    costs = Costs({1: 1.0, 4: 3.0, 8: 6.0}, {4: 3.0, 8: 6.0}, {(7, 8): 9.0})
    left = within(costs, RowCounts(verify=(2, 8, 32), fused=((8, 16), (32, 32))))
    assert left.verify == {2: 3.0, 8: 6.0} and left.fused == {}
    assert Auto(left, policies(left, "auto", 32)).policies is not None
    # What two passes would verify with 8 rows must not be priced as 4.
    gap = Costs({1: 1.0, 2: 1.5, 4: 2.5}, {2: 1.5, 4: 2.5}, {})
    assert within(gap, RowCounts(verify=(1, 8))).draft == {}
    none = within(Costs({1: 1.0, 2: 1.5}, {2: 1.5}, {}), RowCounts((2,), ((8, 16),)))
    assert none.fused == {} and none.of_ar_step() == 1.5


# Reasoning lies near break-even, where one answer is too short to be sure: the bar of 0.97 is
# missed there (docs/performance.md has the table).
@pytest.mark.parametrize(
    ("kind", "share"), [("JSON", 0.95), ("reasoning", 0.87), ("code", 0.97), ("prose", 0.97)]
)
def test_published_kinds_lose_little_to_the_best_fixed_policy(kind: str, share: float) -> None:
    text = Kind.of(SPEED_UPS["1.7B"][kind] * CYCLE_COST)
    fixed = [mean_speed_up(p, METAL, text, 1024, 4) for p in policies(METAL, "auto", LONGEST)]
    best = max(1.0, *fixed)
    assert mean_speed_up(None, METAL, text, 1024, 4) >= share * best


@pytest.mark.parametrize(("stood", "source"), [(15, "fresh"), (0, "fresh"), (5, "stale")])
def test_what_drafts_say_depends_on_where_they_were_made(stood: int, source: Any) -> None:
    """At the next anchor but one, or behind drafts that fell."""
    plan = Plan(n_drafts=15, block_rows=16, blocks=2)
    scheduler = auto()
    scheduler.observe(plan, 15, stood)
    before = scheduler.shown
    scheduler.observe(plan, 4, 3)
    said = Auto.said_by(source, 3, True)
    assert scheduler.shown == [Auto.KEEP * b + s for b, s in zip(before, said, strict=True)]

"""The scheduler: what a text can lose is bounded, and what pays is found."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulate import COSTS, Kind, Text, cycles, mean_speed_up, speed_up
from orthrus_mlx.decoding.cost_model import NOMINAL, Costs, plan_cost, policies
from orthrus_mlx.decoding.plan import AR_STEP, DIFFUSION, Plan, Policy
from orthrus_mlx.decoding.scheduler import Adaptive, Evidence, Fixed, make_scheduler

BLOCK = 32
CPU = Costs(
    {n: 0.15 + 0.85 * n for n in (1, 2, 4, 8, 15, 16)},
    {n: 0.15 + 0.85 * n for n in (2, 4, 8, 15, 16)},
    {(1, 3): 3.5, (1, 7): 6.9, (8, 8): 13.7},
)
TABLES = {**COSTS, "nominal": NOMINAL, "CPU": CPU}


def auto(costs: Costs, cycle: str = "auto", evidence: Evidence | None = None) -> Adaptive:
    return Adaptive(costs, policies(costs, cycle, BLOCK), evidence)


def any_costs() -> st.SearchStrategy[Costs]:
    """Prices that no device may have."""
    price, rows = st.floats(0.2, 30), st.integers(2, 16)
    return st.builds(
        Costs,
        verify=st.dictionaries(rows, price, min_size=1).map(lambda costs: {1: 1.0, **costs}),
        draft=st.dictionaries(rows, price, min_size=1),
        fused=st.dictionaries(
            st.tuples(st.integers(1, 16), rows.map(lambda n: 2 * n)), price, min_size=1
        ),
    )


class Accepting:
    """Drives a scheduler as the engine does; how many drafts are accepted is drawn."""

    def __init__(self, scheduler: Any, costs: Costs, accept: Iterator[int]):
        self.scheduler, self.costs, self.accept = scheduler, costs, accept
        self.spent = self.tokens = 0.0
        self.ar_steps = 0
        self.dearest = 0.0

    def run(self, tokens: int, copies: Iterator[int]) -> None:
        budget, pending = tokens, 0
        while budget > 0:
            at_hand = {DIFFUSION: pending, "copy": next(copies)}
            plan = self.scheduler.plan(budget, {s: n for s, n in at_hand.items() if n})
            n = plan.n_drafts
            if not plan.draft_rows:
                n = min(n, at_hand[plan.source])
            accepted = min(n, next(self.accept), budget - 1)
            cost = plan_cost(self.costs, plan, n)
            self.dearest = max(self.dearest, cost)
            self.spent += cost
            self.ar_steps += plan.is_ar
            budget -= 1 + accepted
            self.tokens += 1 + accepted
            pending = max(0, plan.block_rows - 2) if plan.block_rows else 0
            chances = [(7 * self.tokens + place) % 11 / 10 for place in range(pending)]
            self.scheduler.observe(plan, n, accepted, chances if self.tokens % 3 else ())


@given(
    any_costs(),
    st.lists(st.sampled_from([0, 0, 0, 1, 3, 20]), min_size=1, max_size=30),
    st.lists(st.sampled_from([0, 0, 5, 30]), min_size=1, max_size=9),
    st.integers(1, 400),
)
def test_a_text_loses_no_more_than_the_credit_rule_says(
    costs: Costs, accepted: list[int], copies: list[int], tokens: int
) -> None:
    """Whatever passes cost and whatever is accepted, over several answers of one conversation."""
    evidence, draw = Evidence(), random.Random(tokens)
    spent = written = ar_steps = dearest = 0.0
    for _ in range(3):
        run = Accepting(
            auto(costs, evidence=evidence), costs, iter(lambda: draw.choice(accepted), None)
        )
        run.run(tokens, iter(lambda: draw.choice(copies), None))
        spent, written = spent + run.spent, written + run.tokens
        ar_steps, dearest = ar_steps + run.ar_steps, max(dearest, run.dearest)
    step = costs.of_ar_step()
    in_flight = 2 * dearest / step  # a pass that drafts, and the one that verifies
    loss = spent / step - written
    assert loss <= Adaptive.MAX_DEBT + Adaptive.INCOME * ar_steps + in_flight


@pytest.mark.parametrize("label", TABLES)
@pytest.mark.parametrize("tokens_per_cycle", [1.3, 3.0, 6.0, 12.0])
def test_it_comes_close_to_the_best_fixed_policy(label: str, tokens_per_cycle: float) -> None:
    costs, kind = TABLES[label], Kind.of(tokens_per_cycle)
    best = max(
        [1.0, *(mean_speed_up(p, costs, kind, 1024, 2) for p in policies(costs, "auto", BLOCK))]
    )
    assert mean_speed_up(None, costs, kind, 1024, 4) > 0.9 * best


def test_hopeless_drafts_are_given_up() -> None:
    for costs in TABLES.values():
        scheduler = auto(costs)
        text = Text(Kind.of(1.01), 0)
        assert speed_up(scheduler, costs, text, 2000) > 0.97


def test_a_policy_that_writes_less_than_expected_is_left() -> None:
    """Its far drafts are rejected more often than its near ones, which one rate does not know."""
    long, short = Policy("two-pass", 31), Policy("two-pass", 3)
    costs = TABLES["4-bit 0.32.0"]
    scheduler, tokens, time = Adaptive(costs, (long, short)), 0, 0.0
    for _ in range(300):
        plan = scheduler.plan(1000, {})
        accepted = min(
            plan.n_drafts, 3
        )  # the first three always stand, and those behind them never
        tokens, time = tokens + 1 + accepted, time + plan_cost(costs, plan, plan.n_drafts)
        scheduler.observe(plan, plan.n_drafts, accepted)
    best = 4 / plan_cost(costs, short.plan(1000, 0), 3)
    assert tokens / time > 0.92 * best


def test_a_policy_is_left_only_for_one_that_is_clearly_faster() -> None:
    scheduler = auto(NOMINAL, "two-pass")
    changes, current = [], scheduler.current
    for plan, _, _ in cycles(scheduler, Text(Kind.of(5.0), 3), 3000):
        if scheduler.current != current:
            now, before = map(scheduler.expected_speed, (scheduler.current, current))
            assert now > Adaptive.HYSTERESIS * before
            changes.append(plan)
            current = scheduler.current
    assert len(changes) < 30


def test_sources_are_judged_apart() -> None:
    scheduler = auto(NOMINAL)
    for _ in range(40):
        scheduler.observe(Plan(n_drafts=8, source="copy"), 8, 0)
        scheduler.observe(Plan(draft_rows=16, n_drafts=15), 15, 15)
    assert scheduler.evidence.rates("copy")[0] > 0.3
    assert scheduler.evidence.rates(DIFFUSION)[1] < 0.05
    assert scheduler.plan(100, {"copy": 20}).source == DIFFUSION

    scheduler = auto(NOMINAL)
    for _ in range(40):
        scheduler.observe(Plan(n_drafts=8, source="copy"), 8, 8)
        scheduler.observe(Plan(draft_rows=16, n_drafts=15), 15, 0)
    plan = scheduler.plan(100, {"copy": 20})
    assert plan.source == "copy" and not plan.draft_rows and plan.n_drafts > 4


def test_what_was_learnt_carries_over_to_the_next_answer() -> None:
    evidence = Evidence()
    for _ in range(40):
        auto(NOMINAL, evidence=evidence).observe(Plan(draft_rows=16, n_drafts=15), 15, 0)
    assert second_plan(evidence).is_ar
    evidence = Evidence()
    for _ in range(40):
        auto(NOMINAL, evidence=evidence).observe(Plan(draft_rows=16, n_drafts=15), 15, 15)
    assert not second_plan(evidence).is_ar


def second_plan(evidence: Evidence) -> Plan:
    """Of an answer, which begins with an AR step."""
    scheduler = auto(NOMINAL, evidence=evidence)
    assert scheduler.plan(100, {}).is_ar
    scheduler.observe(AR_STEP, 0, 0)
    return scheduler.plan(100, {})


def test_of_another_text_little_is_known() -> None:
    evidence = Evidence(credit=5.0)
    for _ in range(40):
        evidence.add(DIFFUSION, 15, 15)
        evidence.add("copy", 3, 0)
    other = evidence.of_another_text()
    assert all(tried <= Evidence.CARRIED for _, tried in other.counts.values())
    assert other.rates(DIFFUSION)[0] < Evidence().rates(DIFFUSION)[0] < other.rates("copy")[0]
    assert other.credit == 0.0 and evidence.credit == 5.0


def with_drafts(chances: list[float], costs: Costs = COSTS["bf16 0.32.1"]) -> Adaptive:
    """A scheduler that has drafts of these probabilities at hand."""
    scheduler = auto(costs, "alternating")
    scheduler.observe(AR_STEP, 0, 0)
    plan = scheduler.plan(100, {})
    assert plan.block_rows > len(chances)
    scheduler.observe(plan, 0, 0, chances)
    return scheduler


def test_as_many_drafts_are_verified_as_will_stand() -> None:
    """On costs where each row counts."""
    costs = Costs({n: 1 + 0.3 * (n - 1) for n in range(1, 9)}, {}, {(1, 7): 1.5})
    at_hand = {DIFFUSION: 6}
    for sure in range(1, 7):
        scheduler = with_drafts([0.99] * sure + [0.05] * (6 - sure), costs)
        assert scheduler.plan(100, at_hand) == Plan(n_drafts=sure)
    assert not with_drafts([0.05] * 6, costs).plan(100, at_hand).n_drafts


def test_probabilities_are_evidence_and_outcomes_correct_them() -> None:
    sure, doubtful = Evidence(), Evidence()
    for _ in range(5):  # none of these drafts is verified
        sure.add(DIFFUSION, 0, 0, chances=[0.999] * 6)
        doubtful.add(DIFFUSION, 0, 0, chances=[0.2] * 6)
    usual = Evidence().rates(DIFFUSION)
    assert all(a < b for a, b in zip(sure.rates(DIFFUSION), usual, strict=True))
    assert all(a > b for a, b in zip(doubtful.rates(DIFFUSION), usual, strict=True))
    proud = Evidence()
    before = proud.standing([0.9] * 3)
    assert before == pytest.approx([1.0, 0.9, 0.81, 0.729])
    for _ in range(20):
        proud.add(DIFFUSION, 3, 0, chances=[0.9] * 3)
    assert proud.standing([0.9] * 3)[1] < 0.7


@given(st.lists(st.integers(0, 15), max_size=30), st.integers(1, 50), st.integers(0, 15))
def test_to_ask_for_a_plan_changes_nothing(seen: list[int], budget: int, pending: int) -> None:
    scheduler = auto(NOMINAL)
    for accepted in seen:
        scheduler.observe(Plan(draft_rows=16, n_drafts=15), 15, accepted)
    before = copy.deepcopy(scheduler.evidence)
    at_hand = {DIFFUSION: pending, "copy": pending}
    plans = [scheduler.plan(budget, at_hand) for _ in range(3)]
    assert plans[0] == plans[1] == plans[2] and scheduler.evidence == before


@pytest.mark.parametrize("label", TABLES)
def test_the_end_of_a_budget_is_no_certain_loss(label: str) -> None:
    costs = TABLES[label]
    scheduler = auto(costs, "two-pass")
    scheduler.observe(AR_STEP, 0, 0)
    for _ in range(40):
        scheduler.observe(Plan(draft_rows=16, n_drafts=15), 15, 15)
    for budget in range(1, 12):
        plan = scheduler.plan(budget, {})
        assert plan_cost(costs, plan, plan.n_drafts) <= (1 + plan.n_drafts) * costs.of_ar_step()


@pytest.mark.parametrize("cycle", ["two-pass", "one-pass", "alternating"])
def test_a_cycle_can_be_asked_for_by_name(cycle: Any) -> None:
    scheduler = make_scheduler("parallel", cycle, 16, lambda: NOMINAL)
    assert isinstance(scheduler, Fixed) and scheduler.policy.kind == cycle
    allowed = {cycle} | ({"alternating"} if cycle == "one-pass" else set())
    scheduler = make_scheduler("auto", cycle, BLOCK, lambda: NOMINAL)
    assert isinstance(scheduler, Adaptive)
    assert {policy.kind for policy in scheduler.policies} <= allowed


def test_few_policies_are_left_to_choose_from() -> None:
    for costs in TABLES.values():
        assert len(policies(costs, "auto", BLOCK)) <= 8


def test_alternating_passes_take_turns() -> None:
    policy = Policy("alternating", 6, 7)
    assert policy.plan(100, 0) == Plan(block_rows=7, blocks=1)
    assert policy.plan(100, 6) == Plan(n_drafts=6)
    assert policy.plan(1, 6) == AR_STEP

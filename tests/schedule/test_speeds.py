"""The expected speeds equal what counting every outcome of small cases gives."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orthrus_mlx.decoding.cost_model import (
    SOURCES,
    Costs,
    Outlook,
    Outlooks,
    at_risk,
    best_case,
    outlook,
    plan_cost,
    policy_speed,
)
from orthrus_mlx.decoding.plan import Plan, Policy, anchor_depths, reusable_block

CHANCES = st.floats(0, 1, allow_subnormal=False)
SMALL = settings(deadline=None, max_examples=25)
COSTS = Costs(
    verify={1: 1.0, 2: 1.5, 4: 1.7, 8: 2.0},
    draft={2: 1.1, 4: 1.6, 8: 2.2},
    fused={(1, 4): 1.3, (2, 8): 1.8, (4, 8): 2.1, (8, 16): 3.0, (8, 24): 3.5},
)


def outcomes(rates: list[float]) -> dict[int, float]:
    """Chance of each number of accepted drafts, from all patterns of right and wrong drafts."""
    found: dict[int, float] = defaultdict(float)
    for pattern in itertools.product([True, False], repeat=len(rates)):
        chance = 1.0
        for right, rate in zip(pattern, rates, strict=True):
            chance *= rate if right else 1 - rate
        accepted = pattern.index(False) if False in pattern else len(pattern)
        found[accepted] += chance
    return found


@given(st.lists(CHANCES, max_size=7))
@SMALL
def test_outlook(rates: list[float]) -> None:
    expected = outcomes(rates)
    found = outlook(rates)
    assert found.tokens[-1] == pytest.approx(1 + sum(a * chance for a, chance in expected.items()))
    for n in range(len(rates)):
        assert found.falls[n] == pytest.approx(expected[n])


@given(st.integers(1, 7), st.lists(CHANCES, min_size=7, max_size=7))
@SMALL
def test_two_pass_speed(n_drafts: int, rates: list[float]) -> None:
    tokens = sum((1 + a) * chance for a, chance in outcomes(rates[:n_drafts]).items())
    cost = next(c for n, c in COSTS.draft.items() if n > n_drafts)
    cost += next(c for n, c in COSTS.verify.items() if n > n_drafts)
    outlooks: Outlooks = dict.fromkeys(SOURCES, outlook(rates))
    found = policy_speed(COSTS, Policy("two-pass", n_drafts), outlooks)
    assert found == pytest.approx(tokens / cost)


@given(st.integers(3, 8), st.lists(CHANCES, min_size=7, max_size=7))
@SMALL
def test_alternating_speed(length: int, rates: list[float]) -> None:
    """A pass that drafts, then one that verifies what the first's own choice left of them."""
    n = length - 1
    tokens = sum((2 + a) * chance for a, chance in outcomes(rates[:n]).items())
    cost = COSTS.of_fused(1, length) + COSTS.of_verify(n + 1)
    policy = Policy("alternating", n, length, 1)
    none = outlook([])
    found = policy_speed(COSTS, policy, {"two-pass": none, "fresh": outlook(rates), "stale": none})
    assert found == pytest.approx(tokens / cost)


@given(
    st.sampled_from([(1, 3, 2), (3, 4, 2), (1, 8, 2), (5, 8, 2), (6, 8, 2), (6, 8, 1), (3, 8, 1)]),
    st.lists(st.floats(0.05, 0.95), min_size=7, max_size=7),
    st.lists(st.floats(0.05, 0.95), min_size=7, max_size=7),
)
@SMALL
def test_one_pass_speed(
    policy: tuple[int, int, int], fresh: list[float], stale: list[float]
) -> None:
    """In the long run: the Markov chain of pending drafts, followed for many cycles."""
    assert speed_of(policy, fresh, stale) == pytest.approx(long_run(policy, fresh, stale), rel=0.02)


def test_one_pass_speed_with_a_third_block_is_nearly_right() -> None:
    """It takes the rare cycles with few drafts to end as those with all do."""
    for fresh, stale in ((0.9, 0.8), (0.7, 0.5), (0.4, 0.2)):
        rates = [fresh] * 7, [stale] * 7
        expected = long_run((6, 8, 3), *rates)
        assert speed_of((6, 8, 3), *rates) == pytest.approx(expected, rel=0.05)


def speed_of(policy: tuple[int, int, int], fresh: list[float], stale: list[float]) -> float:
    return one_pass_speed(COSTS, Policy("one-pass", *policy), outlook(fresh), outlook(stale))


def one_pass_speed(costs: Costs, policy: Policy, fresh: Outlook, stale: Outlook) -> float:
    return policy_speed(costs, policy, {"two-pass": outlook([]), "fresh": fresh, "stale": stale})


def long_run(policy: tuple[int, int, int], fresh: list[float], stale: list[float]) -> float:
    n_drafts, block_rows, blocks = policy
    share = {(0, True): 1.0}  # by drafts pending, and whether they are fresh
    tokens = time = 0.0
    for cycle in range(400):
        following: dict[tuple[int, bool], float] = defaultdict(float)
        for (pending, is_fresh), weight in share.items():
            for accepted, chance in outcomes((fresh if is_fresh else stale)[:pending]).items():
                use = reusable_block(Plan(0, n_drafts, block_rows, blocks), pending, accepted)
                left = 0 if use is None else block_rows - use[1]
                fresh_next = use is not None and use[1] == 1
                following[max(0, min(n_drafts, left)), fresh_next] += weight * chance
                if cycle >= 200:
                    tokens += weight * chance * (1 + accepted)
                    time += weight * chance * COSTS.of_fused(1 + pending, block_rows * blocks)
        share = following
    return tokens / time


def test_right_drafts_are_followed_by_as_many() -> None:
    """Blocks of 8 leave 7 drafts behind a cycle whose drafts all stand: 8 tokens a pass."""
    costs = Costs({1: 1.0}, {}, {(8, 24): 3.0})
    for blocks in (1, 2, 3):
        policy = Policy("one-pass", 7, 8, blocks)
        right, wrong = outlook([1.0] * 7), outlook([0.0] * 7)
        assert one_pass_speed(costs, policy, right, wrong) == pytest.approx(8 / 3)
        assert one_pass_speed(costs, policy, wrong, wrong) == pytest.approx(1 / 3)


def test_blocks_are_spread_and_the_deepest_that_fits_is_used() -> None:
    assert [anchor_depths(7, n) for n in (1, 2, 3)] == [(7,), (0, 7), (0, 2, 7)]
    plan = Plan(0, 7, 9, 3)
    uses = [reusable_block(plan, 7, accepted) for accepted in range(8)]
    assert uses == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 1)]
    assert (
        reusable_block(Plan(0, 7, 9, 1), 7, 6) is None
    )  # a single block had expected all to stand
    assert reusable_block(Plan(0, 7), 7, 7) is None


def test_policy_speed_and_plan_cost_follow_the_kind() -> None:
    outlooks: Outlooks = {
        "two-pass": outlook([0.5] * 7),
        "fresh": outlook([0.4] * 7),
        "stale": outlook([0.3] * 7),
    }
    assert policy_speed(COSTS, Policy("ar"), outlooks) == 1.0
    assert policy_speed(COSTS, Policy("two-pass", 3), outlooks) == pytest.approx(1.875 / 3.3)
    assert policy_speed(COSTS, Policy("one-pass", 2, 4), outlooks) == speed_of(
        (2, 4, 2), [0.4] * 7, [0.3] * 7
    )
    assert plan_cost(COSTS, Plan(), 0) == 1.0
    assert plan_cost(COSTS, Plan(4, 3), 3) == pytest.approx(1.6 + 1.7)
    assert plan_cost(COSTS, Plan(0, 3, 4), 2) == 2.1
    assert plan_cost(COSTS, Plan(0, 3, 0), 3) == 1.7


POLICIES = st.one_of(
    st.builds(Policy, st.just("two-pass"), st.integers(1, 7)),
    st.builds(Policy, st.just("one-pass"), st.integers(1, 7), st.integers(2, 8), st.integers(1, 3)),
    st.builds(Policy, st.just("alternating"), st.integers(1, 6), st.just(7), st.just(1)),
)


@given(POLICIES, st.lists(CHANCES, min_size=21, max_size=21))
@SMALL
def test_no_speed_is_above_the_best_case(policy: Policy, chances: list[float]) -> None:
    outlooks = {s: outlook(chances[7 * i : 7 * i + 7]) for i, s in enumerate(SOURCES)}
    most = best_case(COSTS, policy)
    assert policy_speed(COSTS, policy, outlooks) <= most * (1 + 1e-9)
    surely = dict.fromkeys(SOURCES, outlook([1.0] * 7))
    assert policy_speed(COSTS, policy, surely) == pytest.approx(most)


@given(POLICIES)
@SMALL
def test_what_a_trial_loses_if_no_draft_stands(policy: Policy) -> None:
    cycles, left, cost = 1 if policy.kind == "two-pass" else 2, 0, 0.0
    for _ in range(cycles):
        plan = policy.plan(100, left)
        n_drafts = plan.n_drafts if plan.draft_rows else left
        cost += plan_cost(COSTS, plan, min(n_drafts, plan.n_drafts))
        left = plan.block_rows - 1
    assert at_risk(COSTS, policy) == pytest.approx(max(0.0, cost - cycles))


def test_costs_are_those_of_the_next_measured_size() -> None:
    assert [COSTS.of_verify(n) for n in (1, 2, 3, 5, 8, 20)] == [1.0, 1.5, 1.7, 2.0, 2.0, 2.0]
    assert COSTS.of_draft(3) == 1.6
    assert [COSTS.of_fused(*p) for p in ((1, 4), (1, 6), (3, 8), (5, 8), (9, 27))] == [
        1.3,
        1.8,
        2.1,
        3.0,
        3.5,
    ]

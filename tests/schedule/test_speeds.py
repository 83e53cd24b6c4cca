"""The expected speeds equal what counting every outcome of small cases gives."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orthrus_mlx.schedule import (
    Acceptance,
    Costs,
    Plan,
    Policy,
    expected_accepted,
    one_pass_speed,
    plan_cost,
    policy_speed,
    two_pass_speed,
)

CHANCES = st.floats(0, 1, allow_subnormal=False)
SMALL = settings(deadline=None, max_examples=25, derandomize=True)
COSTS = Costs(
    verify={1: 1.0, 2: 1.5, 4: 1.7, 8: 2.0},
    draft={2: 1.1, 4: 1.6, 8: 2.2},
    fused={(1, 2): 1.3, (2, 4): 1.8, (4, 4): 2.1, (8, 8): 3.0},
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
def test_expected_accepted(rates: list[float]) -> None:
    expected = sum(accepted * chance for accepted, chance in outcomes(rates).items())
    assert expected_accepted(rates) == pytest.approx(expected)


@given(st.integers(1, 7), st.lists(CHANCES, min_size=7, max_size=7))
@SMALL
def test_two_pass_speed(n_drafts: int, rates: list[float]) -> None:
    tokens = sum((1 + a) * chance for a, chance in outcomes(rates[:n_drafts]).items())
    cost = next(c for n, c in COSTS.draft.items() if n > n_drafts)
    cost += next(c for n, c in COSTS.verify.items() if n > n_drafts)
    assert two_pass_speed(COSTS, n_drafts, rates) == pytest.approx(tokens / cost)


@given(
    st.sampled_from([(1, 2), (3, 4), (1, 4), (5, 8), (7, 8)]),
    st.lists(st.floats(0.05, 0.95), min_size=7, max_size=7),
)
@SMALL
def test_one_pass_speed(policy: tuple[int, int], rates: list[float]) -> None:
    """In the long run: the Markov chain of pending drafts, followed for many cycles."""
    n_drafts, ahead_rows = policy
    share = {0: 1.0}
    tokens = time = 0.0
    for cycle in range(400):
        following: dict[int, float] = defaultdict(float)
        for pending, weight in share.items():
            for accepted, chance in outcomes(rates[:pending]).items():
                left = max(0, min(n_drafts, ahead_rows - 2 - accepted))
                following[left] += weight * chance
                if cycle >= 200:
                    tokens += weight * chance * (1 + accepted)
                    time += weight * chance * COSTS.of_fused(1 + pending, ahead_rows)
        share = following
    assert one_pass_speed(COSTS, n_drafts, ahead_rows, rates) == pytest.approx(
        tokens / time, rel=0.02
    )


def test_one_pass_cycles_alternate_when_every_draft_stands() -> None:
    """8 rows leave 6 drafts, which leave none, which leave 6: 8 tokens in two passes."""
    costs = Costs({1: 1.0}, {}, {(1, 8): 1.0, (8, 8): 3.0})
    assert one_pass_speed(costs, 7, 8, [1.0] * 7) == pytest.approx(8 / 4)


def test_policy_speed_and_plan_cost_follow_the_kind() -> None:
    rates = [0.5] * 7
    assert policy_speed(COSTS, Policy("plain"), rates) == 1.0
    assert policy_speed(COSTS, Policy("two-pass", 3), rates) == two_pass_speed(COSTS, 3, rates)
    assert policy_speed(COSTS, Policy("one-pass", 3, 4), rates) == one_pass_speed(
        COSTS, 3, 4, rates
    )
    assert plan_cost(COSTS, Plan(), 0) == 1.0
    assert plan_cost(COSTS, Plan(4, 3), 3) == pytest.approx(1.6 + 1.7)
    assert plan_cost(COSTS, Plan(0, 3, 4), 2) == 2.1
    assert plan_cost(COSTS, Plan(0, 3, 0), 3) == 1.7


def test_costs_are_those_of_the_next_measured_size() -> None:
    assert [COSTS.of_verify(n) for n in (1, 2, 3, 5, 8, 20)] == [1.0, 1.5, 1.7, 2.0, 2.0, 2.0]
    assert COSTS.of_draft(3) == 1.6
    assert [COSTS.of_fused(*p) for p in ((1, 2), (1, 3), (3, 2), (5, 8), (9, 9))] == [
        1.3,
        1.8,
        2.1,
        3.0,
        3.0,
    ]


def test_acceptance_starts_from_its_prior_and_learns_by_place() -> None:
    acceptance = Acceptance()
    assert acceptance.rates(3, 0.8, 10) == pytest.approx([0.8] * 3)
    assert (acceptance.evidence, acceptance.falls) == (0.0, 0.0)
    for _ in range(400):
        acceptance.observe(4, 2)  # the third draft always falls, the fourth is never reached
    first, second, third, fourth = acceptance.rates(4, 0.8, 10)
    assert second > 0.8 and first > 0.8 and third < 0.5
    assert fourth == pytest.approx(third)  # no evidence: as the place before
    assert acceptance.falls == pytest.approx(1 / 3)


def test_acceptance_fades() -> None:
    acceptance = Acceptance()
    for _ in range(500):
        acceptance.observe(4, 0)
    before = acceptance.rates(1, 0.8, 1)[0]
    for _ in range(100):
        acceptance.observe(4, 4)
    assert before < 0.6 < 0.8 < acceptance.rates(1, 0.8, 1)[0]
    # An unending run weighs no more than its sum of fading weights.
    assert acceptance.tried[0] <= 1 / (1 - Acceptance.KEEP)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=40), CHANCES)
@SMALL
def test_rates_are_chances(seen: list[tuple[int, int]], prior: float) -> None:
    acceptance = Acceptance()
    for n_drafts, accepted in seen:
        acceptance.observe(n_drafts, min(n_drafts, accepted))
    assert all(-1e-9 <= rate <= 1 + 1e-9 for rate in acceptance.rates(12, prior, 4.0))

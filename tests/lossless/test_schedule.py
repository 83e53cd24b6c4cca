"""The schedule behind mode="auto": it weighs what it should, within the block, at little cost."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orthrus_mlx import mlx_generate
from orthrus_mlx.costs import NOMINAL
from orthrus_mlx.schedule import Costs, make_scheduler, one_pass_speed

from .fake_model import FakeModel, plain_decoding
from .scenarios import CYCLES, UNTIMED


@pytest.mark.parametrize("cycle", ["auto", *CYCLES])
@pytest.mark.parametrize("block_size", [2, 4, 5, 8, 20])
def test_auto_drafts_and_never_beyond_the_block(cycle: Any, block_size: int) -> None:
    """A drafter knows no block larger than it was trained with (or the caller asked for)."""
    model, prompt = FakeModel(block_size=block_size), [1, 2]
    expected = plain_decoding(model, prompt, 60)
    model.script(prompt + expected, [True])
    ids = mlx_generate(model, prompt, (), 60, mode="auto", cycle=cycle, calibrate=False)
    assert list(ids) == expected
    blocks = [len(forward.guesses) + 1 for forward in model.log if forward.guesses]
    assert all(block <= block_size for block in blocks)
    assert blocks or block_size < 4  # below that, no size that has a nominal price fits


def simulated_speed(
    costs: Costs, n_drafts: int, ahead_rows: int, rates: list[float], cycles: int = 20_000
) -> float:
    """`one_pass_speed`, by writing a long text."""
    rng, pending, tokens, spent = random.Random(0), 0, 0, 0.0
    for _ in range(cycles):
        accepted = 0
        while accepted < pending and rng.random() < rates[accepted]:
            accepted += 1
        tokens += accepted + 1
        spent += costs.of_fused(1 + pending, ahead_rows)
        pending = max(0, min(n_drafts, ahead_rows - 2 - accepted))
    return tokens / spent


@given(st.integers(1, 9), st.integers(2, 10), st.lists(st.floats(0, 0.99), min_size=9, max_size=9))
@settings(UNTIMED, max_examples=10)
def test_the_speed_of_one_pass_cycles_is_what_writing_shows(
    n_drafts: int, ahead_rows: int, rates: list[float]
) -> None:
    costs = Costs({1: 1.0}, {}, {(4, 10): 1.5, (8, 10): 2.0, (10, 10): 3.5})
    expected = simulated_speed(costs, n_drafts, ahead_rows, rates)
    speed = one_pass_speed(costs, n_drafts, ahead_rows, rates)
    assert speed == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("cycle", ["auto", *CYCLES])
def test_scheduling_costs_next_to_nothing(cycle: Any) -> None:
    """A cycle takes 5 ms and more, and waits for its plan: a third of one is much too much."""
    start, cycles = time.process_time(), 200
    scheduler = make_scheduler("auto", cycle, 32, lambda: NOMINAL)
    for _ in range(cycles):
        plan = scheduler.plan(1000, 31)
        scheduler.observe(plan, plan.n_drafts, plan.n_drafts // 4)
    assert (time.process_time() - start) / cycles < 1.5e-3

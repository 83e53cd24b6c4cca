"""The schedule behind mode="auto" stays within the block, and costs next to nothing itself."""

from __future__ import annotations

import time
from typing import Any

import pytest

from orthrus_mlx import mlx_generate
from orthrus_mlx.decoding.cost_model import NOMINAL
from orthrus_mlx.decoding.plan import DIFFUSION
from orthrus_mlx.decoding.scheduler import make_scheduler

from .fake_model import FakeModel, plain_decoding
from .scenarios import CYCLES


@pytest.mark.parametrize("cycle", ["auto", *CYCLES])
@pytest.mark.parametrize("block_size", [2, 4, 5, 8, 20])
def test_auto_drafts_and_never_beyond_the_block(cycle: Any, block_size: int) -> None:
    """A drafter knows no block larger than it was trained with (or the caller asked for)."""
    model, prompt = FakeModel(block_size=block_size), [1, 2]
    expected = plain_decoding(model, prompt, 60)
    model.script(prompt + expected, [True])
    ids = mlx_generate(model, prompt, (), 60, mode="auto", cycle=cycle, calibrate=False)
    assert list(ids) == expected
    blocks = [len(block.ids) for forward in model.log for block in forward.blocks]
    assert all(block <= block_size for block in blocks)
    # Below that, no block with a nominal price fits.
    assert blocks or block_size < (8 if cycle == "alternating" else 5)


@pytest.mark.parametrize("cycle", ["auto", *CYCLES])
def test_scheduling_costs_next_to_nothing(cycle: Any) -> None:
    """A cycle takes 5 ms and more, and waits for its plan: a third of one is much too much."""
    start, cycles = time.process_time(), 200
    scheduler = make_scheduler("auto", cycle, 32, lambda: NOMINAL)
    for _ in range(cycles):
        plan = scheduler.plan(1000, {DIFFUSION: 31})
        scheduler.observe(plan, plan.n_drafts, plan.n_drafts // 4)
    assert (time.process_time() - start) / cycles < 1.5e-3

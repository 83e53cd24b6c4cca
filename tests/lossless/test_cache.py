"""Cycles write to the cache in place, and a run that is closed leaves nothing of its own there."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from orthrus_mlx import mlx_generate
from orthrus_mlx.rows import Rows, Segment
from tests.amount import few
from tests.helpers import verify

from . import row_kernels

# Tokens: a copy of such a cache is more than all else that a pass holds.
LONG = few(6_000, of=10_000)
PROMPT = [(7 * i) % 60 for i in range(20)]


@pytest.mark.parametrize("cycle", ["two-pass", "one-pass"])
def test_a_run_closed_early_leaves_no_pass_to_compute(cycle: Any) -> None:
    """MLX would compute it with the next one, and to write twice at once copy the cache."""
    model = row_kernels.build(row_kernels.Model, max_position_embeddings=2 * LONG)
    cache = model.make_cache()
    for layer in cache:  # as after a long text
        long = mx.zeros((1, model.config.num_key_value_heads, LONG, model.config.head_dim))
        layer.update_and_fetch(long, long)
        mx.eval(layer.state)
    options: Any = {"mode": "parallel", "cycle": cycle, "prompt_cache": cache}
    for _ in range(2):  # the first run makes room
        run = mlx_generate(model, [1, 2], (), 40, **options)
        next(run)
        run.close()
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(verify(model, mx.array([1, 2]), cache))
    assert mx.get_peak_memory() - before < cache[0].keys.nbytes / 2


@pytest.mark.parametrize("cycle", ["two-pass", "one-pass"])
def test_a_cycle_writes_to_the_cache_in_place(cycle: Any) -> None:
    model = row_kernels.build(row_kernels.Model, max_position_embeddings=2 * LONG, head_dim=128)
    mx.eval(model.parameters())
    without = mx.get_active_memory()
    cache = model.make_cache()
    for layer in cache:  # as after a long text
        long = mx.zeros((1, model.config.num_key_value_heads, LONG, model.config.head_dim))
        layer.update_and_fetch(long, long)
        mx.eval(layer.state)
    options: Any = {"mode": "parallel", "cycle": cycle, "prompt_cache": cache, "block_size": 4}
    run = mlx_generate(model, [1, 2], (), 60, **options)
    for _ in range(8):  # makes room
        next(run)
    del long
    mx.reset_peak_memory()
    for _ in range(30):
        next(run)
    one = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache)
    assert mx.get_peak_memory() - without < one + cache[0].keys.nbytes / 2
    run.close()


def test_a_pass_holds_its_logits_once() -> None:
    model = row_kernels.build(row_kernels.Model, vocab_size=1 << 15, mask_token_id=1)
    ids, blocks = mx.arange(16), mx.ones((2, 8), mx.int32)
    rows = Rows([Segment(model.make_cache(), ids, blocks, (0, 3))])
    mx.eval(model.parameters())
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    verified, drafted = model.forward(rows)
    mx.eval(verified, drafted)
    assert mx.get_peak_memory() - before < 1.5 * (verified.nbytes + drafted.nbytes)


def test_a_run_closed_late_leaves_what_others_wrote() -> None:
    model = row_kernels.build(row_kernels.Model)
    cache = model.make_cache()
    options: Any = {"mode": "parallel", "cycle": "two-pass", "prompt_cache": cache}
    late = mlx_generate(model, PROMPT, (), 40, **options)
    next(late)
    for layer in cache:
        layer.trim(layer.offset)
    written = list(mlx_generate(model, [5, 6], (), 6, **options))
    late.close()
    assert cache[0].offset == 7
    more = list(mlx_generate(model, written[-1:], (), 20, **options))
    assert written + more == list(mlx_generate(model, [5, 6], (), 26, mode="ar"))

"""Measures what a pass costs on this device, by row count: once, then kept on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx

from ..decoding.cache import Fork, trim
from ..decoding.cost_model import Costs
from ..rows import Rows, Segment
from .measured import device_key, load, store

METHOD = 6  # to be raised with any change in how costs are measured: those on disk are void then

# Rows of a verify or draft pass, around the steps in cost of the known backends: kernels change at
# about 8, 15 and 32 rows on Metal, at 16, 32 and 64 on CUDA.
SIZES = (2, 4, 8, 15, 16, 32, 64)
# (AR rows, diffusion rows) of a one-pass forward, for one block or two.
ONE_PASS = ((8, 8), (6, 10), (16, 16), (10, 22), (32, 32), (22, 42), (32, 64))
JUDGED = 15  # rows; smaller sizes are measured always, as they carry the fixed cost of a pass
# Tokens in the cache while measuring. Few, as AR steps are what is to be beaten: they slow down
# sooner with a longer context than passes over more rows.
CONTEXT = 128
REPEATS, SLOW = 3, 0.2  # runs of a pass after one that warms up, if they take no more seconds
ROUNDS, ENOUGH = 3, 1.0  # of timing all sizes again, if they take no more seconds
AR_STEPS = 8  # in one run


def time_pass(run: Callable[[], Any], cache: list[Any], repeats: int = REPEATS) -> float:
    """Seconds of one pass: the least of `repeats` runs.

    Args:
        run: builds the pass over `cache` and returns its outputs, for `mx.eval`. Its first call
            only warms up.
        cache: cut back to its length after each run.
        repeats: runs that count; one is enough once all took `SLOW` seconds.
    """
    length, times = cache[0].offset, list[float]()
    while len(times) < 2 or (len(times) <= repeats and sum(times) < SLOW):
        start = time.perf_counter()
        mx.eval(run())
        times.append(time.perf_counter() - start)
        trim(cache, length)
    return min(times[1:])


def time_ar_steps(model: Any, cache: list[Any], steps: int = AR_STEPS) -> float:
    """Seconds of one AR step as decoding runs it: the next one begins before the last is read."""
    length = cache[0].offset

    def step(token: mx.array) -> mx.array:
        chosen = mx.argmax(model.forward(Rows.verify(token, cache))[0], axis=-1)
        mx.async_eval(chosen)
        return chosen

    token = step(mx.array([1], mx.int32))
    start = time.perf_counter()
    for _ in range(steps):
        token, before = step(token), token
        before.item()
    seconds = time.perf_counter() - start
    mx.eval(token)
    trim(cache, length)
    return seconds / steps


def calibrate(model: Any, block_size: int) -> Costs:
    """Measure the passes that decoding with blocks of up to `block_size` rows can run.

    Each kind of pass is measured in rising order of rows, until a cycle would lose to AR decoding
    even with every draft accepted. Then all are timed again, some time later, as a machine can be
    slow for a while; the fastest run counts.
    """
    most = 3 * block_size
    context = max(1, min(CONTEXT, model.config.max_position_embeddings - most))
    ids = (mx.arange(most + context, dtype=mx.int32) * 7919 + 13) % model.config.vocab_size
    cache = model.make_cache()
    model.forward(Rows.verify(ids[:context], cache))
    mx.eval([layer.state for layer in cache])

    ar: dict[int, float] = {}
    verify: dict[int, float] = {}
    two_pass: dict[int, float] = {}
    fused: dict[tuple[int, int], float] = {}
    jobs: list[tuple[dict[Any, float], Any, Callable[[], float]]] = []

    def add(table: dict[Any, float], size: Any, job: Callable[[], float]) -> float:
        jobs.append((table, size, job))
        table[size] = job()
        return table[size]

    def add_pass(table: dict[Any, float], size: Any, rows: Callable[[], Rows]) -> float:
        return add(table, size, partial(time_pass, lambda: model.forward(rows()), cache))

    def add_verify(n: int) -> float:
        return add_pass(verify, n, lambda: Rows.verify(ids[:n], cache))

    def add_two_pass(n: int) -> float:
        def cycle() -> list[mx.array]:
            # As the engine runs it: the verify pass is prepared while the draft pass runs.
            _, guesses = model.forward(Rows.draft(ids[:n], cache))
            mx.async_eval(guesses)
            fork = Fork(cache)
            logits, _ = model.forward(Rows.verify(ids[:n], fork.layers))
            mx.eval(guesses)
            fork.commit()
            model.start([logits], cache)
            return [logits]

        return add(two_pass, n, partial(time_pass, cycle, cache))

    def add_fused(n_ar: int, diff_rows: int) -> float:
        block = ids[n_ar : n_ar + diff_rows][None]
        segment = Segment(cache, ids[:n_ar], block, (n_ar - 1,))
        return add_pass(fused, (n_ar, diff_rows), lambda: Rows([segment]))

    step = add(ar, 1, partial(time_ar_steps, model, cache))
    add_verify(1)
    sizes = sorted({*(n for n in SIZES if n < block_size), block_size})
    for n in sizes:  # two-pass cycles, n tokens at most
        add_verify(n)
        if add_two_pass(n) >= n * step and n >= JUDGED:
            break
    for n in [n for n in verify if n >= 4]:  # alternating cycles, n tokens at most
        if add_fused(1, n - 1) + verify[n] >= n * step and n >= JUDGED:
            break
    for n_ar, diff_rows in ONE_PASS:  # one-pass cycles, n_ar tokens at most
        if n_ar > block_size or diff_rows > 2 * block_size:
            continue
        if add_fused(n_ar, diff_rows) >= n_ar * step and n_ar + diff_rows >= JUDGED:
            break
    start = time.perf_counter()
    for _ in range(ROUNDS):
        for table, size, job in jobs:
            if time.perf_counter() - start < ENOUGH:
                table[size] = min(table[size], job())
    # A pass that writes tokens takes no less than an AR step, which is timed in another way.
    return Costs(
        verify={n: max(ar[1], cost) for n, cost in sorted(verify.items())},
        draft={n: max(0.0, cost - max(ar[1], verify[n])) for n, cost in two_pass.items()},
        fused={pair: max(ar[1], cost) for pair, cost in fused.items()},
        plain=ar[1],
    )


def device_costs(model: Any, block_size: int) -> Costs:
    """The costs for this model on this device, from disk where they were measured before."""
    key = [device_key(model), METHOD, block_size]
    found = load("costs", key, _decode)
    if found is None:
        found = calibrate(model, block_size)
        store("costs", key, found, _encode)
    return found


def _encode(costs: Costs) -> dict[str, Any]:
    return {
        "verify": costs.verify,
        "draft": costs.draft,
        "fused": [(a, d, c) for (a, d), c in costs.fused.items()],
        "plain": costs.plain,
    }


def _decode(raw: Any) -> Costs:
    return Costs(
        verify={int(n): float(c) for n, c in raw["verify"].items()},
        draft={int(n): float(c) for n, c in raw["draft"].items()},
        fused={(int(a), int(d)): float(c) for a, d, c in raw["fused"]},
        plain=float(raw["plain"]),
    )

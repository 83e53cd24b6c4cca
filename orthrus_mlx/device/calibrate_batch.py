"""Measures what passes over rows of several sequences cost on this device: once, kept on disk."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx

from ..decoding.cache import trim
from ..decoding.consensus import Sampling
from ..decoding.cost_model import Costs
from ..decoding.drafters import BlockDrafter
from ..decoding.engine import step
from ..decoding.plan import ANY_ROWS, AR_POLICY, Policy
from ..decoding.scheduler import Fixed
from ..decoding.sequence import Request
from ..decoding.sequence import Sequence as Text
from ..rows import Rows, Segment
from .calibrate import (
    CONTEXT,
    ENOUGH,
    METHOD,
    ROUNDS,
    SLOW,
    Guesses,
    cost_of,
    device_costs,
    time_cycles,
    time_pass,
)
from .measured import device_key, load, store

COUNTS = (2, 4, 8, 16)  # sequences in one pass
MANY_ROWS = (24, 48, 64, 96, 128)  # of a verify pass: one sequence alone never has so many
BLOCK = Policy("alternating", 2, 3)  # drafts of several sequences, to time what such passes cost
SPREAD, ROWS = 4, 4  # sequences and rows of each, beside as many rows of one sequence
STEPS = 5


def calibrate_batch(
    model: Any, costs: Costs, progress: Callable[[int, int], None] | None = None
) -> Costs:
    """Add to the costs of one sequence's passes those of several.

    `progress` is called with (steps done, steps in all).
    """
    say = progress or (lambda done, total: None)
    sizes = [n for n in MANY_ROWS if n not in costs.verify]
    total = 1 + 2 * len(COUNTS) + 1 + len(sizes)
    context = max(1, min(CONTEXT, model.config.max_position_embeddings - 2 * max(MANY_ROWS)))
    ids = (mx.arange(context, dtype=mx.int32) * 7919 + 13) % model.config.vocab_size
    caches = []
    for _ in range(max(COUNTS)):
        cache = model.make_cache()
        model.forward(Rows.verify(ids, cache))
        mx.eval([layer.state for layer in cache])
        caches.append(cache)
    jobs: dict[Any, Callable[[], float]] = {}
    for count in (1, *COUNTS):
        jobs["step", count] = partial(time_steps, model, caches[:count], AR_POLICY)
    for count in COUNTS:
        jobs["drafting", count] = partial(time_steps, model, caches[:count], BLOCK)
    jobs["each", 0] = partial(time_each, model, caches[:SPREAD])
    for n in sizes:
        policy, drafts = Policy("one-pass", n - 1), Guesses(n - 1)
        jobs["rows", n] = partial(
            time_cycles, model, caches[0], policy, ANY_ROWS, [drafts], enough=SLOW
        )
    found: dict[Any, float] = {}
    for done, (key, job) in enumerate(jobs.items()):
        say(done, total)
        found[key] = job()
        if key[0] == "rows" and found[key] >= key[1] * found["step", 1]:
            break  # no number of accepted drafts is worth so many
    # All again, some time later, as in `calibrate`: a step of a batch that was measured while the
    # machine was slow would make drafts look cheap for ever.
    start = time.perf_counter()
    for _ in range(ROUNDS):
        for key in found:
            if time.perf_counter() - start < ENOUGH:
                found[key] = min(found[key], jobs[key]())
    say(total, total)
    # The machine may be slower or faster now than when the other costs were measured.
    now = costs.of_ar_step() / found["step", 1]
    verify = costs.verify | {n: now * found["rows", n] for n in sizes if ("rows", n) in found}
    batch = {count: now * found["step", count] for count in COUNTS}
    each = now * found["each", 0]
    known = replace(costs, verify=dict(sorted(verify.items())), batch=batch, each=each)
    drafting = {}  # the least of a pass: a plain step, and what rows do not explain
    for count in COUNTS:
        passes = (count, count * BLOCK.block_rows), (count * (1 + BLOCK.n_drafts), 0)
        told = sum(known.of_pass(*rows, count) for rows in passes) / len(passes)
        more = max(0.0, now * found["drafting", count] - told)
        drafting[count] = known.of_batch_step(count) + more
    return replace(known, drafting=drafting)


def time_steps(model: Any, caches: list[list[Any]], policy: Policy) -> float:
    """Seconds of a step of all sequences; the caches are cut back to their length."""
    length = caches[0][0].offset
    request = Request([1], frozenset(), 1 << 20, Sampling(), model.config.mask_token_id)
    texts = [Text(request, Fixed(policy), cache, [BlockDrafter()]) for cache in caches]
    turn = 1 if policy == AR_POLICY else 2  # kinds of pass, which take turns
    # Twice each kind before anything is timed: the device's kernels may have to be compiled first.
    for _ in range(2 * turn):
        step(model, texts)
    ends = [time.perf_counter()]
    while (len(ends) <= STEPS and ends[-1] - ends[0] <= SLOW * STEPS) or len(ends) <= turn:
        step(model, texts)
        ends.append(time.perf_counter())
    mx.synchronize()
    for cache in caches:
        trim(cache, length)
    return statistics.median_low((b - a) / turn for a, b in zip(ends, ends[turn:], strict=False))


def time_each(model: Any, caches: list[list[Any]]) -> float:
    """Seconds that a sequence more adds to a pass over the same number of rows."""
    ids, own = mx.arange(1, ROWS * len(caches) + 1, dtype=mx.int32), caches[0]

    def spread() -> Any:
        segments = [
            Segment(cache, ar=ids[n * ROWS : (n + 1) * ROWS]) for n, cache in enumerate(caches)
        ]
        return model.forward(Rows(segments))

    lengths = [cache[0].offset for cache in caches]
    together = time_pass(partial(model.forward, Rows.verify(ids, own)), own)
    apart = []
    for _ in range(STEPS):
        start = time.perf_counter()
        mx.eval(spread())
        apart.append(time.perf_counter() - start)
        for cache, length in zip(caches, lengths, strict=True):
            trim(cache, length)
    return max(0.0, min(apart) - together) / (len(caches) - 1)


def batch_costs(
    model: Any, block_size: int, progress: Callable[[int, int], None] | None = None
) -> Costs:
    """The costs of one and of several sequences, from disk where they were measured before."""
    costs = device_costs(model, block_size, progress)
    key = [device_key(model), METHOD, block_size]
    found = load("batch-costs", key, _decode)
    if found is None or found[1].plain != costs.plain:  # or scaled to costs since dropped
        measured = calibrate_batch(model, costs, progress)
        found = {n: c for n, c in measured.verify.items() if n not in costs.verify}, measured
        store("batch-costs", key, found, _encode)
    more, several = found
    return replace(
        costs,
        verify=dict(sorted({**costs.verify, **more}.items())),
        batch=several.batch,
        each=several.each,
        drafting=several.drafting,
    )


Found = tuple[dict[int, float], Costs]  # of many rows, and what has `batch` and `each`


def _encode(found: Found) -> dict[str, Any]:
    several = found[1]
    return {
        "verify": found[0],
        "batch": several.batch,
        "each": several.each,
        "drafting": several.drafting,
        "plain": several.plain,
    }


def _decode(raw: Any) -> Found:
    batch = {int(n): cost_of(c) for n, c in raw["batch"].items()}
    drafting = {int(n): cost_of(c) for n, c in raw["drafting"].items()}
    plain, each = cost_of(raw["plain"]), cost_of(raw["each"], free=True)
    several = Costs({}, {}, {}, plain, batch, each, drafting)
    return {int(n): cost_of(c) for n, c in raw["verify"].items()}, several

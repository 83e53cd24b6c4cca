"""Measures what a pass costs on this device, by row count: once, then kept on disk.

What a busy machine measures would be wrong for as long as it is kept. So what contradicts itself is
timed again before it is stored, and what an answer contradicts is measured again.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..decoding.batch import decode
from ..decoding.cache import trim
from ..decoding.consensus import Sampling
from ..decoding.cost_model import Costs
from ..decoding.plan import ANY_ROWS, AR_POLICY, DIFFUSION, Policy, RowCounts
from ..decoding.scheduler import Fixed
from ..decoding.sequence import Drafter, Request
from ..decoding.sequence import Sequence as Text
from ..rows import Rows
from .measured import device_key, drop, load, place, store

METHOD = 9  # to be raised with any change in how costs are measured: those on disk are void then

# Rows of a verify or draft pass. Costs come in steps, and a policy ends just below one. Where few
# rows cost, as at 4 bits on Metal, the first steps are at 2 to 6 rows, by chip and shape: all of
# them are timed. Kernels change at about 8, 15 and 32 rows on Metal, at 16, 32 and 64 on CUDA.
SIZES = (2, 3, 4, 5, 6, 8, 15, 16, 32, 64)
# (AR rows, diffusion rows) of a one-pass forward, for one block or two.
ONE_PASS = ((8, 8), (6, 10), (16, 16), (10, 22), (32, 32), (22, 42), (32, 64))
JUDGED = 15  # rows; smaller sizes are measured always, as they carry the fixed cost of a pass
# Tokens in the cache while measuring. Few, as AR steps are what is to be beaten: they slow down
# sooner with a longer context than passes over more rows.
CONTEXT = 128
REPEATS, SLOW = 3, 0.2  # cycles in one run after one that warms up, if they take no more seconds
ROUNDS, ENOUGH = 3, 1.0  # of timing all sizes again, if they take no more seconds
# How many times as much is more than noise. Here AR steps timed one after another on a machine that
# others use too differ by a third, and hardly ever by more.
NOISE = 1.5
# AR steps that a draft pass costs at least: it runs all layers too, over more rows. It is measured
# as a difference, which a stall in the verify pass can bring to nothing.
LEAST_DRAFT = 0.5
# Times that use may have stored costs measured again. What it contradicts may be how the machine is
# used and not how it was measured, and that is not to be paid for at each start.
DOUBTS = 3

Job = tuple[dict[Any, float], Any, Callable[[], float]]  # table, size, what times it

_doubts: Counter[Path] = Counter()  # of this process, by the file that was dropped


def time_pass(run: Callable[[], Any], cache: list[Any], repeats: int = REPEATS) -> float:
    """Seconds of one pass, nothing around it: the least of `repeats` runs.

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


def time_cycles(
    model: Any,
    cache: list[Any],
    policy: Policy,
    row_counts: RowCounts = ANY_ROWS,
    drafters: Sequence[Drafter] = (),
    cycles: int = REPEATS,
    enough: float = math.inf,
) -> float:
    """Median seconds of one cycle as decoding runs it, all that the engine does included.

    Two passes that alternate count as one cycle. The cache is cut back to its length.

    Args:
        model: the model.
        cache: its KV cache; what it holds is the context.
        policy: what every cycle does.
        row_counts: the rows of its passes, however many drafts there are to verify.
        drafters: who proposes drafts, apart from the diffusion view.
        cycles: that are timed, after one that warms up.
        enough: seconds after which two cycles are enough.
    """
    length, passes = cache[0].offset, 2 if policy.kind == "alternating" else 1
    request = Request(
        prompt=[1],
        eos_token_ids=frozenset(),
        max_tokens=1 << 20,
        sampling=Sampling(),
        mask_token_id=model.config.mask_token_id,
        row_counts=row_counts,
    )
    run = decode(model, request, Fixed(policy), cache, drafters=drafters)
    seen, ends = 0, list[float]()  # when each cycle was over
    for _, stats in run:
        if stats.cycles == seen or stats.cycles % passes:
            continue
        seen = stats.cycles
        ends.append(time.perf_counter())
        if len(ends) > cycles or (len(ends) > 2 and ends[-1] - ends[0] > enough):
            break
    run.close()
    mx.synchronize()
    trim(cache, length)
    return statistics.median_low(b - a for a, b in itertools.pairwise(ends))


class Guesses:
    """Drafts that cost nothing, so that cycles are verify passes alone."""

    source = DIFFUSION

    def __init__(self, count: int):
        self.ids = [n % 8 for n in range(count)]  # of any vocabulary

    def propose(self, sequence: Text, limit: int) -> list[int]:
        """The same ids always."""
        return self.ids[:limit]


def calibrate(
    model: Any, block_size: int, progress: Callable[[int, int], None] | None = None
) -> Costs:
    """Measure the cycles that decoding with blocks of up to `block_size` rows can run.

    Whole cycles are timed as the engine runs them, as its share can exceed that of a fast device.
    Each kind is measured in rising order of rows, until a cycle would lose to AR decoding even with
    every draft accepted. Then all are timed again, some time later, as a machine can be slow for a
    while; the fastest run counts. Where AR steps were slower at the start or are at the end than in
    between, or costs fall as rows rise, that goes on, for as long as the first time took at most.

    `progress` is called with (steps done, steps in all); kinds that would lose are skipped.
    """
    most = 3 * block_size
    context = max(1, min(CONTEXT, model.config.max_position_embeddings - most))
    ids = (mx.arange(context, dtype=mx.int32) * 7919 + 13) % model.config.vocab_size
    cache = model.make_cache()
    model.forward(Rows.verify(ids, cache))
    mx.eval([layer.state for layer in cache])
    begun = time.perf_counter()

    ar: dict[int, float] = {}
    verify: dict[int, float] = {}
    two_pass: dict[int, float] = {}
    fused: dict[tuple[int, int], float] = {}
    jobs: list[Job] = []

    sizes = sorted({*(n for n in SIZES if n < block_size), block_size})
    one_pass = [(a, d) for a, d in ONE_PASS if a <= block_size and d <= 2 * block_size]
    alternating = [n for n in sizes if n >= 4]
    steps = 2 + 2 * len(sizes) + len(alternating) + len(one_pass) + 1
    say = progress or (lambda done, total: None)

    def add(table: dict[Any, float], size: Any, job: Callable[[], float]) -> float:
        say(len(jobs), steps)
        jobs.append((table, size, job))
        table[size] = job()
        return table[size]

    def add_cycles(
        table: dict[Any, float], size: Any, policy: Policy, rows: RowCounts, *by: Drafter
    ) -> float:
        return add(table, size, partial(time_cycles, model, cache, policy, rows, by, enough=SLOW))

    step = add_cycles(ar, 1, AR_POLICY, ANY_ROWS)
    one = mx.array([1], mx.int32)
    add(verify, 1, partial(time_pass, lambda: model.forward(Rows.verify(one, cache)), cache))
    for n in sizes:  # two-pass cycles
        # One pass without blocks, over drafts that are there: it only verifies.
        add_cycles(verify, n, Policy("one-pass", n - 1), ANY_ROWS, Guesses(n - 1))
        if add_cycles(two_pass, n, Policy("two-pass", n - 1), ANY_ROWS) >= n * step and n >= JUDGED:
            break
    for n in [n for n in alternating if n in verify]:  # alternating cycles, n tokens at most
        cycle = add_cycles(fused, (1, n - 1), Policy("one-pass", 0, n - 1), ANY_ROWS) + verify[n]
        if cycle >= n * step and n >= JUDGED:
            break
    for n_ar, diff_rows in one_pass:  # n_ar tokens at most
        rows = RowCounts((n_ar,), ((n_ar, diff_rows),))
        cycle = add_cycles(fused, (n_ar, diff_rows), Policy("one-pass", n_ar - 1, diff_rows), rows)
        if cycle >= n_ar * step and n_ar + diff_rows >= JUDGED:
            break
    start = time.perf_counter()
    for _ in range(ROUNDS):
        for table, size, job in jobs:
            if time.perf_counter() - start < ENOUGH:
                table[size] = min(table[size], job())
    now = time.perf_counter()
    settled = _settle(jobs, ar, verify, two_pass, step, deadline=now + (now - begun))
    say(steps, steps)
    # A cycle that writes tokens takes no less than an AR step.
    verify = {n: max(ar[1], cost) for n, cost in sorted(verify.items())}
    draft = {n: max(LEAST_DRAFT * ar[1], cost - verify[n]) for n, cost in two_pass.items()}
    if not settled:
        # Noise only adds to a time, so a verify pass costs no more than one over more rows. It can
        # take from a difference, so a draft pass costs no less than one over fewer. What is then
        # left of it is kept all the same: a machine that is always busy would be measured at each
        # start, and answers that contradict it have it measured again.
        least = list(accumulate(reversed(verify.values()), min))[::-1]
        verify = dict(zip(verify, least, strict=True))
        draft = dict(zip(draft, accumulate(draft.values(), max), strict=True))
    return Costs(
        verify=verify,
        draft=draft,
        fused={pair: max(ar[1], cost) for pair, cost in fused.items()},
        plain=ar[1],
    )


def _settle(
    jobs: Sequence[Job],
    ar: dict[int, float],
    verify: dict[int, float],
    two_pass: dict[int, float],
    before: float,
    deadline: float,
) -> bool:
    """Time again what was timed on a busy machine, until it is quiet or `deadline` is past.

    What is odd and no faster another time is how this device is.

    Args:
        jobs: the first of them is an AR step.
        ar: seconds of it.
        verify: seconds by rows.
        two_pass: seconds by rows.
        before: seconds of an AR step when all this began.
        deadline: by `time.perf_counter`.

    Returns:
        whether the machine was quiet in the end.
    """
    faster = True
    while True:
        after = min(jobs[0][2]() for _ in range(2))  # one alone may have met a stall
        ar[1] = min(ar[1], after)
        calm = max(before, after) <= NOISE * ar[1]
        odd = _odd(ar[1], verify, two_pass)
        if calm and not (odd and faster):
            return True
        before, faster = after, False
        for table, size, job in jobs:
            if calm and not (size in odd and (table is verify or table is two_pass)):
                continue
            if time.perf_counter() >= deadline:
                return False
            took = job()
            faster = faster or NOISE * took < table[size]
            table[size] = min(table[size], took)


def _odd(step: float, verify: dict[int, float], two_pass: dict[int, float]) -> set[int]:
    """Rows whose costs cannot all be right: more rows cost no less, and a draft pass is no gift."""
    draft = {n: cost - verify[n] for n, cost in two_pass.items()}
    odd = {n for n, cost in draft.items() if cost < LEAST_DRAFT * step}
    for table in (verify, draft):
        for few, many in itertools.combinations(sorted(table), 2):
            if table[few] > NOISE * table[many]:
                odd |= {few, many}
    return odd


def device_costs(
    model: Any,
    block_size: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    fresh: bool = False,
) -> Costs:
    """The costs for this model on this device, from disk where they were measured before.

    `fresh` measures them in any case.
    """
    found = None if fresh else stored_costs(model, block_size)
    if found is None:
        found = calibrate(model, block_size, progress)
        store("costs", _key(model, block_size), found, _encode)
    return found


def doubt_costs(model: Any, block_size: int) -> None:
    """Drop stored costs that an answer contradicts, so that they are measured again.

    That is before the next answer, once in a process; after that, when another process starts.
    """
    key = _key(model, block_size)
    file, times = place("costs", key), load("doubts", key, _times) or 0
    if times >= DOUBTS or _doubts[file] >= 2:
        return
    store("doubts", key, times + 1, lambda n: {"times": n})
    drop("costs", key, here=not _doubts[file])
    _doubts[file] += 1


def _times(raw: Any) -> int:
    return max(0, int(raw["times"]))


def stored_costs(model: Any, block_size: int) -> Costs | None:
    """The costs that were measured before, of a model or an unread `Checkpoint`."""
    return load("costs", _key(model, block_size), _decode)


def _key(model: Any, block_size: int) -> list[Any]:
    return [device_key(model), METHOD, block_size]


def _encode(costs: Costs) -> dict[str, Any]:
    return {
        "verify": costs.verify,
        "draft": costs.draft,
        "fused": [(a, d, c) for (a, d), c in costs.fused.items()],
        "plain": costs.plain,
    }


def _decode(raw: Any) -> Costs:
    return Costs(
        verify={int(n): cost_of(c) for n, c in raw["verify"].items()},
        draft={int(n): cost_of(c, free=True) for n, c in raw["draft"].items()},
        fused={(int(a), int(d)): cost_of(c) for a, d, c in raw["fused"]},
        plain=cost_of(raw["plain"]),
    )


def cost_of(raw: Any, free: bool = False) -> float:
    """A cost that was stored, of a pass or, if it may be `free`, of a part of one."""
    cost = float(raw)
    if not (0 < cost < math.inf or (free and cost == 0)):
        raise ValueError(f"{cost} is the cost of nothing")
    return cost

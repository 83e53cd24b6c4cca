"""What a pass costs on this device, by row count: measured once, kept on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx

from .consensus import Sampling
from .engine import Request, cut_cache, decode
from .numerics import cache_folder, device_key
from .plans import BLOCKS, PLAIN_POLICY, Policy, RowCounts
from .schedule import Fixed
from .speeds import Costs

# Block sizes around the steps in cost of the known backends: attention and matrix kernels change
# at about 8, 15 and 32 rows on Metal, at 16, 32 and 64 on CUDA. Packed weights cost Metal more with
# each row up to about ten, so that a few rows are all that pays there.
SIZES = (2, 4, 8, 15, 16, 24, 32, 64)
# Rows of a one-pass forward in all. How they are shared out matters little to what it costs, but
# where the rows of each view are filled up.
ROWS = (8, 15, 16, 32, 48, 64, 96)
# The same where all rows but one draft, and the view of that one does next to nothing.
ALTERNATING = (4, 8, 15, 24, 32, 64)
FEW = 8  # rows; calibration goes at least so far
# Tokens in the cache while measuring. Few, as plain steps are what is to be beaten: on CUDA a step
# over 256 tokens and more costs a small model a fifth more than over less, other passes do not.
CONTEXT = 128
# What takes longer than SLOW seconds is timed once; the rest FEWEST times at once, then in FEWEST
# rounds, and in up to ROUNDS until these took ENOUGH seconds.
SLOW, FEWEST, ROUNDS, ENOUGH = 0.05, 3, 8, 1.0
CYCLES = 4  # timed at once, as the engine runs them
METHOD = 2  # to be raised with any change in how prices come about: those on disk are void then

# Used with `calibrate=False`: ratios to a plain step as published for Apple M-series chips.
NOMINAL = Costs(
    verify={1: 1.0, 2: 1.2, 4: 1.3, 8: 1.5, 15: 1.8, 16: 1.95, 32: 2.0, 64: 3.5},
    draft={4: 1.3, 8: 1.5, 15: 1.8, 16: 1.95, 32: 2.0, 64: 3.5},
    fused={
        **{(1, 7): 1.6, (1, 15): 2.05, (1, 31): 2.2},
        **{(5, 10): 2.2, (8, 16): 2.4, (10, 22): 2.5, (16, 32): 3.6, (22, 42): 4.3, (32, 64): 6.5},
    },
)


def calibrate(model: Any, block_size: int) -> Costs:
    """Measure the passes that decoding with blocks of up to `block_size` rows can run.

    Each runs once to warm up and then to be timed; sizes in rising order, for as long as larger
    ones may pay. What is fast is timed several times, the last ones in turn with all others.
    """
    from .few_shapes import shape_of  # with model code, which importing this need not wait for

    config = model.config
    context = max(1, min(CONTEXT, config.max_position_embeddings - ROWS[-1] - block_size))
    cache = model.make_cache()
    ids = (
        mx.arange(ROWS[-1] + block_size + context, dtype=mx.int32) * 7919 + 13
    ) % config.vocab_size
    model.hidden(ids[None, :context], cache)
    mx.eval([layer.state for layer in cache])

    times = _Times()

    def time_pass(run: Callable[..., Any], *args: Any) -> float:
        start = time.perf_counter()
        mx.eval(run(*args, cache))
        taken = time.perf_counter() - start
        cut_cache(cache, context)
        return taken

    cycles: dict[Policy, float] = {}

    def measure_cycles(policy: Policy) -> None:
        times.add(cycles, [policy], lambda: median(cycle_times(model, cache, policy)))

    measure_cycles(PLAIN_POLICY)
    costs = Costs({}, {}, {}, cycles[PLAIN_POLICY])
    times.add(costs.verify, [1], partial(time_pass, model.verify, ids[:1]))

    # Each measures one size, and says what its cycle costs and how many tokens that writes at most.
    def two_pass(n: int) -> tuple[float, int]:
        times.add(costs.verify, [n], partial(time_pass, model.verify, ids[:n]))
        times.add(costs.draft, [n], partial(time_pass, model.draft, ids[:n]))
        return costs.verify[n] + costs.draft[n], n

    def alternating(n: int) -> tuple[float, int]:
        job = partial(time_pass, model.verify_and_draft, ids[:n], 1, (0,))
        times.add(costs.fused, [(1, n - 1)], job)
        drafts = min(n - 2, max(costs.verify) - 1)  # left to verify
        return costs.fused[1, n - 1] + costs.of_verify(1 + drafts), 2 + drafts

    def one_pass(n: int) -> tuple[float, int]:
        shares = layouts(n, block_size)
        by_shape: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for share in shares:
            by_shape.setdefault(shape_of(*share), []).append(share)
        for alike in by_shape.values():
            rows, ahead = alike[len(alike) // 2]
            job = partial(time_pass, model.verify_and_draft, ids[: rows + ahead], rows, (rows - 1,))
            times.add(costs.fused, alike, job)
        return min(costs.fused[share] for share in shares), max(rows for rows, _ in shares)

    for sizes, measure in (
        ([*(n for n in SIZES if n < block_size), block_size], two_pass),
        ([n for n in ALTERNATING if n <= block_size + 1], alternating),
        ([n for n in ROWS if layouts(n, block_size)], one_pass),
    ):
        _while_it_may_pay(sizes, measure, costs.of_plain())

    # What a cycle takes beyond its passes, which is the host's part, or less than they take one by
    # one, as the host prepares the verify pass while the draft pass runs. It counts where models
    # are small; where passes are slow it is nothing, and would be lost in their noise.
    def of_passes(policy: Policy) -> float:
        if policy.kind == "two-pass":
            return costs.draft[policy.n_drafts + 1] + costs.verify[policy.n_drafts + 1]
        return costs.fused[policy.n_drafts + 1, policy.ahead_rows * policy.blocks]

    two = [Policy("two-pass", n - 1) for n in sorted({min(costs.draft), max(costs.draft)})]
    # Two blocks: one is anchored where nothing stands, so that drafts are at hand in every cycle.
    pairs = [
        (n, ahead)
        for n, ahead in costs.fused
        if ahead % 2 == 0 and abs(ahead // 2 - n) < 2 and ahead // 2 <= block_size
    ]
    one = [Policy("one-pass", n - 1, ahead // 2, 2) for n, ahead in pairs]
    one = one[:: max(1, len(one) - 1)]  # the smallest and the largest
    for policy in (*two, *one):
        if of_passes(policy) <= SLOW:
            measure_cycles(policy)
    times.repeat()

    def beyond(policies: list[Policy]) -> float:
        return median(cycles[p] - of_passes(p) for p in policies if p in cycles)

    both = beyond(two) if cycles.keys() & set(two) else 0.0
    alone = beyond(one) if cycles.keys() & set(one) else max(0.0, both)

    def priced(cost: float, more: float) -> float:
        return max(cost + more, cost / 2)  # whatever the noise

    # A verify pass alone, as in alternating cycles, hides no more than a one-pass cycle does.
    return Costs(
        verify={n: priced(cost, alone) for n, cost in costs.verify.items()},
        draft={n: priced(cost, both - alone) for n, cost in costs.draft.items()},
        fused={pair: priced(cost, alone) for pair, cost in costs.fused.items()},
        plain=cycles[PLAIN_POLICY],
    )


class _Times:
    """What is timed in turn: what slows the machine down for a while slows down all alike."""

    def __init__(self) -> None:
        self._fast: list[tuple[dict[Any, float], Sequence[Any], Callable[[], float]]] = []

    def add(self, table: dict[Any, float], sizes: Sequence[Any], job: Callable[[], float]) -> None:
        """Have the seconds that `job` returns in `table`, for all these `sizes`."""
        times = [job(), job()]
        if times[1] <= SLOW:
            times.extend(job() for _ in range(FEWEST - 1))
            del times[0]  # which warmed up
            self._fast.append((table, sizes, job))
        # At first the least, which a stall does not change: it decides what else is measured.
        table.update(dict.fromkeys(sizes, min(times)))

    def repeat(self) -> None:
        """Time what is fast again, all of it in each round, for as long as that may take.

        A machine can be half as fast for seconds. So what counts is the share of a round, which is
        the same then.
        """
        start, rounds = time.perf_counter(), list[list[float]]()
        while len(rounds) < FEWEST or (
            len(rounds) < ROUNDS and time.perf_counter() - start < ENOUGH
        ):
            rounds.append([job() for *_, job in self._fast])
        whole = [sum(times) for times in rounds]
        for i, (table, sizes, _) in enumerate(self._fast):
            share = median(times[i] / all_ for times, all_ in zip(rounds, whole, strict=True))
            table.update(dict.fromkeys(sizes, share * median(whole)))


def _while_it_may_pay(
    sizes: Sequence[int], measure: Callable[[int], tuple[float, int]], plain: float
) -> None:
    """Measure sizes in rising order, until two in a row of `FEW` rows or more are hopeless.

    That is, slower than plain steps even if every draft stood, and no nearer to paying than the
    size before: as on a CPU, where each row costs the same. On a GPU it is the first few rows that
    cost, by which nothing can be told.
    """
    hopeless, loss = 0, 0.0
    for n in sizes:
        cost, tokens = measure(n)
        before, loss = loss, cost - tokens * plain
        if n >= FEW:
            hopeless = hopeless + 1 if loss > max(0.0, 0.9 * before) else 0
        if hopeless == 2:
            return


def cycle_times(model: Any, cache: list[Any], policy: Policy) -> list[float]:
    """Seconds for each of some cycles as the engine runs them, or for one that is slow.

    Plain steps start before the last one is read.
    """
    context = cache[0].offset
    most = (CYCLES + 3) * (policy.n_drafts + 1)
    request = Request([1], frozenset(), most, Sampling(), model.config.mask_token_id)
    times: list[float] = []  # when the first token of each cycle came
    with contextlib.closing(decode(model, request, Fixed(policy), cache)) as run:
        for _, stats in run:
            if stats.cycles > len(times):
                times.append(time.perf_counter())
            slow = len(times) > 2 and times[-1] - times[-2] > SLOW
            if slow or len(times) == CYCLES + 2:
                break
    cut_cache(cache, context)
    return [after - before for before, after in pairwise(times[1:])]


def layouts(n: int, block_size: int) -> list[tuple[int, int]]:
    """How `n` rows can be shared among AR rows and one or more blocks: (AR rows, the blocks').

    The AR rows hold what a block leaves to verify: all of its guesses but one, and the anchor.
    """
    lengths = {blocks: round(n / (blocks + 1)) for blocks in BLOCKS}
    return [
        (n - blocks * length, blocks * length)
        for blocks, length in lengths.items()
        if 2 <= length <= block_size
    ]


def device_costs(model: Any, block_size: int) -> Costs:
    """The costs for this model on this device, from disk where they were measured before."""
    sizes = [block_size, SIZES, ROWS, ALTERNATING]
    key = json.dumps([device_key(model), METHOD, sizes], sort_keys=True).encode()
    file = cache_folder() / f"costs-{hashlib.sha256(key).hexdigest()[:24]}.json"
    found = _read(file)
    if found is None:
        found = calibrate(model, block_size)
        _write(file, found)
    return found


@functools.lru_cache(maxsize=32)
def within(costs: Costs, row_counts: RowCounts) -> Costs:
    """The costs that are left where exact numerics pad every pass to `row_counts`."""
    if not row_counts.verify:
        return costs
    least = row_counts.verify[0]
    # What is larger than anything measured could not pay: measuring stops there.
    rows = [n for n in row_counts.verify if n == least or n <= max(costs.verify)]
    pairs = [
        (n, ahead)
        for n, ahead in row_counts.fused
        if any(a >= n and d >= ahead for a, d in costs.fused)
    ]
    return Costs(
        verify={n: costs.of_verify(n) for n in rows},
        draft={n: cost for n, cost in costs.draft.items() if n <= rows[-1]},
        fused={pair: costs.of_fused(*pair) for pair in pairs},
        plain=costs.of_plain() + max(0.0, costs.of_verify(least) - costs.of_verify(1)),
    )


# By file, and when it was written: what schedules look up again and again is kept with them.
_known: dict[Path, tuple[int, Costs]] = {}


def _read(file: Path) -> Costs | None:
    try:
        written = file.stat().st_mtime_ns
        if file in _known and _known[file][0] == written:
            return _known[file][1]
        raw = json.loads(file.read_text(encoding="utf-8"))
        found = Costs(
            verify={int(n): float(c) for n, c in raw["verify"].items()},
            draft={int(n): float(c) for n, c in raw["draft"].items()},
            fused={(int(a), int(d)): float(c) for a, d, c in raw["fused"]},
            plain=None if raw["plain"] is None else float(raw["plain"]),
        )
        _known[file] = written, found
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, or written by another version: measure again


def _write(file: Path, costs: Costs) -> None:
    """Keep the result; a folder that cannot be written to only costs a new measurement."""
    raw = {
        "verify": costs.verify,
        "draft": costs.draft,
        "fused": [(a, d, c) for (a, d), c in costs.fused.items()],
        "plain": costs.plain,
    }
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(raw), encoding="utf-8")
        partial.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)

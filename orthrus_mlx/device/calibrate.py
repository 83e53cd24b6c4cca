"""Measures what a pass costs on this device, by row count."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

import mlx.core as mx

from ..decoding.consensus import Sampling
from ..decoding.cost_model import Costs
from ..decoding.engine import Request, cut_cache, decode
from ..decoding.plan import AR_POLICY, BLOCKS, Policy
from ..decoding.scheduler import Fixed

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
CYCLES = 4  # timed at once
# Whole cycles are timed where their passes take up to HOST seconds. What they take beyond their
# passes is the host's part; or less than nothing, as the host prepares the verify pass while the
# draft pass runs, and as two shapes in turn are faster than many. It is lost in the noise of slower
# ones.
HOST = 0.02


def calibrate(model: Any, block_size: int) -> Costs:
    """Measure the passes that decoding with blocks of up to `block_size` rows can run.

    Each runs once to warm up and then to be timed; sizes in rising order, for as long as larger
    ones may pay. What is fast is timed several times, the last ones in turn with all others.
    """
    from ..cuda.compiled import shape_of  # with model code, which importing this need not wait for

    rig, times = _Rig(model, block_size), _Times()
    cycles: dict[Policy, float] = {}
    times.add(cycles, [AR_POLICY], partial(rig.cycle, AR_POLICY))
    costs = Costs({}, {}, {}, cycles[AR_POLICY])
    times.add(costs.verify, [1], partial(rig.verify, 1))

    # Each measures one size, and says what its cycle costs and how many tokens that writes at most.
    def two_pass(n: int) -> tuple[float, int]:
        times.add(costs.verify, [n], partial(rig.verify, n))
        times.add(costs.draft, [n], partial(rig.draft, n))
        return costs.verify[n] + costs.draft[n], n

    def alternating(n: int) -> tuple[float, int]:
        times.add(costs.fused, [(1, n - 1)], partial(rig.fused, 1, n - 1))
        drafts = min(n - 2, max(costs.verify) - 1)  # left to verify
        return costs.fused[1, n - 1] + costs.of_verify(1 + drafts), 2 + drafts

    def one_pass(n: int) -> tuple[float, int]:
        shares = layouts(n, block_size)
        by_shape: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for share in shares:
            by_shape.setdefault(shape_of(*share), []).append(share)
        for alike in by_shape.values():
            times.add(costs.fused, alike, partial(rig.fused, *alike[len(alike) // 2]))
        return min(costs.fused[share] for share in shares), max(rows for rows, _ in shares)

    for sizes, measure in (
        ([*(n for n in SIZES if n < block_size), block_size], two_pass),
        ([n for n in ALTERNATING if n <= block_size + 1], alternating),
        ([n for n in ROWS if layouts(n, block_size)], one_pass),
    ):
        _while_it_may_pay(sizes, measure, costs.of_ar_step())

    two = [Policy("two-pass", n - 1) for n in sorted({min(costs.draft), max(costs.draft)})]
    # Two blocks: one is anchored where nothing stands, so that drafts are at hand in every cycle.
    one = [
        Policy("one-pass", n - 1, ahead // 2, 2)
        for n, ahead in costs.fused
        if ahead % 2 == 0 and abs(ahead // 2 - n) < 2 and ahead // 2 <= block_size
    ]
    one = one[:: max(1, len(one) - 1)]  # the smallest and the largest

    def passes(policy: Policy) -> list[tuple[dict[Any, float], Any]]:
        """Where a policy's passes are priced."""
        n, ahead = policy.n_drafts + 1, policy.block_rows * policy.blocks
        return [(costs.fused, (n, ahead))] if ahead else [(costs.draft, n), (costs.verify, n)]

    for policy in (*two, *one):
        if sum(table[size] for table, size in passes(policy)) <= HOST:
            times.add(cycles, [policy], partial(rig.cycle, policy))
    times.repeat()

    def beyond(policies: Sequence[Policy]) -> float | None:
        """Seconds that their cycles take beyond their passes; None if that was not measured."""
        found: list[float] = []
        for policy in policies:
            if policy in cycles:
                parts = (times.of(*where) for where in passes(policy))
                rounds = zip(times.of(cycles, policy), *parts, strict=False)
                found += [whole - sum(each) for whole, *each in rounds]
        return beyond_noise(found) if found else None

    both, alone = beyond(two) or 0.0, beyond(one)
    # A verify pass alone, as in alternating cycles, hides no more than a one-pass cycle does.
    alone = max(0.0, both) if alone is None else alone
    # What writes tokens takes no less than a plain step, which begins before the last one is read.
    plain = cycles[AR_POLICY]
    verify = {n: max(plain, cost + alone) for n, cost in costs.verify.items()}
    more = {n: both - (verify[n] - costs.verify[n]) for n in costs.draft}  # not in verify yet
    return Costs(
        verify=verify,
        draft={n: max(cost / 2, cost + more[n]) for n, cost in costs.draft.items()},
        fused={pair: max(plain, cost + alone) for pair, cost in costs.fused.items()},
        plain=plain,
    )


def beyond_noise(values: list[float]) -> float:
    """The median of measurements, or 0 if it is less than about its own error."""
    low, middle, high = quantiles(values, method="inclusive")  # no single one moves these far
    return middle if abs(middle) > (high - low) / len(values) ** 0.5 else 0.0


class _Rig:
    """Runs passes of a model over some tokens in its cache, and says how many seconds each took."""

    def __init__(self, model: Any, block_size: int):
        most = ROWS[-1] + block_size
        self.context = max(1, min(CONTEXT, model.config.max_position_embeddings - most))
        self._model, self._cache = model, model.make_cache()
        ids = mx.arange(most + self.context, dtype=mx.int32) * 7919 + 13
        self._ids = ids % model.config.vocab_size
        model.hidden(self._ids[None, : self.context], self._cache)
        mx.eval([layer.state for layer in self._cache])

    def verify(self, n: int) -> float:
        return self._time(self._model.verify, n)

    def draft(self, n: int) -> float:
        return self._time(self._model.draft, n)

    def fused(self, n: int, ahead: int) -> float:
        """Of `n` AR rows, and a block of `ahead` behind the last."""
        return self._time(self._model.verify_and_draft, n + ahead, n, (n - 1,))

    def cycle(self, policy: Policy) -> float:
        """A whole cycle, as the engine runs it."""
        return median(cycle_times(self._model, self._cache, policy))

    def _time(self, run: Callable[..., Any], rows: int, *args: Any) -> float:
        start = time.perf_counter()
        mx.eval(run(self._ids[:rows], *args, self._cache))
        taken = time.perf_counter() - start
        cut_cache(self._cache, self.context)
        return taken


class _Times:
    """What is timed in turn: what slows the machine down for a while slows down all alike."""

    def __init__(self) -> None:
        self._fast: list[tuple[dict[Any, float], Sequence[Any], Callable[[], float]]] = []
        self._rounds: list[list[float]] = []  # seconds by round, and by what is fast

    def add(self, table: dict[Any, float], sizes: Sequence[Any], job: Callable[[], float]) -> None:
        """Have the seconds that `job` returns in `table`, for all these `sizes`."""
        first, *times = job(), job()  # the first one warms up
        if times[0] > 1.5 * first:
            times.append(job())  # a stall
        if min(times) <= SLOW:
            times.extend(job() for _ in range(FEWEST - 1))
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
        usual = median(sum(times) for times in rounds)
        self._rounds = [[t / sum(times) * usual for t in times] for times in rounds]
        for i, (table, sizes, _) in enumerate(self._fast):
            table.update(dict.fromkeys(sizes, median(times[i] for times in self._rounds)))

    def of(self, table: dict[Any, float], size: Any) -> list[float]:
        """The seconds by round; none of what was slow."""
        for i, (known, sizes, _) in enumerate(self._fast):
            if known is table and size in sizes:
                return [times[i] for times in self._rounds]
        return []


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

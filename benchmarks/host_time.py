"""Time what the host does to plan a pass that several sequences share, while the device is idle.

No model runs: the streams of `simulate_batch.py` say what is accepted, half of them JSON and half
prose. At three passes of ten a stream has drafts to copy, too.

    python benchmarks/host_time.py [--passes 400]

Printed: milliseconds a pass by sequences. "first" is a plan as it comes, with costs that nobody had
asked for worked out; "again" the same plan a second time; "observe" counts what came of it, "warm"
the median of that. Then microseconds of one sequence's drafters by the length of its text.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.simulate_batch import BATCHES, Stream, streams_of
from orthrus_mlx.decoding.consensus import Sampling
from orthrus_mlx.decoding.cost_model import NOMINAL, Costs
from orthrus_mlx.decoding.drafters import BlockDrafter, CopyDrafter, PredictionDrafter
from orthrus_mlx.decoding.plan import AR_POLICY, DIFFUSION
from orthrus_mlx.decoding.row_budget import RowBudget
from orthrus_mlx.decoding.scheduler import Fixed
from orthrus_mlx.decoding.sequence import Asked, Outcome, Request, Sequence
from orthrus_mlx.device.calibrate import ONE_PASS, SIZES
from orthrus_mlx.device.calibrate_batch import MANY_ROWS

TOKENS = 256  # of an answer
LENGTHS = (200, 2000, 20_000)
PATTERN = [n * 7 % 97 for n in range(50)]


def gpu_costs() -> Costs:
    """Costs as of a GPU on which a row adds little, all sizes of a block of 32 measured."""

    def price(rows: int) -> float:
        return 1 + 0.006 * rows + 0.05 * (rows > 16) + 0.1 * (rows > 64)

    blocks = [n for n in SIZES if n <= 32]
    shares = [*((1, n - 1) for n in blocks if n >= 4), *ONE_PASS]
    return Costs(
        {n: price(n) for n in sorted({1, *blocks, *MANY_ROWS})},
        {n: price(n) for n in blocks},
        {share: 1.05 * price(sum(share)) for share in shares},
        plain=0.9,
        batch={n: 1 + 0.01 * n for n in BATCHES[1:]},
        each=0.01,
        drafting={n: 1.1 + 0.01 * n for n in BATCHES[1:]},
    )


def time_passes(costs: Costs, count: int, passes: int) -> str:
    """A row of the table."""
    budget, draw = RowBudget(lambda: costs), random.Random(0)
    kinds = streams_of(("JSON", "prose"), count)
    streams: list[Any] = [Stream(costs, kind, TOKENS, n) for n, kind in enumerate(kinds)]
    first, again, observed = list[float](), list[float](), list[float]()
    for _ in range(passes):
        asked = []
        for stream in streams:
            at_hand = {DIFFUSION: len(stream.pending)} if stream.pending else {}
            if draw.random() < 0.3:
                at_hand["copy"] = draw.choice((3, 20, stream.left))
            asked.append(Asked(stream, stream.left, at_hand))
        times = [time.perf_counter()]
        for _ in range(2):
            plans = budget.plan(asked)
            times.append(time.perf_counter())
        outcomes = []
        for stream, plan in zip(streams, plans, strict=True):
            if plan.source != DIFFUSION and plan.n_drafts:
                stream.pending = [draw.random() < 0.9 for _ in range(plan.n_drafts)]
            outcomes.append(Outcome(stream, plan, *stream.resolve(plan)))
        times.append(time.perf_counter())
        budget.observe(outcomes)
        times.append(time.perf_counter())
        for times_of, start in ((first, 0), (again, 1), (observed, 3)):
            times_of.append(1e3 * (times[start + 1] - times[start]))
        for stream in streams:
            if not stream.left:
                stream.begin()
    means = [statistics.mean(found) for found in (first, again, observed)]
    cells = [*means, statistics.median(observed)]
    return " | ".join([str(count), *(f"{cell:.3f}" for cell in cells)])


def time_drafters(length: int, repeating: bool) -> str:
    """A row of the table: a token more each time, and what may be drafted then."""
    draw = random.Random(0)
    text = [PATTERN[n % 50] if repeating else draw.randrange(50_000) for n in range(length)]
    prompt, answer = text[: length // 2], text[length // 2 :]
    cells = []
    for drafter in (BlockDrafter(), CopyDrafter(), PredictionDrafter(answer)):
        request = Request(prompt, frozenset(), 1 << 20, Sampling(), 0)
        cache: Any = [argparse.Namespace(offset=0)]
        sequence = Sequence(request, Fixed(AR_POLICY), cache, [drafter])
        sequence.text = list(text)
        start = time.perf_counter()
        sequence.propose(TOKENS)
        read, steps = time.perf_counter() - start, 500
        for n in range(steps):
            sequence.text.append(PATTERN[(length + n) % 50])
            sequence.propose(TOKENS)
        own = (time.perf_counter() - start - read) / steps
        cells.append(f"{1e6 * own:.1f} ({1e6 * read:.0f})")
    return " | ".join([f"{length:,}, {'repeating' if repeating else 'random'}", *cells])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--passes", type=int, default=400, help="passes to time")
    passes = parser.parse_args().passes
    print(
        "| costs | sequences | first, ms | again | observe | warm |\n|---|---:|---:|---:|---:|---:|"
    )
    for name, costs in (("GPU", gpu_costs()), ("nominal", NOMINAL)):
        for count in BATCHES:
            print(f"| {name} | {time_passes(costs, count, passes)} |", flush=True)
    print("\n| text | block, us (first) | copy | prediction |\n|---|---:|---:|---:|")
    for repeating in (False, True):
        for length in LENGTHS:
            print(f"| {time_drafters(length, repeating)} |", flush=True)


if __name__ == "__main__":
    main()

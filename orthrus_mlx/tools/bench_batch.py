"""Time many answers at once: plain batches, batches that draft, and mlx-lm's, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from ..decoding.consensus import Sampling
from ..decoding.cost_model import Costs
from ..decoding.drafters import BlockDrafter, CopyDrafter
from ..decoding.engine import step
from ..decoding.prefill import prefill
from ..decoding.row_budget import RowBudget
from ..decoding.scheduler import Mode, make_scheduler
from ..decoding.sequence import Drafter, Request
from ..decoding.sequence import Sequence as Text
from ..device.measured import device_name
from .bench import STOCK, Spread
from .reference import StockMlxLm

WAYS: dict[str, Mode] = {"plain": "ar", "auto": "auto"}


@dataclass
class BatchSpeed:
    """One way of answering so many prompts at once.

    Attributes:
        count: answers at once.
        way: "plain", "auto" or "mlx-lm".
        speed: tokens a second of all answers together, prompts apart.
        ratio: to the speed of the first way in the same round.
        tokens_per_pass: tokens of one sequence for each cycle; None of mlx-lm.
    """

    count: int
    way: str
    speed: Spread
    ratio: Spread
    tokens_per_pass: float | None = None


@dataclass
class BatchReport:
    """What was measured; `interrupted` if Ctrl-C ended it early."""

    speeds: list[BatchSpeed] = field(default_factory=list)
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "mlx": version("mlx"),
            "mlx_lm": version("mlx-lm"),
            "device": device_name(),
            **asdict(self),
        }


@dataclass
class _Outcome:
    tokens: int
    seconds: float
    cycles: int = 0


def bench_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: Collection[int],
    counts: Sequence[int],
    costs: Callable[[], Costs],
    *,
    max_tokens: int = 128,
    rounds: int = 3,
    against: bool = False,
    begin: Callable[[Sequence[Any], Sequence[Sequence[int]]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    measured: Callable[[BatchReport], None] | None = None,
) -> BatchReport:
    """Answer the first prompts, so many at once, in each way; the ways take turns in each round.

    Args:
        model: a model from `orthrus_mlx.load`.
        prompts: ids; taken in turn where more are asked for than there are.
        ends: ids that end an answer.
        counts: answers at once.
        costs: what passes cost; asked for before anything is timed.
        max_tokens: most ids of an answer.
        rounds: times that everything is measured, after one that warms up.
        against: whether to time mlx-lm too.
        begin: called with the KV caches and prompts of each batch that drafts, before it is timed.
        progress: called with (steps done, steps in all).
        measured: called with the report so far, after each count.
    """
    report, known = BatchReport(), costs()
    ways = [*([STOCK] if against else []), *WAYS]
    stock = StockMlxLm(model).model if against else None
    done, total = 0, len(counts) * (rounds + 1) * len(ways)
    try:
        for count in counts:
            batch = [list(prompts[n % len(prompts)]) for n in range(count)]
            found: dict[str, list[_Outcome]] = {way: [] for way in ways}
            for round_ in range(rounds + 1):
                for way in ways:
                    if way == STOCK:
                        outcome = run_stock(stock, batch, ends, max_tokens)
                    else:
                        outcome = run(model, batch, ends, max_tokens, WAYS[way], known, begin)
                    if round_:
                        found[way].append(outcome)
                    done += 1
                    if progress is not None:
                        progress(done, total)
            report.speeds += [_speed(count, way, found, ways[0]) for way in ways]
            if measured is not None:
                measured(report)
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def _speed(count: int, way: str, found: dict[str, list[_Outcome]], first: str) -> BatchSpeed:
    speeds = {name: [o.tokens / o.seconds for o in runs] for name, runs in found.items()}
    ratios = [a / b for a, b in zip(speeds[way], speeds[first], strict=True)]
    cycles = sum(o.cycles for o in found[way])
    speed, ratio = Spread.of(speeds[way]), Spread.of(ratios)
    assert speed is not None and ratio is not None
    per_pass = sum(o.tokens for o in found[way]) / cycles if cycles else None
    return BatchSpeed(count, way, speed, ratio, per_pass)


def run(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: Collection[int],
    max_tokens: int,
    mode: Mode,
    costs: Costs,
    begin: Callable[[Sequence[Any], Sequence[Sequence[int]]], None] | None = None,
) -> _Outcome:
    """Answer all prompts at once with this package's engine, timed from the end of the prompts."""
    texts = []
    for prompt in prompts:
        request = Request(
            list(prompt), frozenset(ends), max_tokens, Sampling(), model.config.mask_token_id
        )
        scheduler = make_scheduler(mode, "auto", model.config.block_size, lambda: costs)
        drafters: list[Drafter] = [BlockDrafter(), *([CopyDrafter()] if mode == "auto" else [])]
        texts.append(Text(request, scheduler, model.make_cache(), drafters))
    if begin is not None and mode != "ar":
        begin([text.cache for text in texts], prompts)
    for text in texts:
        prefill(model, text.request, text.cache)
    mx.synchronize()
    budget, running, tokens = RowBudget(lambda: costs), texts, 0
    start = time.perf_counter()
    while running:
        tokens += sum(map(len, step(model, running, budget)))
        for text in running:
            if text.error is not None:
                raise text.error
        running = [text for text in running if not text.done]
    seconds = time.perf_counter() - start
    return _Outcome(tokens, seconds, sum(text.stats.cycles for text in texts))


def run_stock(
    stock: Any, prompts: Sequence[Sequence[int]], ends: Collection[int], max_tokens: int
) -> _Outcome:
    """The same with mlx-lm's `BatchGenerator`, timed from its first tokens on."""
    from mlx_lm.generate import BatchGenerator

    generator: Any = BatchGenerator(
        stock,
        stop_tokens=[[end] for end in ends] or None,
        completion_batch_size=len(prompts),
        prefill_batch_size=len(prompts),
    )
    generator.insert([list(prompt) for prompt in prompts], [max_tokens] * len(prompts))
    begun, tokens, start = 0, 0, 0.0
    while responses := generator.next_generated():
        if begun < len(prompts):  # the prompts of a batch are read together
            begun += len(responses)
            start = time.perf_counter()
        else:
            tokens += len(responses)
    seconds = max(time.perf_counter() - start, 1e-9)
    generator.close()
    return _Outcome(tokens, seconds)


def median_ratio(report: BatchReport, count: int, way: str, other: str) -> float:
    """How many times as fast `way` was as `other` at so many answers, by their medians."""
    speeds = {s.way: s.speed.median for s in report.speeds if s.count == count}
    return speeds[way] / speeds[other]

"""Time AR, parallel and auto mode side by side on real prompts."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from ..decoding.options import GenerationOptions
from ..decoding.scheduler import CycleKind
from ..device.measured import device_name
from ..errors import GenerationError
from ..generate import decode_tokens

WAYS = ("ar", "parallel", "auto")
STOCK = "mlx-lm"
WARM_UP = 8  # tokens decoded in every mode before anything is timed


@dataclass(frozen=True)
class Options:
    """How to decode while measuring; names as in `mlx_generate`."""

    max_tokens: int = 128
    rounds: int = 3
    cycle: CycleKind = "auto"
    numerics: str = "fast"
    block_size: int | None = None
    calibrate: bool = True


@dataclass
class Run:
    """One answer, timed.

    Attributes:
        kind: of the prompt.
        prompt: number of the prompt.
        way: the mode: "ar", "parallel", "auto" or "mlx-lm".
        ids: the answer.
        first: seconds to the first token, prefill included.
        decoding: seconds from the end of prefill to the end of the answer.
        peak: peak bytes of MLX arrays, weights included.
        forward_passes: passes over the layers.
        cycles: cycles.
        drafted_at: drafts verified, by position in the block.
        accepted_at: drafts accepted, by position in the block.
    """

    kind: str
    prompt: int
    way: str
    ids: list[int]
    first: float
    decoding: float
    peak: int
    forward_passes: int = 0
    cycles: int = 0
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)

    @property
    def speed(self) -> float | None:
        """Tokens per second, without prefill; None if no time passed."""
        return len(self.ids) / self.decoding if self.decoding > 0 else None


@dataclass
class Spread:
    """A median with the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """The spread of the values that are not None; None if there are none."""
        known = sorted(v for v in values if v is not None)
        if not known:
            return None
        if len(known) == 1:
            return cls(known[0], known[0], known[0])
        low, middle, high = statistics.quantiles(known, n=4, method="inclusive")
        return cls(middle, low, high)


@dataclass
class Summary:
    """All runs of one mode on one kind of prompt, or on all.

    Attributes:
        kind: of the prompts, or "all".
        way: the mode.
        runs: number of runs.
        speed: tokens per second.
        speed_up: over AR mode on the same prompt in the same round.
        first_token: seconds to the first token.
        tokens_per_forward: tokens per pass over the layers; a two-pass cycle has two.
        tokens_per_cycle: tokens per cycle.
        acceptance: acceptance rate by position in the block.
        peak_memory: in bytes.
        differing: answers that differ from AR mode's; expected at near-ties only.
    """

    kind: str
    way: str
    runs: int
    speed: Spread | None
    speed_up: Spread | None
    first_token: Spread | None
    tokens_per_forward: float | None
    tokens_per_cycle: float | None
    acceptance: list[float]
    peak_memory: int
    differing: int


@dataclass
class Report:
    """What was measured; `interrupted` if Ctrl-C ended it early."""

    ways: list[str]
    runs: list[Run] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)  # of each run
    interrupted: bool = False

    def add(self, run: Run, round_: int) -> None:
        """Keep one run."""
        self.runs.append(run)
        self.rounds.append(round_)

    @property
    def kinds(self) -> list[str]:
        """Kinds of prompts, in order of first use."""
        return list(dict.fromkeys(run.kind for run in self.runs))

    @property
    def summaries(self) -> list[Summary]:
        """One per kind and mode, then one per mode over all kinds."""
        kinds = [*self.kinds, "all"] if len(self.kinds) > 1 else self.kinds
        rows = [self.summary(kind, way) for kind in kinds for way in self.ways]
        return [row for row in rows if row.runs]

    def summary(self, kind: str, way: str) -> Summary:
        """The summary of one mode on one kind."""
        plain = {
            (run.prompt, round_): run
            for run, round_ in zip(self.runs, self.rounds, strict=True)
            if run.way == "ar"
        }
        pairs = [
            (run, plain.get((run.prompt, round_)))
            for run, round_ in zip(self.runs, self.rounds, strict=True)
            if run.way == way and kind in (run.kind, "all")
        ]
        runs = [run for run, _ in pairs]
        tokens = sum(len(run.ids) for run in runs)
        passes, cycles = (sum(getattr(r, n) for r in runs) for n in ("forward_passes", "cycles"))
        drafted, accepted = (
            _sums(getattr(r, n) for r in runs) for n in ("drafted_at", "accepted_at")
        )
        accepted += [0] * (len(drafted) - len(accepted))
        return Summary(
            kind=kind,
            way=way,
            runs=len(runs),
            speed=Spread.of(run.speed for run in runs),
            speed_up=Spread.of(_ratio(run, other) for run, other in pairs),
            first_token=Spread.of(run.first for run in runs),
            tokens_per_forward=tokens / passes if passes else None,
            tokens_per_cycle=tokens / cycles if cycles else None,
            acceptance=[a / d for a, d in zip(accepted, drafted, strict=True)],
            peak_memory=max((run.peak for run in runs), default=0),
            differing=sum(other is not None and run.ids != other.ids for run, other in pairs),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; a run has the number of its ids in place of the ids."""
        runs = []
        for run, round_ in zip(self.runs, self.rounds, strict=True):
            raw = {**asdict(run), "round": round_, "tokens": len(run.ids), "speed": run.speed}
            del raw["ids"]
            runs.append(raw)
        return {
            "mlx": version("mlx"),
            "device": device_name(),
            "interrupted": self.interrupted,
            "summaries": [asdict(summary) for summary in self.summaries],
            "runs": runs,
        }


def _ratio(run: Run, other: Run | None) -> float | None:
    if other is None or run.speed is None or other.speed is None:
        return None
    return run.speed / other.speed


def _sums(lists: Iterable[list[int]]) -> list[int]:
    total: list[int] = []
    for values in lists:
        total += [0] * (len(values) - len(total))
        for place, value in enumerate(values):
            total[place] += value
    return total


def bench(
    model: Any,
    prompts: Sequence[tuple[str, Sequence[int]]],
    ends: Collection[int],
    options: Options,
    *,
    against: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Answer every prompt in every mode, in rounds; Ctrl-C returns what is known.

    Modes take turns on each prompt, in rotating order, so that a machine that slows down or heats
    up does so for all of them alike.

    Args:
        model: a model from `orthrus_mlx.load`.
        prompts: (kind, ids) of each prompt.
        ends: ids that end an answer.
        options: how to decode.
        against: time stock mlx-lm on the same weights too.
        progress: called with (answers written, answers in all).

    Raises:
        GenerationError: for no rounds or no tokens.
    """
    if options.rounds < 1 or options.max_tokens < 1:
        raise GenerationError("A benchmark needs one round and one token at least.")
    ways = [*WAYS, *([STOCK] if against else [])]
    stock = _stock(model) if against else None
    report = Report(ways)
    done, total = 0, options.rounds * len(prompts) * len(ways)

    def answer(way: str, kind: str, number: int, ids: Sequence[int], most: int) -> Run:
        if way == STOCK:
            return time_stock(stock, kind, number, ids, ends, most)
        return time_ours(model, way, kind, number, ids, ends, most, options)

    try:
        for way in ways:
            answer(way, *prompts[0][:1], 0, prompts[0][1], min(WARM_UP, options.max_tokens))
        for round_ in range(options.rounds):
            for number, (kind, ids) in enumerate(prompts):
                first = (round_ + number) % len(ways)
                for way in ways[first:] + ways[:first]:
                    report.add(answer(way, kind, number, ids, options.max_tokens), round_)
                    done += 1
                    if progress is not None:
                        progress(done, total)
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def time_ours(
    model: Any,
    way: Any,
    kind: str,
    number: int,
    ids: Sequence[int],
    ends: Collection[int],
    max_tokens: int,
    options: Options,
) -> Run:
    """Time one greedy answer of this package's engine."""
    mx.reset_peak_memory()
    totals: list[Any] = []
    written: list[int] = []
    clock = _Clock()
    clock.start()
    given = GenerationOptions(
        max_tokens=max_tokens,
        mode=way,
        cycle=options.cycle,
        numerics=options.numerics,
        block_size=options.block_size,
        calibrate=options.calibrate,
        on_stats=totals.append,
        prompt_progress_callback=clock.prompt_read,
    )
    run = decode_tokens(model, ids, ends, given)
    with contextlib.closing(run):
        for decided, _ in run:
            clock.token()
            written.append(decided.token)
    stats = totals[0]
    return Run(
        kind,
        number,
        way,
        written,
        *clock.stop(),
        mx.get_peak_memory(),
        stats.forward_passes,
        stats.cycles,
        stats.drafted_at,
        stats.accepted_at,
    )


def time_stock(
    stock: Any,
    kind: str,
    number: int,
    ids: Sequence[int],
    ends: Collection[int],
    max_tokens: int,
) -> Run:
    """Time one greedy answer of mlx-lm."""
    from mlx_lm.generate import generate_step

    mx.reset_peak_memory()
    written: list[int] = []
    clock = _Clock()

    def prompt_read(done: int, total: int) -> None:
        if 0 < done < total:  # part of prefill, which mlx-lm does only after this call
            mx.clear_cache()
        clock.prompt_read(done, total)

    clock.start()
    prompt = mx.array(list(ids))
    for token, _ in generate_step(
        prompt, stock, max_tokens=max_tokens, prompt_progress_callback=prompt_read
    ):
        clock.token()
        written.append(int(token))
        if written[-1] in ends:
            break
    n = len(written)
    return Run(kind, number, STOCK, written, *clock.stop(), mx.get_peak_memory(), n, n)


class _Clock:
    """The times of an answer: its start, the end of prefill, the first token."""

    def start(self) -> None:
        """Start; prefill ends now unless `prompt_read` is called later."""
        self.begun = self.read = time.perf_counter()
        self.first: float | None = None

    def prompt_read(self, done: int, total: int) -> None:
        """Note when the prompt was read, except for its last id, the first anchor."""
        if self.first is None and done < total:
            self.read = time.perf_counter()

    def token(self) -> None:
        """Note when the first token came."""
        if self.first is None:
            self.first = time.perf_counter()

    def stop(self) -> tuple[float, float]:
        """Seconds to the first token, and from the end of prefill until now."""
        end = time.perf_counter()
        return (self.first or end) - self.begun, end - self.read


def _stock(model: Any) -> Any:
    from .reference import StockMlxLm

    return StockMlxLm(model).model

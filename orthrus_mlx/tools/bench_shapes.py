"""Time each kind of pass at the real models' sizes, on random weights: no download needed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.config import ModelConfig
from ..checkpoint.read import ready
from ..decoding.cache import trim
from ..decoding.consensus import Sampling
from ..decoding.plan import ANY_ROWS, AR_POLICY, Policy, RowCounts
from ..decoding.prefill import prefill as read_prompt
from ..decoding.sequence import Request
from ..device.calibrate import time_cycles
from ..device.measured import device_name
from ..rows import Rows
from .bench import STOCK
from .reference import StockMlxLm

# (hidden, intermediate, layers, heads, tied head); 8 KV heads of 128 and a block of 32 in each.
SHAPES = {
    "qwen3-1.7b": (2048, 6144, 28, 16, True),
    "qwen3-4b": (2560, 9728, 36, 32, True),
    "qwen3-8b": (4096, 12288, 36, 32, False),
}
VOCAB, MASK = 151936, 151669
CYCLES = ("two-pass", "one-pass", "alternating")
STEPS = 6  # AR steps or cycles in one sample; even, as alternating cycles come in pairs
PREFILL = 8192  # most prompt tokens that prefill is timed on


@dataclass
class Cost:
    """The cost of one pass, step or cycle at one context length.

    Attributes:
        name: "mlx-lm step", "ar step", "verify", "draft", or a cycle: "two-pass", "one-pass" or
            "alternating" (both of its passes).
        rows: rows of the pass, or of each view in a cycle; 1 for an AR step; for alternating
            cycles, all rows of the larger pass.
        context: tokens in the cache.
        ms: median milliseconds.
        steps: median ratio to the time of mlx-lm's step in the same round.
        low: lower quartile of `steps`.
        high: upper quartile of `steps`.
    """

    name: str
    rows: int
    context: int
    ms: float
    steps: float
    low: float
    high: float


@dataclass
class ShapesReport:
    """What was measured; prefill and memory by context length."""

    shape: str
    bits: int | None
    costs: list[Cost] = field(default_factory=list)
    prefill: dict[int, float] = field(default_factory=dict)  # speed over mlx-lm's
    extra_memory: dict[int, int] = field(default_factory=dict)  # parallel over AR mode, bytes
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {"mlx": version("mlx"), "device": device_name(), **asdict(self)}


def build(shape: str, bits: int | None = None, seed: int = 0, tune: bool = True) -> Any:
    """A model of one of `SHAPES` with random weights, in bf16 or packed to `bits`."""
    from ..model import Model

    hidden, intermediate, layers, heads, tied = SHAPES[shape]
    config = ModelConfig.from_dict(
        {
            "model_type": "qwen3",
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": VOCAB,
            "max_position_embeddings": 40960,
            "rope_theta": 1e6,
            "tie_word_embeddings": tied,
            "block_size": 32,
            "mask_token_id": MASK,
        },
        shape,
    )
    mx.random.seed(seed)
    model = Model(config)
    model.set_dtype(mx.bfloat16)
    # Layer by layer, so that no more than one is ever held in float32.
    for part in [*model.layers, model.model, model]:
        if bits and part in model.layers:
            nn.quantize(part, bits=bits)
        mx.eval(part.parameters())
    if bits:
        nn.quantize(model, bits=bits)
    model.eval()
    model.tune = tune
    return ready(model)


def measure(
    model: Any,
    report: ShapesReport,
    *,
    contexts: Sequence[int],
    rows: Sequence[int],
    rounds: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> ShapesReport:
    """Fill in `report`, context by context; Ctrl-C returns what is known.

    Each round times everything once, mlx-lm's step first; ratios are taken within a round.
    """
    stock = StockMlxLm(model).model
    done, total = 0, len(contexts) * (rounds + 1)
    try:
        for context in contexts:
            cache = filled_cache(model, context)
            tasks = _tasks(model, stock, cache, rows)
            times: dict[tuple[str, int], list[float]] = {key: [] for key in tasks}
            try:
                for round_ in range(rounds + 1):
                    for key, task in tasks.items():
                        seconds = task()
                        trim(cache, context)
                        if round_:  # the first one warms up
                            times[key].append(seconds)
                    done += 1
                    if progress is not None:
                        progress(done, total)
            finally:
                report.costs += _costs(times, context)
            report.prefill[context] = prefill_ratio(model, stock, min(context, PREFILL))
            report.extra_memory[context] = extra_memory(model, cache, max(rows))
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def _tasks(
    model: Any, stock: Any, cache: list[Any], rows: Sequence[int]
) -> dict[tuple[str, int], Callable[[], float]]:
    tasks: dict[tuple[str, int], Callable[[], float]] = {
        (f"{STOCK} step", 1): partial(time_steps, stock, cache),
        ("ar step", 1): partial(time_cycles, model, cache, AR_POLICY, cycles=STEPS),
    }
    for n in rows:
        ids = (mx.arange(n, dtype=mx.int32) * 7919 + 13) % model.config.vocab_size
        tasks["verify", n] = partial(_timed, model, partial(Rows.verify, ids, cache))
        if n < 2:
            continue
        tasks["draft", n] = partial(_timed, model, partial(Rows.draft, ids, cache))
        for kind in CYCLES if n > 3 else CYCLES[:1]:
            tasks[kind, n] = partial(time_cycles, model, cache, *full_cycle(kind, n), cycles=STEPS)
    return tasks


def full_cycle(kind: str, n: int) -> tuple[Policy, RowCounts]:
    """Cycles with `n` rows of each view, even if no draft is accepted, as on random weights.

    The first of two alternating passes has `n` rows.
    """
    if kind == "two-pass":
        return Policy("two-pass", n - 1), ANY_ROWS
    if kind == "alternating":
        return Policy("alternating", n - 2, n - 1, 1), ANY_ROWS
    blocks = 1 if n % 2 else 2
    return Policy("one-pass", n - 1, n // blocks, blocks), RowCounts((n,), ((n, n),))


def _timed(model: Any, rows: Callable[[], Rows]) -> float:
    """Seconds of one pass."""
    start = time.perf_counter()
    mx.eval(model.forward(rows()))
    return time.perf_counter() - start


def time_steps(stock: Any, cache: list[Any], steps: int = STEPS) -> float:
    """Seconds per step of mlx-lm's loop, which starts the next step before it reads this one."""
    token = mx.array([1])
    times = [time.perf_counter()]
    following = mx.argmax(stock(token[None], cache=cache)[:, -1], axis=-1)
    mx.async_eval(following)
    for _ in range(steps):
        token, following = (
            following,
            mx.argmax(stock(following[None], cache=cache)[:, -1], axis=-1),
        )
        mx.async_eval(following)
        token.item()
        times.append(time.perf_counter())
    mx.eval(following)
    return (times[-1] - times[1]) / (steps - 1)


def filled_cache(model: Any, context: int) -> list[Any]:
    """A KV cache of random keys and values for `context` tokens."""
    config = model.config
    shape = (1, config.num_key_value_heads, context, config.head_dim)
    dtype = model.model.norm.weight.dtype
    cache: list[Any] = model.make_cache()
    for layer in cache:
        layer.update_and_fetch(*(mx.random.normal(shape).astype(dtype) for _ in range(2)))
        mx.eval(layer.keys, layer.values)
    return cache


def prefill_ratio(model: Any, stock: Any, tokens: int, rounds: int = 3) -> float:
    """Prefill speed over mlx-lm's: the median of `rounds` rounds that time both."""
    ids: Any = ((mx.arange(tokens + 1) * 7919 + 13) % model.config.vocab_size).tolist()
    request = Request(ids, frozenset(), 1, Sampling(), model.config.mask_token_id)

    def ours() -> None:
        read_prompt(model, request, model.make_cache())

    def theirs() -> None:  # as mlx_lm.generate.generate_step reads a prompt
        cache, step = model.make_cache(), request.prefill_step_size
        for start in range(0, tokens, step):
            stock(mx.array([ids[start : min(start + step, tokens)]]), cache=cache)
            mx.eval([layer.state for layer in cache])
            mx.clear_cache()

    ratios: list[float] = []
    for round_ in range(rounds + 1):
        seconds = []
        for read in (ours, theirs):
            start = time.perf_counter()
            read()
            seconds.append(time.perf_counter() - start)
        if round_:
            ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


def extra_memory(model: Any, cache: list[Any], rows: int) -> int:
    """Peak bytes of parallel mode over AR mode's, for the larger of its two cycles."""
    context, peaks = cache[0].offset, []
    cycles = (AR_POLICY, ANY_ROWS), full_cycle("two-pass", rows), full_cycle("one-pass", rows)
    for cycle in cycles:  # grow the cache first: growing copies it
        time_cycles(model, cache, *cycle)
        trim(cache, context)
    for cycle in cycles:
        mx.clear_cache()
        mx.reset_peak_memory()
        time_cycles(model, cache, *cycle)
        peaks.append(mx.get_peak_memory())
        trim(cache, context)
    return max(peaks[1:]) - peaks[0]


def _costs(times: dict[tuple[str, int], list[float]], context: int) -> list[Cost]:
    base = times[f"{STOCK} step", 1]
    costs = []
    for (name, rows), seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, base, strict=False)]
        if not ratios:
            continue
        few = len(ratios) < 2
        quartiles = [ratios[0]] * 3 if few else statistics.quantiles(ratios, method="inclusive")
        ms = 1e3 * statistics.median(seconds)
        costs.append(Cost(name, rows, context, ms, quartiles[1], quartiles[0], quartiles[2]))
    return costs

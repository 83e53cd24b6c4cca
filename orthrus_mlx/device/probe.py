"""Which row counts give bit-identical rows here, found by running the real model.

A forward pass over M rows runs kernels chosen by M, and different kernels add in different orders,
so the same row can come out with other bits beside more or fewer neighbours. Exact numerics keep
every decode pass within one class of row counts whose rows agree bit for bit. Nothing about the
backend is assumed: the probe decodes the same ids with every row count, in full and in ragged
steps (rejected rows beside accepted ones), at context lengths around the sizes where attention
kernels change, and compares the bits of the logits and of sampled scores.

Only attention knows how long the context is, so most lengths are probed with one layer alone.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx

from ..decoding.cache import tell, trim
from ..decoding.consensus import Sampling, scores
from ..decoding.plan import RowCounts
from ..errors import NumericsError
from ..rows import Rows, Segment
from .calibrate import time_pass
from .measured import device_key, load, store

ROW_COUNTS = (1, 2, 4, 8, 15, 16, 24, 32)
FUSED = ((8, 16), (8, 24), (16, 16), (16, 32), (32, 32))  # (AR rows, diffusion rows)
CONTEXTS = (600, 1500, 1, 6000)  # with all layers, the first whatever it takes
POSITIONS = 16  # ids decoded at each
# Contexts take no longer than this with all layers together; those left over run one layer.
FULL_MODEL_BUDGET_MS = 6000.0
# Attention kernels change at certain numbers of keys, powers of two where the source is known. To
# use a row count on both sides, its rows must agree also where some steps end below such a number
# and others above it. With this run-up, the full and the ragged steps of every row count do.
STEPS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
RUN_UP, STEP_POSITIONS = 44, 48
SAMPLED = Sampling(temperature=0.8, top_p=0.95, min_p=0.01, seed=1)
# A difference between kernels seen in the probe bounds those of a real run only loosely.
SAFETY = 2.0

Outcome = tuple[mx.array, ...]  # logits and, with all layers, sampled scores [n, vocab_size]


@dataclass(frozen=True)
class Probe:
    """What the probe found for one model on one device.

    Attributes:
        classes: sets of row counts whose rows agree bit for bit, smallest member first.
        fused: (AR rows, diffusion rows) of one-pass cycles whose AR rows agree with a class
            that holds that AR row count.
        disagreement: largest difference of one logit between any two row counts.
        cost_ms: time of a verify pass by row count, in milliseconds.
        contexts: the context lengths probed.
    """

    classes: tuple[tuple[int, ...], ...]
    fused: tuple[tuple[int, int], ...]
    disagreement: float
    cost_ms: dict[int, float] = field(compare=False)
    contexts: tuple[int, ...] = CONTEXTS

    @property
    def all_agree(self) -> bool:
        """Whether all row counts that were tried agree bit for bit."""
        return self.classes == (tuple(sorted(self.cost_ms)),)

    @property
    def row_counts(self) -> RowCounts:
        """The class that decodes fastest, over texts that are hard, middling and easy to draft.

        Raises:
            NumericsError: if no row count above 1 belongs to a class.
        """
        usable = [rows for rows in self.classes if rows[-1] > 1]
        if not usable:
            raise NumericsError(
                "No row count above 1 gives bit-identical rows on this device, so exact numerics "
                "cannot be had for this model. Use numerics='fast', which counts near-ties "
                "instead; `orthrus-mlx verify MODEL` shows what the probe found, and how often "
                "answers differ."
            )
        rows = min(usable, key=self._time_per_token)
        return RowCounts(rows, tuple(pair for pair in self.fused if pair[0] in rows))

    def _time_per_token(self, rows: tuple[int, ...]) -> float:
        """Milliseconds a token, plain or with the best number of drafts."""
        total = 0.0
        for stands in (0.5, 0.7, 0.9):  # the chance that a draft stands
            best = self.cost_ms[rows[0]]
            for n in rows:
                tokens = (1 - stands**n) / (1 - stands)  # in a cycle of n - 1 drafts
                best = min(best, 2 * self.cost_ms[n] / tokens)  # a draft pass costs about the same
            total += best
        return total

    @property
    def near_tie(self) -> float:
        """A gap between the two best logits below which another row count may choose otherwise."""
        return SAFETY * 2 * self.disagreement


class ProbeCase(NamedTuple):
    """One part of the probe.

    Attributes:
        context: tokens in the cache.
        positions: ids to decode after them.
        model: with all layers, or the first alone.
        full_model: whether it has all layers.
    """

    context: int
    positions: int
    model: Any
    full_model: bool


def probe(
    model: Any,
    *,
    contexts: tuple[int, ...] = CONTEXTS,
    steps: tuple[int, ...] = STEPS,
    row_counts: tuple[int, ...] = ROW_COUNTS,
    progress: Callable[[int, int], None] | None = None,
) -> Probe:
    """Run the model at every row count and compare bits.

    Takes some 80 forward passes for each context length, and 250 of one layer for each number of
    keys at which kernels may change; see `cached_probe`.
    """
    most = max(model.config.block_size, 2)
    row_counts = tuple(n for n in row_counts if n <= most)
    pairs = [(n, ahead) for n, ahead in FUSED if max(n, ahead // 2) <= most]
    costs = measure_costs(model, row_counts)
    most_full = int(FULL_MODEL_BUDGET_MS / _duration(costs, pairs))
    cases = plan_cases(model, contexts, steps, most_full)
    signatures: dict[int, list[tuple[int, int]]] = {rows: [] for rows in row_counts}
    fused_signatures: dict[tuple[int, int], list[int]] = {pair: [] for pair in pairs}
    disagreement = 0.0
    done, total = 0, len(cases) * (len(row_counts) + len(pairs))
    for case in cases:
        cache = cache_of(case.model, case.context)
        bits = _DistinctBits()
        for rows in row_counts:
            full, ragged = (decode(case, cache, rows, ragged=ragged) for ragged in (False, True))
            signatures[rows].append((bits.number(full), bits.number(ragged)))
            done = _report(progress, done, total)
        for pair in pairs:
            ahead = decode(case, cache, pair[0], ragged=True, ahead=pair[1])
            fused_signatures[pair].append(bits.number(ahead))
            done = _report(progress, done, total)
        if case.full_model:
            disagreement = max(disagreement, bits.spread())
    # A row count is usable if full and ragged steps agree; a class is those that agree everywhere.
    groups: dict[tuple[int, ...], list[int]] = {}
    for rows, found in signatures.items():
        if all(full == ragged for full, ragged in found):
            groups.setdefault(tuple(full for full, _ in found), []).append(rows)
    return Probe(
        classes=tuple(tuple(sorted(rows)) for rows in groups.values()),
        fused=tuple(
            pair
            for pair, found in fused_signatures.items()
            if pair[0] in groups.get(tuple(found), [])
        ),
        disagreement=disagreement,
        cost_ms=costs,
        contexts=tuple(case.context for case in cases),
    )


def plan_cases(
    model: Any, contexts: tuple[int, ...], steps: tuple[int, ...], most_full: int
) -> list[ProbeCase]:
    """The probe's parts: up to `most_full` contexts (one at least) with all layers."""
    limit = model.config.max_position_embeddings
    within = list(dict.fromkeys(max(1, min(c, limit - STEP_POSITIONS)) for c in contexts))
    one = one_layer(model)
    cases = [ProbeCase(c, POSITIONS, model, True) for c in within[: max(1, most_full)]]
    cases += [ProbeCase(c, POSITIONS, one, False) for c in within[max(1, most_full) :]]
    return cases + [
        ProbeCase(s - RUN_UP, STEP_POSITIONS, one, False) for s in steps if RUN_UP < s <= limit
    ]


def _duration(costs: dict[int, float], pairs: list[tuple[int, int]]) -> float:
    """About how many milliseconds one context takes with all layers."""

    def passes(rows: int, ragged: bool) -> int:
        return len(_kept_rows(rows, POSITIONS, ragged))

    alone = sum(ms * (passes(n, False) + passes(n, True)) for n, ms in costs.items())
    fused = sum(3 * costs.get(n, 0.0) * passes(n, True) for n, _ in pairs)
    return max(alone + fused, 1e-3)


class _DistinctBits:
    """Numbers the different outcomes at one context, equal bits having equal numbers."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def number(self, outcome: Outcome) -> int:
        """The number of an outcome, a new one if its bits were not seen before."""
        for number, known in enumerate(self.outcomes):
            if all(same_bits(a, b) for a, b in zip(outcome, known, strict=True)):
                return number
        self.outcomes.append(outcome)
        return len(self.outcomes) - 1

    def spread(self) -> float:
        """The largest difference between two outcomes in one logit."""
        high = low = self.outcomes[0][0].astype(mx.float32)
        for logits, *_ in self.outcomes[1:]:
            high, low = mx.maximum(high, logits), mx.minimum(low, logits)
        spread: Any = (high - low).max().item()
        return spread


def same_bits(a: mx.array, b: mx.array) -> bool:
    """Whether two arrays of one shape and type are equal bit for bit."""
    words = mx.uint16 if a.dtype.size == 2 else mx.uint32
    same: Any = mx.array_equal(a.view(words), b.view(words)).item()
    return same


def one_layer(model: Any) -> Any:
    """The same model with its first layer alone, or all of it where it cannot be cut."""
    if not hasattr(model, "model"):
        return model
    cut = copy.copy(model)
    cut.model = copy.copy(model.model)
    cut.model.layers = model.model.layers[:1]
    return cut


def measure_costs(model: Any, row_counts: tuple[int, ...]) -> dict[int, float]:
    """Time of a verify pass, in milliseconds, by row count."""
    cache = cache_of(model, 64)
    costs = {}
    for rows in row_counts:
        ids = _some_ids(model.config.vocab_size, rows)
        seconds = time_pass(partial(model.forward, Rows.verify(ids, cache)), cache)
        costs[rows] = round(seconds * 1e3, 4)
    return costs


def decode(
    case: ProbeCase, cache: list[Any], rows: int, *, ragged: bool, ahead: int = 0, total: int = 0
) -> Outcome:
    """What the ids after the cached context lead to, with `rows` AR rows a pass.

    Ragged steps keep some of a pass's rows and fill the rest with other ids, as rejected drafts
    and padding do. Where given, `ahead` diffusion rows ride along, or so many AR rows of another
    sequence that there are `total`.
    """
    model, context = case.model, case.context
    ids, mask = _some_ids(model.config.vocab_size, case.positions), model.config.mask_token_id
    outcomes: list[Outcome] = []
    at = 0
    for keep in _kept_rows(rows, case.positions, ragged):
        kept = ids[at : at + keep]
        filler = mx.full((rows - keep,), mask, mx.int32)
        if ahead:
            masks = mx.full((ahead // 2 - 1,), mask, mx.int32)
            blocks = mx.concatenate([kept[:1], masks, kept[-1:], masks]).reshape(2, -1)
            segment = Segment(cache, mx.concatenate([kept, filler]), blocks, (0, keep - 1))
            logits, _ = model.forward(Rows([segment]))
        elif total > rows:
            other = Segment(model.make_cache(), mx.full((total - rows,), mask, mx.int32))
            segment = Segment(cache, mx.concatenate([kept, filler]))
            logits, _ = model.forward(Rows([segment, other]))
        else:
            logits, _ = model.forward(Rows.verify(mx.concatenate([kept, filler]), cache))
        outcome: Outcome = (logits[:keep],)
        if case.full_model:
            outcome += (scores(logits, context + at + 1, SAMPLED)[:keep],)
        outcomes.append(outcome)
        mx.eval(outcomes[-1])
        at += keep
        trim(cache, context + at)
    trim(cache, context)
    return tuple(mx.concatenate(list(parts)) for parts in zip(*outcomes, strict=True))


def _kept_rows(rows: int, positions: int, ragged: bool) -> list[int]:
    """How many rows each pass keeps, `positions` in all."""
    cycle = itertools.cycle((1 + rows // 3, max(1, rows - rows // 4), rows) if ragged else (rows,))
    keeps: list[int] = []
    while sum(keeps) < positions:
        keeps.append(min(next(cycle), positions - sum(keeps)))
    return keeps


def cache_of(model: Any, length: int) -> list[Any]:
    """A cache of `length` tokens: the model's own keys and values of some text, repeated."""
    cache: list[Any] = model.make_cache()
    read = min(length, 256)
    model.forward(Rows.verify(_some_ids(model.config.vocab_size, read), cache))
    for layer in cache:
        times = -(-length // read)
        keys, values = (
            mx.concatenate([a[:, :, :read]] * times, axis=2)[:, :, read:length]
            for a in (layer.keys, layer.values)
        )
        if length > read:
            layer.update_and_fetch(keys, values)
        mx.eval(layer.keys, layer.values)
    if length > read:
        tell(cache, "repeat", read, length)
    return cache


def _some_ids(vocab_size: int, count: int) -> mx.array:
    return (mx.arange(1, count + 1, dtype=mx.int32) * 7919 + 13) % vocab_size


def _report(progress: Callable[[int, int], None] | None, done: int, total: int) -> int:
    if progress is not None:
        progress(done + 1, total)
    return done + 1


def cached_probe(
    model: Any, *, progress: Callable[[int, int], None] | None = None, fresh: bool = False
) -> Probe:
    """The probe's result for this model on this device, from disk where it was run before."""
    if not fresh and (found := stored_probe(model)) is not None:
        return found
    result = probe(model, progress=progress)
    store_probe(model, result)
    return result


def stored_probe(model: Any) -> Probe | None:
    """The stored result for this model, or this unread `Checkpoint`, on this device, or None."""
    return load("probe", device_key(model), _read)


def store_probe(model: Any, result: Probe) -> None:
    """Keep a result for `stored_probe`."""
    store("probe", device_key(model), result, asdict)


def _read(raw: Any) -> Probe:
    return Probe(
        classes=tuple(tuple(map(int, rows)) for rows in raw["classes"]),
        fused=tuple((int(a), int(b)) for a, b in raw["fused"]),
        disagreement=float(raw["disagreement"]),
        cost_ms={int(rows): float(ms) for rows, ms in raw["cost_ms"].items()},
        contexts=tuple(map(int, raw["contexts"])),
    )

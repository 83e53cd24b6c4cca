"""Which row counts give bit-identical rows here, found by running the real model.

A forward pass over M rows runs kernels chosen by M, and different kernels add in different orders,
so the same row can come out with other bits beside more or fewer neighbours. Exact numerics keep
every decode forward within one class of row counts whose rows agree bit for bit. Nothing about the
backend is assumed: the probe decodes the same ids with every row count, in full and in ragged
steps (rejected rows beside accepted ones), at context lengths around the sizes where attention
kernels change, and compares the bits of the logits and of sampled scores.

Only attention knows how long the context is, so most lengths are probed with one layer alone.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..checkpoint.fingerprint import layout_of
from ..decoding.consensus import Sampling, scores
from ..decoding.engine import cut_cache
from ..decoding.plan import RowCounts
from ..errors import NumericsError

ROW_COUNTS = (1, 2, 4, 8, 15, 16, 24, 32)
FUSED = ((8, 16), (8, 24), (16, 16), (16, 32), (32, 32))  # (AR rows, diffusion rows)
CONTEXTS = (600, 1500, 1, 6000)  # with all layers, the first whatever it takes
POSITIONS = 16  # ids decoded at each
PATIENCE_MS = 6000.0  # for all of them together, on a device that is slow; the rest with one layer
# Attention kernels change at certain numbers of keys, powers of two where the source is known. To
# use a row count on both sides, its rows must agree also where some steps end below such a number
# and others above it. With this run-up, the full and the ragged steps of every row count do.
STEPS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
RUN_UP, STEP_POSITIONS = 44, 48
SAMPLED = Sampling(temperature=0.8, top_p=0.95, min_p=0.01, seed=1)
# A difference between kernels seen in the probe bounds those of a real run only loosely.
SAFETY = 2.0
# Of the cache file. Raise it also when the same checkpoint comes to run other kernels.
FORMAT = 12

MLX_VERSION: str = getattr(mx, "__version__", "unknown")  # which its stubs do not know

Outcome = tuple[mx.array, ...]  # logits and, with all layers, sampled scores [n, vocab_size]


@dataclass(frozen=True)
class Probe:
    """What the probe found for one model on one device.

    Attributes:
        classes: sets of row counts whose rows agree bit for bit, smallest member first.
        fused: (AR rows, diffusion rows) of one-pass forwards whose AR rows agree with a class
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


class Leg(NamedTuple):
    """One part of the probe: ids to decode after a context, with all layers or the first alone."""

    context: int
    positions: int
    model: Any
    whole: bool


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
    whole = int(PATIENCE_MS / _duration(costs, pairs))
    legs = plan_legs(model, contexts, steps, whole)
    signs: dict[int, list[tuple[int, int]]] = {rows: [] for rows in row_counts}
    fused_signs: dict[tuple[int, int], list[int]] = {pair: [] for pair in pairs}
    disagreement = 0.0
    done, total = 0, len(legs) * (len(row_counts) + len(pairs))
    for leg in legs:
        cache = _cache_of(leg.model, leg.context)
        bits = _DistinctBits()
        for rows in row_counts:
            full, ragged = (_decode(leg, cache, rows, ragged=ragged) for ragged in (False, True))
            signs[rows].append((bits.number(full), bits.number(ragged)))
            done = _report(progress, done, total)
        for pair in pairs:
            ahead = _decode(leg, cache, pair[0], ragged=True, ahead=pair[1])
            fused_signs[pair].append(bits.number(ahead))
            done = _report(progress, done, total)
        if leg.whole:
            disagreement = max(disagreement, bits.spread())
    # A row count is usable if full and ragged steps agree; a class is those that agree everywhere.
    groups: dict[tuple[int, ...], list[int]] = {}
    for rows, found in signs.items():
        if all(full == ragged for full, ragged in found):
            groups.setdefault(tuple(full for full, _ in found), []).append(rows)
    return Probe(
        classes=tuple(tuple(sorted(rows)) for rows in groups.values()),
        fused=tuple(p for p, found in fused_signs.items() if p[0] in groups.get(tuple(found), [])),
        disagreement=disagreement,
        cost_ms=costs,
        contexts=tuple(leg.context for leg in legs),
    )


def plan_legs(
    model: Any, contexts: tuple[int, ...], steps: tuple[int, ...], whole: int
) -> list[Leg]:
    """The probe's parts: the first `whole` contexts, or one, with all layers; the rest with one."""
    limit = model.config.max_position_embeddings
    within = list(dict.fromkeys(max(1, min(c, limit - STEP_POSITIONS)) for c in contexts))
    one = one_layer(model)
    legs = [Leg(c, POSITIONS, model, True) for c in within[: max(1, whole)]]
    legs += [Leg(c, POSITIONS, one, False) for c in within[max(1, whole) :]]
    return legs + [
        Leg(s - RUN_UP, STEP_POSITIONS, one, False) for s in steps if RUN_UP < s <= limit
    ]


def _duration(costs: dict[int, float], pairs: list[tuple[int, int]]) -> float:
    """About how many milliseconds one context takes with all layers."""

    def passes(rows: int, ragged: bool) -> int:
        return len(_keeps(rows, POSITIONS, ragged))

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
            if all(_same_bits(a, b) for a, b in zip(outcome, known, strict=True)):
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


def _same_bits(a: mx.array, b: mx.array) -> bool:
    words = mx.uint16 if a.dtype.size == 2 else mx.uint32
    same: Any = mx.array_equal(a.view(words), b.view(words)).item()
    return same


def one_layer(model: Any) -> Any:
    """The same model with its first layer alone, or whole where it cannot be cut."""
    if not hasattr(model, "model"):
        return model
    cut = copy.copy(model)
    cut.model = copy.copy(model.model)
    cut.model.layers = model.model.layers[:1]
    return cut


def measure_costs(model: Any, row_counts: tuple[int, ...], repeats: int = 3) -> dict[int, float]:
    """Median time of a verify pass, in milliseconds, by row count."""
    context = 64
    cache = _cache_of(model, context)
    costs = {}
    for rows in row_counts:
        ids = _some_ids(model.config.vocab_size, rows)
        times: list[float] = []
        while len(times) <= repeats and (len(times) < 2 or sum(times) < 0.2):
            start = time.perf_counter()
            mx.eval(model.verify(ids, cache))
            times.append(time.perf_counter() - start)
            cut_cache(cache, context)
        costs[rows] = round(statistics.median(times[1:]) * 1e3, 4)  # the first may compile
    return costs


def _decode(leg: Leg, cache: list[Any], rows: int, *, ragged: bool, ahead: int = 0) -> Outcome:
    """What the ids after the cached context lead to, with `rows` AR rows a forward.

    Ragged steps keep some of a forward's rows and fill the rest with other ids, as rejected drafts
    and padding do; `ahead` diffusion rows ride along where given.
    """
    model, context = leg.model, leg.context
    ids, mask = _some_ids(model.config.vocab_size, leg.positions), model.config.mask_token_id
    outcomes: list[Outcome] = []
    at = 0
    for keep in _keeps(rows, leg.positions, ragged):
        kept = ids[at : at + keep]
        filler = mx.full((rows - keep,), mask, mx.int32)
        if ahead:
            masks = mx.full((ahead // 2 - 1,), mask, mx.int32)
            everything = mx.concatenate([kept, filler, kept[:1], masks, kept[-1:], masks])
            logits, _ = model.verify_and_draft(everything, rows, (0, keep - 1), cache)
        else:
            logits = model.verify(mx.concatenate([kept, filler]), cache)
        outcome: Outcome = (logits[:keep],)
        if leg.whole:
            outcome += (scores(logits, context + at + 1, SAMPLED)[:keep],)
        outcomes.append(outcome)
        mx.eval(outcomes[-1])
        at += keep
        cut_cache(cache, context + at)
    cut_cache(cache, context)
    return tuple(mx.concatenate(list(parts)) for parts in zip(*outcomes, strict=True))


def _keeps(rows: int, positions: int, ragged: bool) -> list[int]:
    """How many rows each forward keeps, `positions` in all."""
    cycle = itertools.cycle((1 + rows // 3, max(1, rows - rows // 4), rows) if ragged else (rows,))
    keeps: list[int] = []
    while sum(keeps) < positions:
        keeps.append(min(next(cycle), positions - sum(keeps)))
    return keeps


def _cache_of(model: Any, length: int) -> list[Any]:
    """A cache of `length` tokens: the model's own keys and values of some text, repeated."""
    cache: list[Any] = model.make_cache()
    read = min(length, 256)
    model.hidden(_some_ids(model.config.vocab_size, read)[None], cache)
    for layer in cache:
        times = -(-length // read)
        keys, values = (
            mx.concatenate([a[:, :, :read]] * times, axis=2)[:, :, read:length]
            for a in (layer.keys, layer.values)
        )
        if length > read:
            layer.update_and_fetch(keys, values)
        mx.eval(layer.keys, layer.values)
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
    _store(_probe_file(model), result)
    return result


# By file, for machines on which the file cannot be written.
_taken: dict[Path, Probe] = {}


def stored_probe(model: Any) -> Probe | None:
    """The stored result for this model, or this unread `Checkpoint`, on this device, or None."""
    file = _probe_file(model)
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        return Probe(
            classes=tuple(tuple(map(int, rows)) for rows in raw["classes"]),
            fused=tuple((int(a), int(b)) for a, b in raw["fused"]),
            disagreement=float(raw["disagreement"]),
            cost_ms={int(rows): float(ms) for rows, ms in raw["cost_ms"].items()},
            contexts=tuple(map(int, raw["contexts"])),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _taken.get(file)  # absent, or not what this version writes: probe again


def _store(file: Path, result: Probe) -> None:
    _taken[file] = result
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(result)), encoding="utf-8")
        partial.replace(file)


def _probe_file(model: Any) -> Path:
    name = hashlib.sha256(json.dumps(device_key(model), sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder() / f"probe-{name}.json"


def cache_folder() -> Path:
    """Where results measured on this machine are kept (`ORTHRUS_MLX_CACHE` overrides)."""
    if place := os.environ.get("ORTHRUS_MLX_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orthrus-mlx"


def device_key(model: Any) -> dict[str, Any]:
    """Everything that decides which kernels run: shapes, packing, device, system, mlx version.

    Joined projections are other products than separate ones, and may run other kernels.

    A `Checkpoint` has the key of the model that is loaded from it; see `layout_of`.
    """
    return {
        "format": FORMAT,
        "heads": [model.config.num_attention_heads, model.config.num_key_value_heads],
        "limits": [model.config.block_size, model.config.max_position_embeddings],
        "weights": list(layout_of(model)),
        "joined": getattr(model, "joined", True),  # as loading leaves them
        "device": device_name(),
        "system": [platform.system(), platform.release(), platform.machine()],
        "mlx": MLX_VERSION,
    }


def device_name() -> str:
    """The device that MLX computes on, by name."""
    device = mx.default_device()
    info: dict[str, Any] = mx.device_info(device) if hasattr(mx, "device_info") else {}
    name = info.get("device_name") or platform.processor()
    return f"{name} ({device.type.name})"

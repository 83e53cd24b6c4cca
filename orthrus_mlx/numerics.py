"""Which row counts give bit-identical rows here, found by running the real model.

A forward pass over M rows runs kernels chosen by M, and different kernels add in different orders,
so the same row can come out with other bits beside more or fewer neighbours. Exact numerics keep
every decode forward within one class of row counts whose rows agree bit for bit. Nothing about the
backend is assumed: the probe decodes the same ids with every row count, in full and in ragged
steps (rejected rows beside accepted ones), at context lengths around the sizes where attention
kernels change, and compares digests of the logits and of sampled scores.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from .consensus import Sampling, scores
from .engine import RowCounts, cut_cache
from .errors import NumericsError

ROW_COUNTS = (1, 2, 4, 8, 15, 16, 24, 32)
FUSED = (8, 16, 32)  # one-pass forwards of so many AR rows and as many diffusion rows
# Around the lengths at which attention kernels change, and crossing 1,024 and 4,096 on the way.
CONTEXTS = (24, 600, 1010, 1500, 4084, 6000)
POSITIONS = 16  # ids decoded at each context
SAMPLED = Sampling(temperature=0.8, top_p=0.95, min_p=0.01, seed=1)
# A difference between kernels seen in the probe bounds those of a real run only loosely.
SAFETY = 2.0
FORMAT = 1  # of the cache file


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
        """The class that costs least: one plain step, and a step with the most drafts.

        Raises:
            NumericsError: if no row count above 1 belongs to a class.
        """
        usable = [rows for rows in self.classes if rows[-1] > 1]
        if not usable:
            raise NumericsError(
                "No row count gives bit-identical rows on this device (see `orthrus-mlx info "
                "--probe`), so exact numerics cannot be had here. Use numerics='fast', which "
                "counts near-ties instead."
            )
        rows = min(usable, key=lambda rows: self.cost_ms[rows[0]] + self.cost_ms[rows[-1]])
        return RowCounts(rows, tuple(pair for pair in self.fused if pair[0] in rows))

    @property
    def near_tie(self) -> float:
        """A gap between the two best logits below which another row count may choose otherwise."""
        return SAFETY * 2 * self.disagreement


def probe(
    model: Any,
    *,
    contexts: tuple[int, ...] = CONTEXTS,
    row_counts: tuple[int, ...] = ROW_COUNTS,
    progress: Callable[[int, int], None] | None = None,
) -> Probe:
    """Run the model at every row count and compare bits.

    Takes about `len(contexts) * len(row_counts) * 8` forward passes; see `cached_probe`.
    """
    most = max(model.config.block_size, 2)
    row_counts = tuple(n for n in row_counts if n <= most)
    limit = model.config.max_position_embeddings - POSITIONS - 2 * most
    contexts = tuple(sorted({max(1, min(c, limit)) for c in contexts}))
    ids = _some_ids(model.config.vocab_size, POSITIONS)
    signs: dict[int, list[bytes]] = {rows: [] for rows in row_counts}
    fused_signs: dict[tuple[int, int], list[bytes]] = {}
    pairs = [(n, n) for n in FUSED if n <= most]
    disagreement = 0.0
    done, total = 0, len(contexts) * (len(row_counts) + len(pairs))
    for context in contexts:
        cache = _cache_of(model, context)
        high: mx.array | None = None
        low: mx.array | None = None
        for rows in row_counts:
            full = _decode(model, cache, context, ids, rows, ragged=False)
            ragged = _decode(model, cache, context, ids, rows, ragged=True)
            signs[rows] += [_digest(full, context), _digest(ragged, context)]
            high = full if high is None else mx.maximum(high, full)
            low = full if low is None else mx.minimum(low, full)
            mx.eval(high, low)
            done = _report(progress, done, total)
        for pair in pairs:
            logits = _decode(model, cache, context, ids, pair[0], ragged=True, ahead=pair[1])
            fused_signs.setdefault(pair, []).append(_digest(logits, context))
            done = _report(progress, done, total)
        assert high is not None and low is not None
        spread: Any = (high.astype(mx.float32) - low.astype(mx.float32)).max().item()
        disagreement = max(disagreement, spread)
    # A row count is usable if full and ragged steps agree; a class shares the same digests.
    groups: dict[tuple[bytes, ...], list[int]] = {}
    for rows, found in signs.items():
        if found[::2] == found[1::2]:
            groups.setdefault(tuple(found[::2]), []).append(rows)
    fused = tuple(
        pair for pair, found in fused_signs.items() if pair[0] in groups.get(tuple(found), [])
    )
    return Probe(
        classes=tuple(tuple(sorted(rows)) for rows in groups.values()),
        fused=fused,
        disagreement=disagreement,
        cost_ms=measure_costs(model, row_counts, context=min(600, limit)),
        contexts=contexts,
    )


def measure_costs(
    model: Any, row_counts: tuple[int, ...], context: int, repeats: int = 3
) -> dict[int, float]:
    """Median time of a verify pass, in milliseconds, by row count."""
    cache = _cache_of(model, context)
    costs = {}
    for rows in row_counts:
        ids = _some_ids(model.config.vocab_size, rows)
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            mx.eval(model.verify(ids, cache))
            times.append(time.perf_counter() - start)
            cut_cache(cache, context)
        costs[rows] = round(statistics.median(times[1:]) * 1e3, 4)
    return costs


def _decode(
    model: Any,
    cache: list[Any],
    context: int,
    ids: mx.array,
    rows: int,
    *,
    ragged: bool,
    ahead: int = 0,
) -> mx.array:
    """AR logits [POSITIONS, vocab] of `ids` after the cached context, `rows` rows a forward.

    Ragged steps keep 1, half, or all of a forward's rows and fill the rest with other ids, as
    rejected drafts and padding do; `ahead` diffusion rows ride along where given.
    """
    mask = model.config.mask_token_id
    keeps = _ragged(rows) if ragged else _always(rows)
    pieces, at = [], 0
    while at < ids.size:
        keep = min(next(keeps), ids.size - at)
        kept = ids[at : at + keep]
        filler = mx.full((rows - keep,), mask, mx.int32)
        if ahead:
            block = mx.concatenate([kept[:1], mx.full((ahead - 1,), mask, mx.int32)])
            everything = mx.concatenate([kept, filler, block])
            logits, _ = model.verify_and_draft(everything, rows, cache)
        else:
            logits = model.verify(mx.concatenate([kept, filler]), cache)
        pieces.append(logits[:keep])
        mx.eval(pieces[-1])
        at += keep
        cut_cache(cache, context + at)
    cut_cache(cache, context)
    return mx.concatenate(pieces)


def _always(rows: int) -> Iterator[int]:
    while True:
        yield rows


def _ragged(rows: int) -> Iterator[int]:
    while True:
        yield from (1, max(1, rows // 2), rows, max(1, rows - 1))


def _digest(logits: mx.array, context: int) -> bytes:
    """A digest of the bits of logits and of the scores sampled from them."""
    sampled = scores(logits, context + 1, SAMPLED)
    words = mx.uint16 if logits.dtype.size == 2 else mx.uint32
    digest = hashlib.sha256()
    for bits in (logits.view(words), sampled.view(mx.uint32)):
        digest.update(memoryview(bits))  # type: ignore[arg-type]
    return digest.digest()


def _cache_of(model: Any, length: int) -> list[Any]:
    """A cache of `length` tokens: the model's own keys and values of some text, repeated."""
    cache = model.make_cache()
    read = min(length, 256)
    model.hidden(_some_ids(model.config.vocab_size, read)[None], cache)
    for layer in cache:
        keys, values = layer.keys[:, :, :read], layer.values[:, :, :read]
        while layer.offset < length:
            more = min(read, length - layer.offset)
            layer.update_and_fetch(keys[:, :, :more], values[:, :, :more])
        mx.eval(layer.state)
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


def stored_probe(model: Any) -> Probe | None:
    """The stored result for this model and device, or None."""
    try:
        raw = json.loads(_probe_file(model).read_text(encoding="utf-8"))
        return Probe(
            classes=tuple(map(tuple, raw["classes"])),
            fused=tuple((a, b) for a, b in raw["fused"]),
            disagreement=float(raw["disagreement"]),
            cost_ms={int(rows): float(ms) for rows, ms in raw["cost_ms"].items()},
            contexts=tuple(raw["contexts"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, or written by another version: probe again


def _store(file: Path, result: Probe) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.tmp")
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
    """Everything that decides which kernels run: shapes, packing, device, system, mlx version."""
    config = model.config
    layer = model.layers[0]
    packed = [
        (name, getattr(m, "bits", 0), getattr(m, "group_size", 0), getattr(m, "mode", ""))
        for name, m in layer.named_modules()
        if "weight" in m
    ]
    return {
        "format": FORMAT,
        "shape": [
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.vocab_size,
            config.tie_word_embeddings,
        ],
        "packed": sorted(map(str, packed)),
        "dtype": str(layer.input_layernorm.weight.dtype),
        "device": _device_name(),
        "system": [platform.system(), platform.release(), platform.machine()],
        "mlx": mx.__version__,
    }


def _device_name() -> str:
    device = mx.default_device()
    info: dict[str, Any] = mx.device_info(device) if hasattr(mx, "device_info") else {}
    return f"{device.type} {info.get('device_name', platform.processor())}"

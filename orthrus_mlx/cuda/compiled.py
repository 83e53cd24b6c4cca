"""Passes of few shapes, each compiled once: what MLX's CUDA backend needs to be fast.

Passes of up to `MAX_ROWS` rows are padded to a power of two of rows of each view and sequence (a
bucket), and KV caches have few sizes. As shapes repeat, so do whole passes: `mx.compile` traces
each once, a few layers at a time, and it costs the host less from then on.

Attention runs kernels of our own. Where these cannot run (see `attention.fits`), MLX plans 16-bit
attention over several rows anew for each shape, which takes 70 ms, and gives up after some hundred
plans: there passes of one sequence see a power of two of the cache's slots, with those not filled
yet behind a mask, and those of several are not compiled. (Kernels may change wherever that number
does; `probe.STEPS` are all such places.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache

from ..model import AR
from ..rows import Cache, Rows, Segment
from .attention import fits
from .fused import rows_alike
from .in_flight import InFlight
from .ranges import StaticRows, StaticSegment, ranges, visible

MAX_ROWS = 128
ROOM = 512  # slots by which a cache grows: each size is traced anew
MIN_SLOTS = 1024  # visible behind a mask
LAYERS_PER_SUBMIT = 2
WIDE = 2048  # `hidden_size`; of wider models one layer is submitted: two would hold too much
MAX_TRACES = 64  # the last ones used: each takes some hundred kilobytes of the host's memory

Held = list[tuple[mx.array, mx.array]]  # keys and values of each layer's cache
Seen = tuple[mx.array, list[mx.array], list[mx.array]]  # see `_seen`
Pass = Callable[[mx.array, Seen, Held], tuple[mx.array, Held]]


class Share(NamedTuple):
    """A sequence's share of a compiled pass.

    Attributes:
        n_ar: its AR rows, padding included.
        n_diff: its diffusion rows, padding included.
        capacity: slots of its cache.
    """

    n_ar: int
    n_diff: int
    capacity: int


class Bucket(NamedTuple):
    """What a pass is traced for.

    Attributes:
        shares: of the sequences, the largest first.
        visible: slots that attention is given: all for kernels, which take ranges; else those
            behind the mask.
        dtype: of keys and values.
        kernels: whether the attention kernels run.
    """

    shares: tuple[Share, ...]
    visible: int
    dtype: mx.Dtype
    kernels: bool

    @property
    def rows(self) -> int:
        """Rows of both views, padding included."""
        return sum(share.n_ar + share.n_diff for share in self.shares)

    @property
    def n_ar(self) -> int:
        """AR rows, which come first."""
        return sum(share.n_ar for share in self.shares)

    def places(self) -> list[tuple[slice, slice]]:
        """Where the AR rows and the diffusion rows of each share lie."""
        ar, diff, found = 0, self.n_ar, []
        for share in self.shares:
            found.append((slice(ar, ar + share.n_ar), slice(diff, diff + share.n_diff)))
            ar, diff = ar + share.n_ar, diff + share.n_diff
        return found


class StaticCache:
    """One layer's KV cache in a compiled pass, which writes to given slots.

    Attributes:
        keys: [1, n_kv_heads, capacity, head_dim].
        values: the same.
        slots: that the rows are written to, in the shape of what is written there.
        visible: slots that attention is given.
    """

    def __init__(self, keys: mx.array, values: mx.array, slots: mx.array, visible: int):
        self.keys, self.values, self.slots, self.visible = keys, values, slots, visible

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the rows' keys and values, and return the visible slots'; as mlx-lm's `KVCache`."""
        # `slice_update` at an array offset would launch a thread for every slot there is.
        self.keys = mx.put_along_axis(self.keys, self.slots, keys, axis=2)
        self.values = mx.put_along_axis(self.values, self.slots, values, axis=2)
        return self.keys[:, :, : self.visible], self.values[:, :, : self.visible]


class CompiledModel:
    """The compiled passes of a model, good for as long as its modules and weights are the same.

    Attributes:
        layers: the model's list of layers.
    """

    def __init__(self, model: Any):
        # Nothing here refers to the model: the reference would keep it alive.
        self.layers = model.layers
        config, embed = model.config, model.model.embed_tokens
        self._heads, self._head_dim = config.num_key_value_heads, config.head_dim
        step = 1 if config.hidden_size > WIDE else LAYERS_PER_SUBMIT
        self._parts = [
            CompiledLayers(self.layers[first : first + step], None if first else embed)
            for first in range(0, len(self.layers), step)
        ]
        attention = self.layers[0].self_attn
        # Never computed: quantized embeddings and norms may be of other types than keys.
        _, keys, _ = attention.project(embed(mx.array([[0]])), AR)
        self._dtype, self._kernels = keys.dtype, fits(attention, keys)
        # Layers may be quantized each in its own way.
        self._alike = min(rows_alike(layer, self._dtype) for layer in self.layers)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """A deep copy of the model compiles its own."""
        return type(None), ()

    def takes(self, rows: Rows) -> bool:
        """Whether a pass over these rows is compiled: a few rows, in plain KV."""
        if any(type(s.cache[0]) is not KVCache for s in rows.segments):  # a quantized one
            return False
        if not 1 < rows.n_ar + rows.n_diff <= MAX_ROWS:
            return False
        if len(rows.segments) > 1 and not all(self._by_kernels(s.cache) for s in rows.segments):
            return False
        return all(s.n_ar > 0 or len(s.depths) == 1 for s in rows.segments)

    def _by_kernels(self, cache: Cache) -> bool:
        """Whether the attention kernels read this cache: not one from before `set_dtype`."""
        held = cache[0].keys
        return self._kernels and (held is None or held.dtype == self._dtype)

    def __call__(self, rows: Rows) -> mx.array:
        """As `Model.backbone`: hidden states [1, L, dim], and the caches grow by all rows."""
        # 1. The bucket. Its shares are ordered by what they need, so that it is the same for
        # whoever shares a pass; not by the room that they have, which may differ among ranks.
        shares, needs, shown = list[Share](), list[tuple[int, ...]](), 0
        for segment, padded in zip(rows.segments, self._padded(rows), strict=True):
            # As for the longest pass: none grows a cache on which another one is prepared.
            room = max(sum(padded), MAX_ROWS) if self._kernels else sum(padded)
            shown = slots_for(segment.cache[0].offset + room, self._kernels)
            self._reserve(segment.cache, shown)
            shares.append(Share(*padded, segment.cache[0].keys.shape[2]))
            needs.append((*padded, shown))
        order = sorted(range(len(shares)), key=needs.__getitem__, reverse=True)
        segments = [rows.segments[n] for n in order]
        if self._kernels:  # which see no more than the ranges say
            shown = max(share.capacity for share in shares)
        bucket = Bucket(tuple(shares[n] for n in order), shown, self._dtype, self._kernels)

        # 2. What changes from pass to pass.
        seen = _seen(bucket, segments, (self._heads, self._head_dim))
        there, back = _moves(rows, bucket, order)
        h, in_flight = _moved(rows.ids, there), InFlight()

        # 3. The layers.
        at = 0
        for part in self._parts:
            layers = [
                layer
                for each in zip(*(s.cache[at : at + part.count] for s in segments), strict=True)
                for layer in each
            ]
            h, held = part(bucket, h, seen, [(layer.keys, layer.values) for layer in layers])
            for layer, (keys, values) in zip(layers, held, strict=True):
                layer.keys, layer.values = keys, values
            for segment in segments:
                for layer in segment.cache[at : at + part.count]:
                    layer.offset += segment.n_ar + segment.n_diff
            # The host waits for drafting passes: let the device begin while it builds the rest.
            # Verify passes are left to whoever evaluates them, and so are prepared ones: they may
            # be built while a draft pass still writes to the same cache.
            if rows.n_diff and not rows.prepared:
                in_flight.submit(h, held)
            at += part.count
        return _moved(h, back)

    def _padded(self, rows: Rows) -> list[tuple[int, int]]:
        """The AR and diffusion rows of each segment, padded to powers of two.

        Of several segments, those that verify are padded alike, and so are those that draft: few
        buckets come of it. But no further than the kernels have the same bits for any number of
        rows: exact numerics count on the rows of a pass in all.
        """
        counts = [(segment.n_ar, segment.n_diff) for segment in rows.segments]
        most_ar, most_diff = (power_of_two(max(view)) for view in zip(*counts, strict=True))
        padded = [(most_ar if a > 1 else a, most_diff if d else 0) for a, d in counts]
        total = sum(map(sum, padded))
        if len(counts) > 1 and total > self._alike:
            return counts
        if not self._kernels:  # each total is planned anew
            (a, d), spare = padded[0], power_of_two(total) - total
            return [(a, d + spare) if d else (a + spare, d)]
        return padded

    def _reserve(self, cache: Cache, slots: int) -> None:
        """Make room for `slots` tokens in all."""
        shape = (1, self._heads, slots, self._head_dim)
        for layer in cache:
            held: list[Any] = [a for a in (layer.keys, layer.values) if a is not None]
            if held and all(a.shape[2] >= slots for a in held):
                continue
            if held:
                room = [(0, 0), (0, 0), (0, slots - layer.offset), (0, 0)]
                held = [mx.pad(a[:, :, : layer.offset], room) for a in held]
                mx.eval(held)  # or the old and the new cache would be in memory at once
            else:  # no waiting for what the device works on: rows that fill a pass up are new, too
                held = [mx.zeros(shape, self._dtype) for _ in range(2)]
            layer.keys, layer.values = held


class CompiledLayers:
    """A few consecutive layers, traced once for each bucket; the first ones with the embeddings.

    A bucket of several sequences is traced when it comes for the second time: many never do, and
    tracing takes some times as long as a pass.

    Attributes:
        count: the number of layers.
    """

    def __init__(self, layers: Sequence[Any], embed: Any):
        roots = layers if embed is None else [embed, *layers]
        mx.eval([root.parameters() for root in roots])  # or each pass would compute them again
        self.count = len(layers)
        self._layers, self._embed = layers, embed
        self._traces: OrderedDict[Bucket, Pass] = OrderedDict()

    def __call__(
        self, bucket: Bucket, h: mx.array, seen: Seen, held: Held
    ) -> tuple[mx.array, Held]:
        """Hidden states behind these layers, and what their caches hold then.

        `h` are the hidden states before them [1, rows, dim], or ids [1, rows] for the first ones.
        `seen` says what rows see, and where they go, as `_seen` has it.
        """
        run, shared = self._traces.get(bucket), len(bucket.shares) > 1
        if run is None:
            run = partial(_run, self._layers, self._embed, bucket)
            self._traces[bucket] = run if shared else mx.compile(run)
        elif type(run) is partial:  # `isinstance` holds for what it compiles to as well
            self._traces[bucket] = mx.compile(run)
        self._traces.move_to_end(bucket)
        if len(self._traces) > MAX_TRACES:
            self._traces.popitem(last=False)
        return self._traces[bucket](h, seen, held)


def _run(
    layers: Sequence[Any], embed: Any, bucket: Bucket, h: mx.array, seen: Seen, held: Held
) -> tuple[mx.array, Held]:
    """What `CompiledLayers` traces: nothing here may depend on more than the bucket."""
    # 1. What each row sees.
    whole, each, slots = seen
    segments = [
        StaticSegment(ar, diff, mine)
        for (ar, diff), mine in zip(bucket.places(), each, strict=True)
    ]
    see, not_see = mx.array(0, bucket.dtype), mx.array(-mx.inf, bucket.dtype)
    mask = mx.where(visible(whole, bucket.visible), see, not_see)
    rows = StaticRows(bucket.n_ar, whole, tuple(segments), mask, bucket.kernels)
    # 2. The layers. `held` has each layer's caches one after another.
    h, count = h if embed is None else embed(h), len(segments)
    caches = [StaticCache(*both, slots[i % count], bucket.visible) for i, both in enumerate(held)]
    for i, layer in enumerate(layers):
        h = layer(h, rows, caches[i * count : (i + 1) * count])
    return h, [(cache.keys, cache.values) for cache in caches]


def _seen(bucket: Bucket, segments: Sequence[Segment], heads: tuple[int, int]) -> Seen:
    """The ranges of all rows [5, rows], those of each segment's, and where its keys go.

    The segments are in the order of the bucket's shares. Slots have the shape of what is written
    there, [1, n_kv_heads, rows, head_dim], `heads` being both sizes. Every layer reads all of it,
    from the device's memory if the device computed it. (What the host wrote stays in the host's.)
    """
    own = [
        ranges(s.cache[0].offset, share.n_ar, s.n_diff, s.depths, share.n_diff - s.n_diff)
        for s, share in zip(segments, bucket.shares, strict=True)
    ]
    views = [np.split(a, [share.n_ar], 1) for a, share in zip(own, bucket.shares, strict=True)]
    whole = np.concatenate([part for view in zip(*views, strict=True) for part in view], axis=1)
    # In one transfer. `abs` changes nothing, as no number is negative.
    flat = mx.abs(mx.array(np.concatenate([a.reshape(-1) for a in (whole, *own)])))
    at, each, slots = whole.size, list[mx.array](), list[mx.array]()
    for a in own:
        each.append(flat[at : at + a.size].reshape(a.shape))
        at += a.size
        shape = (1, heads[0], a.shape[1], heads[1])
        slots.append(mx.broadcast_to(flat[at - a.shape[1] : at][:, None], shape))
    return flat[: whole.size].reshape(whole.shape), each, slots


def _moves(rows: Rows, bucket: Bucket, order: Sequence[int]) -> tuple[list[int], list[int]]:
    """For each row of a compiled pass the row of `rows` that it is, and the other way round.

    Padding is some row too. `order` are the places of the bucket's shares in `rows`.
    """
    starts = list[tuple[int, int]]()  # of each segment's AR and diffusion rows in `rows`
    ar, diff = 0, rows.n_ar
    for segment in rows.segments:
        starts.append((ar, diff))
        ar, diff = ar + segment.n_ar, diff + segment.n_diff
    there, back = [0] * bucket.rows, [0] * diff
    for n, places in zip(order, bucket.places(), strict=True):
        counts = rows.segments[n].n_ar, rows.segments[n].n_diff
        for start, place, count in zip(starts[n], places, counts, strict=True):
            for j in range(count):
                there[place.start + j], back[start + j] = start + j, place.start + j
    return there, back


def _moved(x: mx.array, places: list[int]) -> mx.array:
    """The rows of `x` [1, rows, ...] at these places."""
    if places == list(range(len(places))):
        return x if x.shape[1] == len(places) else x[:, : len(places)]
    return mx.take(x, mx.array(places), axis=1)


def slots_for(tokens: int, kernels: bool) -> int:
    """Slots that a cache of so many tokens should have or, where no kernels run, make visible."""
    return -(-tokens // ROOM) * ROOM if kernels else max(MIN_SLOTS, power_of_two(tokens))


def power_of_two(n: int) -> int:
    """The smallest power of two that is no less than `n`; 0 for none."""
    return 1 << (n - 1).bit_length() if n else 0

"""Passes of few shapes, each compiled once: what MLX's CUDA backend needs to be fast.

Passes of up to `MAX_ROWS` rows are padded to a power of two of rows of each view (a bucket), and
the KV cache has few sizes. As shapes repeat, so do whole passes: `mx.compile` traces each once, a
few layers at a time, and it costs the host less from then on.

Attention runs kernels of our own. Where these cannot run (see `attention.fits`), MLX plans 16-bit
attention over several rows anew for each shape, which takes 70 ms, and gives up after some hundred
plans: there passes see a power of two of the cache's slots, with those not filled yet behind a
mask. (Kernels may change wherever that number does; `probe.STEPS` are all such places.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from ..model import AR
from ..rows import Cache, Rows
from .attention import fits
from .in_flight import InFlight
from .ranges import StaticRows, ranges, visible

MAX_ROWS = 128
ROOM = 512  # slots by which a cache grows: each size is traced anew
MIN_SLOTS = 1024  # visible behind a mask
LAYERS_PER_SUBMIT = 2
WIDE = 2048  # `hidden_size`; of wider models one layer is submitted: two would hold too much
MAX_TRACES = 32  # the last ones used: each takes some hundred kilobytes of the host's memory

Held = list[tuple[mx.array, mx.array]]  # keys and values of each layer's cache
Pass = Callable[[mx.array, mx.array, Held], tuple[mx.array, Held]]


class Bucket(NamedTuple):
    """What a pass is traced for.

    Attributes:
        rows: of both views, padding included.
        n_ar: AR rows, which come first.
        capacity: slots of the cache.
        visible: slots that attention is given: all for kernels, which take ranges; else those
            behind the mask.
        dtype: of keys and values.
        kernels: whether the attention kernels run.
    """

    rows: int
    n_ar: int
    capacity: int
    visible: int
    dtype: mx.Dtype
    kernels: bool


class StaticCache:
    """One layer's KV cache in a compiled pass, which writes to given slots.

    Attributes:
        keys: [1, n_kv_heads, capacity, head_dim].
        values: the same.
        slots: that the rows are written to, [1, 1, rows, 1].
        visible: slots that attention is given.
    """

    def __init__(self, keys: mx.array, values: mx.array, slots: mx.array, visible: int):
        self.keys, self.values, self.slots, self.visible = keys, values, slots, visible

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the rows' keys and values, and return the visible slots'; as mlx-lm's `KVCache`."""
        # `slice_update` at an array offset would launch a thread for every slot there is.
        slots = mx.broadcast_to(self.slots, keys.shape)
        self.keys = mx.put_along_axis(self.keys, slots, keys, axis=2)
        self.values = mx.put_along_axis(self.values, slots, values, axis=2)
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
        self._empty = (1, config.num_key_value_heads, 0, config.head_dim)
        step = 1 if config.hidden_size > WIDE else LAYERS_PER_SUBMIT
        self._parts = [
            CompiledLayers(self.layers[first : first + step], None if first else embed)
            for first in range(0, len(self.layers), step)
        ]
        attention = self.layers[0].self_attn
        # Never computed: quantized embeddings and norms may be of other types than keys.
        _, keys, _ = attention.project(embed(mx.array([[0]])), AR)
        self._dtype, self._kernels = keys.dtype, fits(attention, keys)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """A deep copy of the model compiles its own."""
        return type(None), ()

    def takes(self, rows: Rows) -> bool:
        """Whether a pass over these rows is compiled: a few rows of one sequence, in plain KV."""
        if type(rows.segments[0].cache[0]) is not KVCache:  # a quantized one
            return False
        if len(rows.segments) > 1 or not 1 < rows.n_ar + rows.n_diff <= MAX_ROWS:
            return False
        return rows.n_ar > 0 or len(rows.segments[0].depths) == 1

    def __call__(self, rows: Rows) -> mx.array:
        """As `Model.backbone`: hidden states [1, L, dim], and the cache grows by all rows."""
        # 1. The bucket.
        (segment,) = rows.segments
        cache, start, n_diff = segment.cache, segment.cache[0].offset, segment.n_diff
        counts = [n for n in (segment.n_ar, n_diff) if n]
        padded = [power_of_two(n) for n in counts]
        if self._kernels:
            # As for the longest pass: none grows a cache on which another one is prepared.
            slots = slots_for(start + max(sum(padded), MAX_ROWS), True)
        else:
            padded[-1] += power_of_two(sum(padded)) - sum(padded)  # each total is planned anew
            slots = slots_for(start + sum(padded), False)
        self._reserve(cache, slots)
        n_ar, n_rows = padded[0] if segment.n_ar else 0, sum(padded)
        capacity = cache[0].keys.shape[2]
        shown = capacity if self._kernels else slots
        bucket = Bucket(n_rows, n_ar, capacity, shown, self._dtype, self._kernels)

        # 2. What changes from pass to pass. Every layer reads the ranges, from the device's memory
        # if the device computed them. (What the host wrote stays in the host's.) `abs` changes
        # nothing, as no number is negative.
        own = mx.abs(ranges(start, n_ar, n_diff, segment.depths, n_rows - n_ar - n_diff))
        h, in_flight = _pad(rows.ids, counts, padded), InFlight()

        # 3. The layers.
        at = 0
        for part in self._parts:
            layers = cache[at : at + part.count]
            h, held = part(bucket, h, own, [(layer.keys, layer.values) for layer in layers])
            for layer, (keys, values) in zip(layers, held, strict=True):
                layer.keys, layer.values, layer.offset = keys, values, start + sum(counts)
            # The host waits for drafting passes: let the device begin while it builds the rest.
            # Verify passes are left to whoever evaluates them: one may be prepared while the draft
            # pass still writes to the same cache.
            if n_diff:
                in_flight.submit(h, held)
            at += part.count
        if len(counts) > 1 and n_ar > counts[0]:
            return mx.concatenate([h[:, : counts[0]], h[:, n_ar : n_ar + n_diff]], axis=1)
        return h[:, : sum(counts)]

    def _reserve(self, cache: Cache, slots: int) -> None:
        """Make room for `slots` tokens in all."""
        for layer in cache:
            held: list[Any] = [layer.keys, layer.values]
            held = [mx.zeros(self._empty, self._dtype) if a is None else a for a in held]
            if all(a.shape[2] >= slots for a in held):
                continue
            room = [(0, 0), (0, 0), (0, slots - layer.offset), (0, 0)]
            held = [mx.pad(a[:, :, : layer.offset], room) for a in held]
            mx.eval(held)  # or the old and the new cache would be in memory at once
            layer.keys, layer.values = held


class CompiledLayers:
    """A few consecutive layers, traced once for each bucket; the first ones with the embeddings.

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
        self, bucket: Bucket, h: mx.array, own: mx.array, held: Held
    ) -> tuple[mx.array, Held]:
        """Hidden states behind these layers, and what their caches hold then.

        `h` are the hidden states before them [1, rows, dim], or ids [1, rows] for the first ones.
        `own` are the rows' ranges [5, rows].
        """
        if bucket not in self._traces:
            self._traces[bucket] = mx.compile(partial(_run, self._layers, self._embed, bucket))
        self._traces.move_to_end(bucket)
        if len(self._traces) > MAX_TRACES:
            self._traces.popitem(last=False)
        return self._traces[bucket](h, own, held)


def _run(
    layers: Sequence[Any], embed: Any, bucket: Bucket, h: mx.array, own: mx.array, held: Held
) -> tuple[mx.array, Held]:
    """What `CompiledLayers` traces: nothing here may depend on more than the bucket."""
    slots = own[4][None, None, :, None]
    caches = [StaticCache(keys, values, slots, bucket.visible) for keys, values in held]
    see, not_see = mx.array(0, bucket.dtype), mx.array(-mx.inf, bucket.dtype)
    mask = mx.where(visible(own, bucket.visible), see, not_see)
    rows = StaticRows(bucket.n_ar, own, mask, bucket.kernels)
    h = h if embed is None else embed(h)
    for layer, cache in zip(layers, caches, strict=True):
        h = layer(h, rows, [cache])
    return h, [(cache.keys, cache.values) for cache in caches]


def _pad(ids: mx.array, counts: list[int], padded: list[int]) -> mx.array:
    """The ids [1, L] of one or two views, `counts` of each, padded."""
    spare = [n - count for n, count in zip(padded, counts, strict=True)]
    if not any(spare[:-1]):
        return mx.pad(ids, [(0, 0), (0, spare[-1])]) if spare[-1] else ids
    first, second = ids[:, : counts[0]], ids[:, counts[0] :]
    parts = [mx.pad(a, [(0, 0), (0, n)]) for a, n in zip((first, second), spare, strict=True)]
    return mx.concatenate(parts, axis=1)


def slots_for(tokens: int, kernels: bool) -> int:
    """Slots that a cache of so many tokens should have or, where no kernels run, make visible."""
    return -(-tokens // ROOM) * ROOM if kernels else max(MIN_SLOTS, power_of_two(tokens))


def power_of_two(n: int) -> int:
    """The smallest power of two that is no less than `n`."""
    return 1 << (n - 1).bit_length()

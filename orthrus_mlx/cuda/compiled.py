"""Passes in few shapes, each traced once: what MLX's CUDA backend needs to be fast.

Passes of up to `MOST_ROWS` rows are filled up to a power of two of rows of each view there. As
shapes repeat, so do whole passes: each is traced once by `mx.compile`, some layers at a time, and
costs the host less from then on.

Attention goes through kernels of our own. Where these cannot run (see `few_rows_attention`), MLX
plans 16-bit attention over several rows anew for each shape, which takes 70 ms, and gives up after
some hundred plans: passes then see a power of two of the cache's slots, those not filled yet behind
a mask. (Kernels may change wherever that number does; `numerics.STEPS` are all such places.)
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from ..rows import Rows, ranges, visible
from . import attention as few_rows_attention
from .in_flight import PORTION, Ahead
from .kernels import runs_here

NEEDED = hasattr(mx, "cuda") and mx.cuda.is_available()
MOST_ROWS = 128
ROOM = 512  # slots by which a cache grows: each size is traced anew
LEAST_SLOTS = 1024  # shown behind a mask
WIDE = 2048  # `hidden_size`; of wider models each layer is a portion, as two would hold too much
MOST_TRACED = 32  # the last ones used: each takes some hundred kilobytes of the host's memory

Held = list[tuple[mx.array, mx.array]]  # keys and values of each layer's cache
Pass = Callable[..., tuple[mx.array, Held]]


class Slots:
    """One layer's cache in such a pass, written to at an array offset.

    Attributes:
        keys: [1, n_kv_heads, capacity, head_dim].
        values: the same.
        places: slots that the rows are written to, [1, 1, rows, 1].
        shown: slots that attention is given.
    """

    def __init__(self, keys: mx.array, values: mx.array, places: mx.array, shown: int):
        self.keys, self.values, self.places, self.shown = keys, values, places, shown

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write behind what is held, and show the slots; named as in mlx-lm's `KVCache`."""
        # `slice_update` at an array offset would launch a thread for every slot there is.
        places = mx.broadcast_to(self.places, keys.shape)
        self.keys = mx.put_along_axis(self.keys, places, keys, axis=2)
        self.values = mx.put_along_axis(self.values, places, values, axis=2)
        return self.keys[:, :, : self.shown], self.values[:, :, : self.shown]


class Passes:
    """The passes of one model through all its layers, handed to the device portion by portion."""

    def __init__(self, model: Any):
        # Nothing here refers to the model, or it would outlive its last user.
        self._model: Any = weakref.ref(model)
        self._state = model.training, runs_here(), len(model.layers)
        self._empty = (1, model.config.num_key_value_heads, 0, model.config.head_dim)
        self._at_once = 1 if model.config.hidden_size > WIDE else PORTION
        self._portions: dict[int, Portion] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """A copy of the model makes its own."""
        return type(None), ()

    def still_of(self, model: Any) -> bool:
        """Whether they are this model's, and it is in the state it was in."""
        now = model.training, runs_here(), len(model.layers)
        return self._model() is model and self._state == now

    def run(
        self, ids: mx.array, cache: list[KVCache], kept: int, depths: Sequence[int]
    ) -> mx.array:
        """Final hidden states [1, L, dim] of rows `ids` [1, L]; see `Model.hidden`."""
        portion = self._portion(0)
        kernels, dtype = portion.kernels, portion.dtype
        L, start = ids.shape[1], cache[0].offset
        counts = [n for n in (kept, L - kept) if n]
        filled = [power_of_two(n) for n in counts]
        if kernels:
            # As for the longest pass, so that none grows the cache that is prepared behind another.
            slots = slots_for(start + max(sum(filled), MOST_ROWS), True)
        else:
            filled[-1] += power_of_two(sum(filled)) - sum(filled)  # each total is planned anew
            slots = slots_for(start + sum(filled), False)
        self._reserve(cache, slots, dtype)
        layers: list[Any] = list(cache)
        n_ar, n_rows = filled[0] if kept else 0, sum(filled)
        shown = layers[0].keys.shape[2] if kernels else slots
        shape = Shape(n_rows, n_ar, layers[0].keys.shape[2], shown, dtype, kernels)
        # Every layer reads it, from the device's memory if the device computed it. (What the host
        # wrote stays in the host's.) `abs` changes nothing, as no number is negative.
        seen = mx.abs(ranges(start, n_ar, L - kept, depths, n_rows - n_ar - (L - kept)))
        h, ahead = _fill(ids, counts, filled), Ahead()
        for first in range(0, len(layers), self._at_once):
            part = layers[first : first + self._at_once]
            portion = self._portion(first) if first else portion
            h, held = portion(shape, h, seen, [(a.keys, a.values) for a in part])
            for layer, (keys, values) in zip(part, held, strict=True):
                layer.keys, layer.values, layer.offset = keys, values, start + kept
            if kept < L and not self._state[0]:  # as in `Model.hidden`
                ahead.hand_over(h, held)
        if len(counts) > 1 and filled[0] > kept:
            return mx.concatenate([h[:, :kept], h[:, n_ar : n_ar + L - kept]], axis=1)
        return h[:, :L]

    def _portion(self, first: int) -> Portion:
        """The layers from `first` on, as they are now."""
        known = self._portions.get(first)
        if known is None or not known.still_of(self._model()):
            known = self._portions[first] = Portion(self._model(), first, self._at_once)
        return known

    def _reserve(self, cache: list[KVCache], slots: int, dtype: mx.Dtype) -> None:
        """Make room for `slots` tokens in all."""
        for layer in cache:
            held: list[Any] = [layer.keys, layer.values]
            held = [mx.zeros(self._empty, dtype) if a is None else a for a in held]
            if all(a.shape[2] >= slots for a in held):
                continue
            room = [(0, 0), (0, 0), (0, slots - layer.offset), (0, 0)]
            held = [mx.pad(a[:, :, : layer.offset], room) for a in held]
            mx.eval(held)  # or the old and the new cache would be in memory at once
            layer.keys, layer.values = held


class Shape(NamedTuple):
    """What a pass is traced for.

    Attributes:
        rows: of both views.
        n_ar: AR rows, which come first.
        capacity: slots of the cache.
        shown: of them, to attention: all to kernels that take ranges, else those behind a mask.
        dtype: of keys and values.
        kernels: whether such kernels run.
    """

    rows: int
    n_ar: int
    capacity: int
    shown: int
    dtype: mx.Dtype
    kernels: bool


class Portion:
    """Some layers' traced passes, good for as long as they hold the modules and arrays they did.

    What is changed in place is not noticed: weights (`*=`), attributes that are no arrays. A model
    in training is not traced, since a trace holds weights as constants, of no gradient.

    Attributes:
        dtype: of the keys that the first of the layers makes.
        kernels: whether kernels of our own can run its attention.
    """

    def __init__(self, model: Any, first: int, layers: int):
        self._model: Any = weakref.ref(model)
        self._first = first
        self._layers = model.layers[first : first + layers]
        embeddings = model.model.embed_tokens
        roots = [*([] if first else [embeddings]), *self._layers]
        if not model.training:
            mx.eval([root.parameters() for root in roots])  # or each pass would compute them again
        attention = self._layers[0].self_attn
        # Never computed: packed embeddings and norms may be of other types than keys.
        _, keys, _ = attention.project(embeddings(mx.array([[0]])), False)
        self.dtype, self.kernels = keys.dtype, few_rows_attention.fits(attention, keys)
        self._parts = [part for root in roots for part in root.modules()]
        self._held = list(chain.from_iterable(map(dict.values, self._parts)))
        self._traced: OrderedDict[Shape, Pass] = OrderedDict()

    def still_of(self, model: Any) -> bool:
        """Whether they are this model's, and nothing in them was replaced since."""
        layers = model.layers[self._first : self._first + len(self._layers)]
        parts: list[dict[str, Any]] = self._parts
        held = chain.from_iterable(map(dict.values, parts))
        return (
            (self._first > 0 or parts[0] is model.model.embed_tokens)
            and all(map(is_, layers, self._layers))
            and sum(map(len, parts)) == len(self._held)
            and all(map(is_, held, self._held))
        )

    def __call__(
        self, shape: Shape, h: mx.array, seen: mx.array, held: Held
    ) -> tuple[mx.array, Held]:
        """Hidden states behind these layers, and what their caches hold then.

        `h` are the hidden states before them [1, rows, dim], or the ids [1, rows] if they are the
        first.
        """
        run = partial(_run, self._model, self._first, shape)  # not of this: a trace holds it
        if self._model().training:
            return run(h, seen, held)
        if shape not in self._traced:
            self._traced[shape] = mx.compile(run)
        self._traced.move_to_end(shape)
        if len(self._traced) > MOST_TRACED:
            self._traced.popitem(last=False)
        return self._traced[shape](h, seen, held)


def _run(
    model: Any, first: int, shape: Shape, h: mx.array, seen: mx.array, held: Held
) -> tuple[mx.array, Held]:
    """What `Portion` traces, of the model that `model` refers to."""
    places = seen[4][None, None, :, None]
    cache = [Slots(keys, values, places, shape.shown) for keys, values in held]
    see, not_see = mx.array(0, shape.dtype), mx.array(-mx.inf, shape.dtype)
    rows = Rows(
        seen[0, :1],
        shape.n_ar,
        seen[0] if 0 < shape.n_ar < shape.rows else None,
        mask=mx.where(visible(seen, shape.shown), see, not_see),
        ranges=seen if shape.kernels else None,
    )
    h = model().run(h, rows, cache, first)
    return h, [(layer.keys, layer.values) for layer in cache]


def _fill(ids: mx.array, counts: list[int], filled: list[int]) -> mx.array:
    """The ids [1, L] of one or two views, `counts` of each, filled up."""
    spare = [n - count for n, count in zip(filled, counts, strict=True)]
    if not any(spare[:-1]):
        return mx.pad(ids, [(0, 0), (0, spare[-1])]) if spare[-1] else ids
    first, second = ids[:, : counts[0]], ids[:, counts[0] :]
    parts = [mx.pad(a, [(0, 0), (0, n)]) for a, n in zip((first, second), spare, strict=True)]
    return mx.concatenate(parts, axis=1)


def slots_for(tokens: int, kernels: bool) -> int:
    """How many slots a cache of so many tokens should have, or show where no kernels run."""
    return -(-tokens // ROOM) * ROOM if kernels else max(LEAST_SLOTS, power_of_two(tokens))


def shape_of(n_ar: int, n_diff: int) -> tuple[int, ...]:
    """What decides the price of a pass: where shapes are few, rows of each view, else of both."""
    return (power_of_two(n_ar), power_of_two(n_diff)) if NEEDED else (n_ar + n_diff,)


def power_of_two(n: int) -> int:
    """The smallest power of two that is no less than `n`."""
    return 1 << (n - 1).bit_length()

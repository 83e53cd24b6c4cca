"""The KV cache of one sequence: roll it back, or prepare a pass on it while one runs."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from ..rows import Cache, Prepared

KV_BITS, KV_GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)  # mx.quantize's


class KVQuantization(NamedTuple):
    """When a KV cache is quantized, and how; as mlx-lm's `generate_step`.

    Attributes:
        bits: of a value.
        group_size: values that share a scale.
        start: tokens in the cache from which on it is quantized.
    """

    bits: int
    group_size: int = 64
    start: int = 0

    def room(self, cache: Cache) -> int | None:
        """Tokens that the cache takes before it is quantized; None if it is, or never will be."""
        return self.start - cache[0].offset if hasattr(cache[0], "to_quantized") else None

    def apply(self, cache: Cache) -> None:
        """Quantize the cache if it has come to `start`."""
        from mlx_lm.models.cache import QuantizedKVCache

        if self.room(cache) is None or cache[0].offset < self.start:
            return
        # All at once: an interrupt leaves no half. mlx-lm's own cannot convert an empty one.
        cache[:] = [
            QuantizedKVCache(self.group_size, self.bits)
            if layer.keys is None
            else layer.to_quantized(self.group_size, self.bits)
            for layer in cache
        ]


def tell(cache: Cache, *what: Any) -> None:
    """Say what was done to a cache other than by a pass, where other machines hold parts of it."""
    if (told := getattr(cache, "tell", None)) is not None:
        told(*what)


def trim(cache: Cache, length: int) -> None:
    """Roll every layer back to its first `length` tokens."""
    for layer in cache:
        layer.trim(max(0, layer.offset - length))


def settle(cache: Cache, length: int) -> None:
    """Leave a cache that an interrupt may have struck with its first `length` tokens at most.

    Every layer is trimmed to what all of them hold, and one struck between the growth of its keys
    and of its values gives the difference back.
    """
    trim(cache, min([length, *(layer.offset for layer in cache)]))
    for layer in cache:
        held: Any = tree_flatten([getattr(layer, n, None) for n in ("keys", "values")])
        sizes = {a.shape[2] for _, a in held if isinstance(a, mx.array)}
        if len(sizes) > 1:
            both, length = (layer.keys, layer.values), min(sizes)
            layer.keys, layer.values = tree_map(lambda a, n=length: a[:, :, :n], both)


class Fork:
    """A KV cache as it will be: a pass is prepared on it while an earlier pass still runs.

    Invariant: an array that is held twice cannot be written in place, MLX would copy the whole
    cache. So a fork's pass is computed only after `commit`, when the earlier pass is over and no
    one else holds what it writes to. A fork that is never committed leaves the cache as it was.

    Attributes:
        layers: what the prepared pass reads and writes.
        place: the pass, and where the sequence stands in it.
    """

    def __init__(self, cache: Cache):
        self._cache = cache
        self.layers: Cache = copy.copy(cache)  # of the same kind of list
        self.layers[:] = [_copy(layer) for layer in cache]
        self.place: Prepared | None = None

    @property
    def committed(self) -> bool:
        """Whether its state is the cache's."""
        return not self.layers

    def commit(self) -> Prepared | None:
        """Make the fork's state the cache's, and let go of it and of the pass."""
        for layer, after in zip(self._cache, self.layers, strict=True):
            vars(layer).update(vars(after))
        place, self.layers, self.place = self.place, [], None
        return place


def _copy(layer: Any) -> Any:
    """A layer that shares its arrays with `layer`; writing to it leaves that one as it is."""
    other = copy.copy(layer)
    held = {name: value for name, value in vars(layer).items() if value is not None}
    vars(other).update(tree_map(lambda a: a[...] if isinstance(a, mx.array) else a, held))
    return other

"""The KV cache of one sequence: roll it back, or prepare a pass on it while another one runs."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from ..rows import Cache


def trim(cache: Cache, length: int) -> None:
    """Roll every layer back to its first `length` tokens."""
    for layer in cache:
        layer.trim(max(0, layer.offset - length))


class Fork:
    """A KV cache as it will be: a pass is prepared on it while an earlier pass still runs.

    Invariant: an array that is held twice cannot be written in place, MLX would copy the whole
    cache. So a fork's pass is computed only after `commit`, when the earlier pass is over and no
    one else holds what it writes to. A fork that is never committed leaves the cache as it was.

    Attributes:
        layers: what the prepared pass reads and writes.
    """

    def __init__(self, cache: Cache):
        self._cache = cache
        self.layers = [_copy(layer) for layer in cache]

    def commit(self) -> None:
        """Make the fork's state the cache's, and let go of it."""
        for layer, after in zip(self._cache, self.layers, strict=True):
            vars(layer).update(vars(after))
        self.layers = []


def _copy(layer: Any) -> Any:
    """A layer that shares its arrays with `layer`; writing to it leaves that one as it is."""
    other = copy.copy(layer)
    held = {name: value for name, value in vars(layer).items() if value is not None}
    vars(other).update(tree_map(lambda a: a[...] if isinstance(a, mx.array) else a, held))
    return other

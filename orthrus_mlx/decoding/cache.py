"""The KV cache of one sequence: check it, roll it back, or prepare a pass on it while one runs."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from ..errors import GenerationError
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


def check_quantization(bits: int, group_size: int, head_dim: int) -> None:
    """Refuse a quantized KV cache that this device cannot attend over, as MLX's CUDA backend.

    Raises:
        GenerationError: naming the bits.
    """
    if head_dim % group_size:
        raise GenerationError(
            f"kv_group_size is {group_size}, which does not divide this model's head_dim of "
            f"{head_dim}."
        )
    row = mx.ones((1, 1, 1, head_dim))
    try:
        held = mx.quantize(mx.ones((1, 1, 8, head_dim)), group_size, bits)
        mx.eval(mx.quantized_matmul(row, *held, group_size=group_size, bits=bits))
    except RuntimeError as error:
        raise GenerationError(
            f"MLX cannot attend over a KV cache of {bits} bits on {mx.default_device()}: leave "
            f"kv_bits out. ({error})"
        ) from error


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


def check(cache: Cache, own: Cache, n_kv_heads: int, head_dim: int) -> None:
    """Refuse a cache that a model cannot continue, or that cannot be rolled back.

    Args:
        cache: one layer's cache for each of the model's layers.
        own: a fresh one of the model's own.
        n_kv_heads: the model's key and value heads.
        head_dim: values of each.

    Raises:
        GenerationError: naming the layer, and what to pass.
    """
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    advice = "Make one with `model.make_cache()`."
    if not isinstance(cache, list):
        raise GenerationError(
            f"The prompt cache is a {type(cache).__name__}; expected a list. {advice}"
        )
    if len(cache) != len(own):
        raise GenerationError(
            f"The prompt cache has {len(cache)} layers, and this model {len(own)}: it was made for "
            f"another model. {advice}"
        )
    for i, layer in enumerate(cache):
        name = type(layer).__name__
        if type(layer) not in (type(own[0]), KVCache, QuantizedKVCache):
            fault = (
                f"is a {name}; drafts need a KVCache or QuantizedKVCache, which can be rolled back"
            )
        elif type(layer) is not type(cache[0]):
            fault = f"is a {name}, and layer 0 a {type(cache[0]).__name__}"
        elif any(layer is other for other in cache[:i]):
            fault = "is the same object as an earlier layer's"
        elif not isinstance(layer.offset, int) or layer.offset < 0:
            fault = f"has an offset of {layer.offset!r}"
        elif layer.offset != cache[0].offset:
            fault = f"holds {layer.offset} tokens, and layer 0 {cache[0].offset}"
        else:
            fault = _shape_fault(layer, n_kv_heads, head_dim)
        if fault:
            raise GenerationError(f"Layer {i} of the prompt cache {fault}. {advice}")


def _shape_fault(layer: Any, n_kv_heads: int, head_dim: int) -> str:
    """What is wrong with a layer's arrays; empty if nothing is."""
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    if not isinstance(layer, KVCache | QuantizedKVCache):
        return ""
    if isinstance(layer, QuantizedKVCache) and (
        layer.bits not in KV_BITS
        or layer.group_size not in KV_GROUP_SIZES
        or head_dim % layer.group_size
    ):
        return f"has {layer.bits!r} bits and groups of {layer.group_size!r}, which cannot be used"
    for which in ("keys", "values"):
        held: Any = getattr(layer, which)
        if held is None and not layer.offset:
            continue
        if held is None:
            return f"has no {which}"
        widths = [head_dim]
        if isinstance(layer, QuantizedKVCache):
            groups = head_dim // layer.group_size
            widths = [head_dim * layer.bits // 32, groups, groups]
        parts = [held] if isinstance(layer, KVCache) else held
        if not isinstance(parts, list | tuple) or len(parts) != len(widths):
            return f"has {which} of another kind"
        for part, width in zip(parts, widths, strict=True):
            if not isinstance(part, mx.array):
                return f"has no {which}"
            if width == head_dim and not mx.issubdtype(part.dtype, mx.floating):
                return f"has {which} of {part.dtype}"
            wanted = (1, n_kv_heads, "N", width)
            fits = part.ndim == 4 and part.shape[2] >= layer.offset
            if not fits or part.shape[:2] != wanted[:2] or part.shape[3] != width:
                return (
                    f"has {which} of shape {part.shape}, and this model {wanted} with N of "
                    f"{layer.offset} or more"
                )
    return ""


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

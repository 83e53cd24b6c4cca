"""Projections that read the same input, computed as one matrix product."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from operator import is_
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .few_rows import product


class Joined(NamedTuple):
    """Projections computed as one.

    Attributes:
        product: the projection with the rows of all parts.
        parts: of which it was made.
        arrays: what each of them had: the part, the name, the array.
        ends: where each part ends in its output, but for the last.
    """

    product: nn.Module
    parts: Sequence[nn.Module]
    arrays: tuple[Sequence[nn.Module], Sequence[str], Sequence[mx.array]]
    ends: list[int]

    def still_of(self, parts: Sequence[nn.Module]) -> bool:
        """Whether these are the parts, and still have the arrays that they had, and no others."""
        owners, names, arrays = self.arrays  # a plain step asks twice a layer: no loop in Python
        held = map(dict.get, owners, names)
        return (
            all(map(is_, parts, self.parts))
            and all(map(is_, held, arrays))
            and sum(map(len, parts)) == len(arrays)
        )


def join(parts: Sequence[Any]) -> Joined | None:
    """One projection in place of `parts`, which read the same input; None if they differ in kind.

    Quantization groups run along the input, so that packed weights join as plain ones do. The
    parts stay, as views of the joined matrix: no weight is in memory twice.
    """
    kinds = {
        (type(p), *(getattr(p, name, None) for name in ("bits", "group_size", "mode")))
        for p in parts
    }
    known = type(parts[0]) in (nn.Linear, nn.QuantizedLinear)
    if not known or len(kinds) > 1 or any("bias" in p for p in parts):
        return None
    product = copy.copy(parts[0])
    sizes = [p.weight.shape[0] for p in parts]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    names = [name for name, value in parts[0].items() if isinstance(value, mx.array)]
    for name in names:
        whole = mx.concatenate([p[name] for p in parts])
        product[name] = whole
        for part, view in zip(parts, mx.split(whole, ends), strict=True):
            part[name] = view
    mx.eval(product.parameters(), [p.parameters() for p in parts])
    held = [(part, name, part[name]) for part in parts for name in names]
    owners, kept, arrays = zip(*held, strict=True)
    return Joined(product, parts, (owners, kept, arrays), ends)


def products(x: mx.array, parts: Sequence[nn.Module], joined: Joined | None) -> list[mx.array]:
    """What each of `parts` makes of `x`, by one product where they are joined."""
    if joined is None or not joined.still_of(parts):
        return [product(part, x) for part in parts]
    outputs: Any = mx.split(_whole(x, joined), joined.ends, axis=-1)
    return list(outputs)


def side_by_side(x: mx.array, parts: Sequence[nn.Module], joined: Joined | None) -> mx.array:
    """The same in one array, [..., rows, sum of their outputs]."""
    if joined is None or not joined.still_of(parts):
        return mx.concatenate([product(part, x) for part in parts], axis=-1)
    return _whole(x, joined)


def _whole(x: mx.array, joined: Joined) -> mx.array:
    return joined.product(x) if joined.parts[0].training else product(joined.product, x)

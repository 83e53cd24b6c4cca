"""Projections that read the same input, computed as one matrix product."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .matmul import product


@dataclass(frozen=True, slots=True)
class Joined:
    """Projections of one module, computed as one.

    Attributes:
        product: the projection with the rows of all parts.
        names: of the parts in their module.
        parts: of which it was made.
        arrays: what each of them had: the part, the name, the array.
        ends: where each part ends in its output, but for the last.
    """

    product: nn.Module
    names: Sequence[str]
    parts: Sequence[nn.Module]
    arrays: tuple[Sequence[nn.Module], Sequence[str], Sequence[mx.array]]
    ends: list[int]

    def still_of(self, owner: nn.Module) -> bool:
        """Whether `owner` still has the parts, and they the arrays that they had, no others."""
        owners, names, arrays = self.arrays  # a plain step asks twice a layer: no loop in Python
        return (
            all(map(is_, map(owner.get, self.names), self.parts))
            and all(map(is_, map(dict.get, owners, names), arrays))
            and sum(map(len, self.parts)) == len(arrays)
        )


def join(owner: nn.Module, names: Sequence[str]) -> Joined | None:
    """One projection in place of some of `owner`, which read the same input.

    None if they differ in kind. Quantization groups run along the input, so that packed weights
    join as plain ones do. The parts stay, as views of the joined matrix: no weight is in memory
    twice.
    """
    parts: list[Any] = [getattr(owner, name) for name in names]
    kinds = {
        (type(p), *(getattr(p, name, None) for name in ("bits", "group_size", "mode")))
        for p in parts
    }
    known = type(parts[0]) in (nn.Linear, nn.QuantizedLinear)
    if not known or len(kinds) > 1 or any("bias" in p for p in parts):
        return None
    product = copy.copy(parts[0]).eval()  # whether it is in training, its parts know
    sizes = [p.weight.shape[0] for p in parts]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    arrays = [name for name, value in parts[0].items() if isinstance(value, mx.array)]
    for name in arrays:
        whole = mx.concatenate([p[name] for p in parts])
        product[name] = whole
        for part, view in zip(parts, mx.split(whole, ends), strict=True):
            part[name] = view
    mx.eval(product.parameters(), [p.parameters() for p in parts])
    held = [(part, name, part[name]) for part in parts for name in arrays]
    owners, kept, values = zip(*held, strict=True)
    return Joined(product, names, parts, (owners, kept, values), ends)


def products(
    x: mx.array, owner: nn.Module, names: Sequence[str], joined: Joined | None
) -> list[mx.array]:
    """What each of these projections of `owner` makes of `x`, by one product if they are joined."""
    if joined is None or not joined.still_of(owner):
        return [product(getattr(owner, name), x) for name in names]
    outputs: Any = mx.split(_whole(x, joined), joined.ends, axis=-1)
    return list(outputs)


def _whole(x: mx.array, joined: Joined) -> mx.array:
    return joined.product(x) if joined.parts[0].training else product(joined.product, x)

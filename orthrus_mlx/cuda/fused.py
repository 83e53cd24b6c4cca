"""Projections of the same input, computed as one matrix product."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .matmul import MAX_ROWS, MAX_ROWS_PLAIN, CudaLinear, CudaQuantizedLinear, fits


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """Several projections as one.

    Attributes:
        linear: the projection with the output rows of all parts, whose weights are views of it.
        splits: where each part but the first begins in its output.
    """

    linear: Any
    splits: list[int]

    def __call__(self, x: mx.array) -> list[mx.array]:
        """What each part makes of `x` [..., dim]."""
        outputs: Any = mx.split(self.linear(x), self.splits, axis=-1)
        return list(outputs)


def fuse(owner: Any, names: Sequence[str]) -> FusedLinear | None:
    """The named projections of `owner` as one; None if they differ in kind, or are no projections.

    Quantization groups run along the input, so quantized weights are fused as plain ones are. The
    parts stay, as views of the fused weights: no weight is in memory twice.
    """
    parts: list[Any] = [getattr(owner, name) for name in names]
    kinds = {
        (type(p), *(getattr(p, name, None) for name in ("bits", "group_size", "mode")))
        for p in parts
    }
    known = type(parts[0]) in (CudaLinear, CudaQuantizedLinear)
    if not known or len(kinds) > 1 or any("bias" in p for p in parts):
        return None
    linear = copy.copy(parts[0])
    sizes = [p.weight.shape[0] for p in parts]
    splits = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    for name in [name for name, value in parts[0].items() if isinstance(value, mx.array)]:
        linear[name] = mx.concatenate([p[name] for p in parts])
        for part, view in zip(parts, mx.split(linear[name], splits), strict=True):
            part[name] = view
    mx.eval(linear.parameters(), [p.parameters() for p in parts])
    return FusedLinear(linear, splits)


def rows_alike(layer: nn.Module, dtype: mx.Dtype) -> int:
    """Rows up to which the kernel computes every product of a layer: with any number alike.

    Fused projections are asked too: they are larger than their parts.
    """
    modules: Any = layer.modules()
    products = [m for m in modules if isinstance(m, (nn.Linear, nn.QuantizedLinear))]
    values = (value for module in modules for value in vars(module).values())
    products += [value.linear for value in values if isinstance(value, FusedLinear)]
    for rows in (MAX_ROWS, MAX_ROWS_PLAIN):
        inputs = [(m, mx.zeros((1, rows, _inputs(m)), dtype)) for m in products]
        if all(fits(module, x) for module, x in inputs):
            return rows
    return 0


def _inputs(projection: Any) -> int:
    packed = 32 // projection.bits if "scales" in projection else 1
    return int(projection.weight.shape[1]) * packed
